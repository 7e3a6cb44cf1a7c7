"""out = x W^T + b + add for a matrix of few rows: a program a row, no tile of columns that are not there."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .functions import dot_rows
from .launch import FLOATS, check, check_count, launch, power_of_two

MAX_COLUMNS = 64


@triton.jit
def _thin_linear_kernel(
    x, weight, bias, add, out, places, add_places, count, columns, inner, add_width, add_from,
    BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    if row >= tl.load(count):
        return
    column = tl.arange(0, BLOCK_C)
    is_column = column < columns
    source, added = row, row
    if places is not None:
        source = tl.load(places + row)
    total = dot_rows(x + source.to(tl.int64) * inner, weight, inner, column, is_column, BLOCK_C, BLOCK_K)
    total += tl.load(bias + column, mask=is_column, other=0.0)
    if add is not None:
        if add_places is not None:
            added = tl.load(add_places + row)
        total += tl.load(add + added.to(tl.int64) * add_width + add_from + column, mask=is_column, other=0.0)
    tl.store(out + row.to(tl.int64) * columns + column, total, mask=is_column)


def thin_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    count: Tensor,
    *,
    places: Tensor | None = None,
    add: Tensor | None = None,
    add_places: Tensor | None = None,
    add_from: int = 0,
    out: Tensor | None = None,
) -> Tensor:
    """`linear` without activation, for at most 64 columns, in fp32.

    x: [T, K], fp32, fp16 or bf16; weight: fp32 [N, K]; bias: fp32 [N]; add: fp32 [A, W]; the rest, and what raises
    ValueError, as in `linear`. Returns fp32 [R, N], or fills `out`.
    """
    check("x", x, FLOATS, -1, -1, like=x)
    check("weight", weight, torch.float32, -1, x.shape[1], like=x)
    columns, inner = weight.shape
    if not 1 <= columns <= MAX_COLUMNS:
        raise ValueError(f"weight has {columns} rows, expected 1 to {MAX_COLUMNS}")
    check("bias", bias, torch.float32, columns, like=x)
    check_count("count", count, x)
    rows = x.shape[0] if places is None else places.shape[0]
    if places is not None:
        check("places", places, torch.int32, rows, like=x)
    if add is not None:
        check("add", add, torch.float32, -1 if add_places is not None else rows, -1, like=x)
        if not 0 <= add_from <= add.shape[1] - columns:
            raise ValueError(f"add has {add.shape[1]} columns, expected {columns} from column {add_from} on")
    if add_places is not None:
        check("add_places", add_places, torch.int32, rows, like=x)
    if out is not None:
        check("out", out, torch.float32, rows, columns, like=x)
    else:
        out = torch.empty(rows, columns, device=x.device)
    block_c = power_of_two(columns, 2)
    launch(
        _thin_linear_kernel,
        (rows,),
        {
            "x": x, "weight": weight, "bias": bias, "add": add, "out": out, "places": places, "add_places": add_places,
            "count": count, "columns": columns, "inner": inner, "add_width": 0 if add is None else add.shape[1],
            "add_from": add_from,
        },
        {"BLOCK_C": block_c, "BLOCK_K": 128 if block_c <= 16 else 64},
        num_warps=4,
    )  # fmt: skip
    return out
