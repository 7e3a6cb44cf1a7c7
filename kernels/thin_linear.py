"""out = x W^T + b + add, or its sigmoid, for a matrix W of few rows: one program per row of x, no idle columns."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .functions import dot_rows, tanh
from .launch import FLOATS, check, launch, power_of_two
from .linear import arguments_of

MAX_COLUMNS = 64


@triton.jit
def _thin_linear_kernel(
    x, weight, bias, add, out, source_rows, add_source_rows, count, columns, inner, add_width, add_from,
    SIGMOID: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    if row >= tl.load(count):
        return
    column = tl.arange(0, BLOCK_C)
    is_column = column < columns
    source, added = row, row
    if source_rows is not None:
        source = tl.load(source_rows + row)
    total = dot_rows(x + source.to(tl.int64) * inner, weight, inner, column, is_column, BLOCK_C, BLOCK_K)
    total += tl.load(bias + column, mask=is_column, other=0.0)
    if add is not None:
        if add_source_rows is not None:
            added = tl.load(add_source_rows + row)
        total += tl.load(add + added.to(tl.int64) * add_width + add_from + column, mask=is_column, other=0.0)
    if SIGMOID:
        total = 0.5 + 0.5 * tanh(0.5 * total)
    tl.store(out + row.to(tl.int64) * columns + column, total, mask=is_column)


def thin_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    count: Tensor,
    *,
    source_rows: Tensor | None = None,
    add: Tensor | None = None,
    add_source_rows: Tensor | None = None,
    add_from: int = 0,
    out: Tensor | None = None,
    sigmoid: bool = False,
) -> Tensor:
    """`linear` without activation, or its sigmoid, for at most 64 columns, in fp32.

    x: [T, K], fp32, fp16 or bf16; weight: fp32 [N, K]; bias: fp32 [N]; add: fp32 [A, W]. Other arguments and errors are
    those of `linear`. Returns fp32 [R, N], or fills `out`.
    """
    check("x", x, FLOATS, -1, -1, like=x)
    check("weight", weight, torch.float32, -1, x.shape[1], like=x)
    columns = weight.shape[0]
    if not 1 <= columns <= MAX_COLUMNS:
        raise ValueError(f"weight has {columns} rows, expected 1 to {MAX_COLUMNS}")
    fp32 = torch.float32
    arguments = arguments_of(x, weight, bias, count, source_rows, add, add_source_rows, add_from, out, fp32, (fp32,))
    block_c = power_of_two(columns, 2)
    launch(
        _thin_linear_kernel,
        (arguments["out"].shape[0],),
        arguments,
        {"SIGMOID": sigmoid, "BLOCK_C": block_c, "BLOCK_K": 128 if block_c <= 16 else 64},
        num_warps=4,
    )
    return arguments["out"]
