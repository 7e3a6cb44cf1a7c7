"""out = activation(x W^T + b) + add, of the first rows, as many as a number on the device says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import configs
from .dependent import wait_for_turn
from .functions import finish, places
from .launch import FLOATS, check, check_count, launch, rows_of, tma_processors
from .scratch import empty
from .tma_linear import launch_tma, tma_tile


@triton.jit
def _linear_kernel(
    x, weight, bias, add, out, source_rows, add_source_rows, count, columns, inner, add_width, add_from,
    ACTIVATION: tl.constexpr, PRECISION: tl.constexpr, GATED: tl.constexpr, EVEN_K: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    wait_for_turn()
    rows = tl.load(count)
    blocks_n = tl.cdiv(columns, BLOCK_N)
    first_row, first_column = tl.program_id(0) // blocks_n * BLOCK_M, tl.program_id(0) % blocks_n * BLOCK_N
    if first_row >= rows:
        return
    k = tl.arange(0, BLOCK_K)
    m = tl.minimum(tl.arange(0, BLOCK_M), rows - 1 - first_row)  # past the end the last ones are read, not masked
    n = tl.minimum(tl.arange(0, BLOCK_N), columns - 1 - first_column)
    # Addresses are 64 bits for a tile and 32 bits within it, in half the registers: a tile is at most 128 rows, each of
    # far fewer than 2^24 numbers. Rows that are read by their place may be anywhere: 64 bits each.
    if source_rows is not None:
        source = tl.load(source_rows + first_row + m)
        x_at = (x + source.to(tl.int64) * inner)[:, None] + k[None, :]
    else:
        x_at = x + first_row.to(tl.int64) * inner + (m[:, None] * inner + k[None, :])
    weight_at = weight + first_column.to(tl.int64) * inner + (n[:, None] * inner + k[None, :])
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, inner, BLOCK_K):
        if EVEN_K:
            a = tl.load(x_at + start).to(weight.dtype.element_ty)
            b = tl.load(weight_at + start)
        else:
            is_k = (start + k < inner)[None, :]
            a = tl.load(x_at + start, mask=is_k, other=0.0).to(weight.dtype.element_ty)
            b = tl.load(weight_at + start, mask=is_k, other=0.0)
        total = tl.dot(a, b.T, total, input_precision=PRECISION)
    total = finish(
        total, bias, add, add_source_rows, first_row, first_column, rows, columns, add_width, add_from,
        ACTIVATION, PRECISION, GATED,
    )  # fmt: skip
    if GATED:
        columns, first_column = columns // 2, first_column // 2
    row, column = places(total.shape[0]), places(total.shape[1])
    is_number = (first_row + row < rows)[:, None] & (first_column + column < columns)[None, :]
    to = out + first_row.to(tl.int64) * columns + first_column + (row[:, None] * columns + column[None, :])
    tl.store(to, total.to(out.dtype.element_ty), mask=is_number)


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    activation: str,
    count: Tensor,
    *,
    source_rows: Tensor | None = None,
    add: Tensor | None = None,
    add_source_rows: Tensor | None = None,
    add_from: int = 0,
    out: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    gated: bool = False,
) -> Tensor:
    """`reference.linear` of the first `count` rows. Output past `count` is uninitialised.

    x: [T, K], fp32, fp16 or bf16; weight: [N, K], the same dtype or fp32, then the product is in fp32; bias: fp32 [N];
    count: int32 [1], at most R. source_rows: int32 [R], the row of x that each row is, or None: R = T. add: [A, W], any
    of these dtypes; N columns from `add_from` on are added to row r, from row r of add or, with add_source_rows, int32
    [R], from row add_source_rows[r].
    gated: rows of weight are pairs of a value and its gate, and the result, [R, N / 2], is activation(value) gate;
    nothing is added then.
    Returns [R, N] of `out_dtype`, by default x's; or fills `out`. Raises ValueError for anything else.
    """
    check("x", x, FLOATS, -1, -1, like=x)
    check("weight", weight, (x.dtype, torch.float32), -1, x.shape[1], like=x)
    arguments = arguments_of(
        x, weight, bias, count, source_rows, add, add_source_rows, add_from, out, out_dtype or x.dtype, gated=gated
    )
    return launch_fastest(arguments, activation, gated, launch_by_pointers)


def launch_fastest(
    arguments: dict[str, Any], activation: str, gated: bool, by_pointers: Callable[[dict[str, Any], str, bool], None]
) -> Tensor:
    """Launch `tma_linear` where it can be and is faster, else what `by_pointers` launches. Returns the result."""
    processors = tma_processors(arguments["weight"].device)
    tile = tma_tile(arguments, activation) if processors else None
    if tile is None:
        by_pointers(arguments, activation, gated)
    else:
        launch_tma(arguments, activation, tile, processors, gated)
    out: Tensor = arguments["out"]
    return out


def launch_by_pointers(arguments: dict[str, Any], activation: str, gated: bool = False) -> None:
    """The kernel for every device, dtype and place of rows."""
    rows, columns, dtype = len(arguments["out"]), arguments["columns"], arguments["weight"].dtype
    tile = configs.tile(rows, columns, dtype, adds=arguments["add"] is not None)
    constants = {"ACTIVATION": activation, "PRECISION": configs.precision(dtype), "GATED": gated}
    launch_tiles(_linear_kernel, tile, arguments, constants)


def launch_tiles(kernel: Any, tile: configs.Tile, arguments: dict[str, Any], constants: dict[str, Any]) -> None:
    """Launch a kernel whose programs compute a tile of the result each."""
    rows, columns = len(arguments["out"]), arguments["columns"]
    launch(
        kernel,
        (triton.cdiv(rows, tile.block_m) * triton.cdiv(columns, tile.block_n),),
        arguments,
        {
            **constants, "EVEN_K": arguments["inner"] % tile.block_k == 0,
            "BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n, "BLOCK_K": tile.block_k,
        },
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        max_registers=tile.max_registers,
    )  # fmt: skip


def arguments_of(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    count: Tensor,
    source_rows: Tensor | None,
    add: Tensor | None,
    add_source_rows: Tensor | None,
    add_from: int,
    out: Tensor | None,
    out_dtype: torch.dtype,
    dtypes: Sequence[torch.dtype] = FLOATS,
    gated: bool = False,
) -> dict[str, Any]:
    """The arguments of a kernel for `linear`; "out" is made where there is none. Raises ValueError as `linear` does.

    x and weight must have been checked, as kernels differ in their dtypes. dtypes: what `add` and `out` may be.
    """
    columns, inner = weight.shape
    check("bias", bias, torch.float32, columns, like=x)
    check_count("count", count, x)
    rows = rows_of(x, source_rows)
    if add is not None:
        check("add", add, dtypes, -1 if add_source_rows is not None else rows, -1, like=x)
        if not 0 <= add_from <= add.shape[1] - columns:
            raise ValueError(f"add has {add.shape[1]} columns, expected {columns} from column {add_from} on")
    if add_source_rows is not None:
        check("add_source_rows", add_source_rows, torch.int32, rows, like=x)
    if gated and (columns % 2 or add is not None):
        raise ValueError(f"weight has {columns} rows, expected pairs of a value and a gate, and nothing to add")
    width = columns // 2 if gated else columns
    if out is not None:
        check("out", out, dtypes, rows, width, like=x)
    else:
        out = empty(rows, width, dtype=out_dtype, device=x.device)
    return {
        "x": x, "weight": weight, "bias": bias, "add": add, "out": out, "source_rows": source_rows,
        "add_source_rows": add_source_rows, "count": count, "columns": columns, "inner": inner,
        "add_width": 0 if add is None else add.shape[1], "add_from": add_from,
    }  # fmt: skip
