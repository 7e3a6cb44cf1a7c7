"""out = activation(x W^T + b) + add for rows and weights in int8, of the first rows, as many as the device says."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import configs
from .dependent import wait_for_turn
from .functions import finish
from .launch import check
from .linear import arguments_of, launch_fastest, launch_tiles
from .quantise import Quantised, scaled

MAX_INNER = 65536  # with more, sums of products of up to 255 and 127 might not fit in int32


@triton.jit
def _int8_linear_kernel(
    x, weight, bias, add, out, source_rows, add_source_rows, count, columns, inner, add_width, add_from,
    steps, offsets, weight_steps, weight_sums,
    ACTIVATION: tl.constexpr, GATED: tl.constexpr, EVEN_K: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Sums in int32 are exact, so that their order is free: neither the tile nor BLOCK_K can change a bit."""
    wait_for_turn()
    rows = tl.load(count)
    blocks_n = tl.cdiv(columns, BLOCK_N)
    first_row, first_column = tl.program_id(0) // blocks_n * BLOCK_M, tl.program_id(0) % blocks_n * BLOCK_N
    if first_row >= rows:
        return
    m, n, k = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    is_row, is_column = first_row + m < rows, first_column + n < columns
    if source_rows is not None:
        source = tl.load(source_rows + first_row + m, mask=is_row, other=0)
        x_at = (x + source.to(tl.int64) * inner)[:, None] + k[None, :]
    else:  # 32 bits within a tile: addresses of 64 bits would take twice the registers
        source = first_row + m
        x_at = x + first_row.to(tl.int64) * inner + (m[:, None] * inner + k[None, :])
    weight_at = weight + first_column.to(tl.int64) * inner + (n[None, :] * inner + k[:, None])
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.int32)
    for start in range(0, inner, BLOCK_K):
        if EVEN_K:
            a = tl.load(x_at + start, mask=is_row[:, None], other=0)
            b = tl.load(weight_at + start, mask=is_column[None, :], other=0)
        else:
            a = tl.load(x_at + start, mask=is_row[:, None] & (start + k < inner)[None, :], other=0)
            b = tl.load(weight_at + start, mask=is_column[None, :] & (start + k < inner)[:, None], other=0)
        total = tl.dot(a, b, total, out_dtype=tl.int32)
    total = scaled(total, steps, offsets, source, is_row, weight_steps, weight_sums, first_column + n, is_column)
    y = finish(
        total, bias, add, add_source_rows, first_row, first_column, rows, columns, add_width, add_from,
        ACTIVATION, "tf32", GATED,
    )  # fmt: skip
    if GATED:
        columns, first_column, n = columns // 2, first_column // 2, tl.arange(0, BLOCK_N // 2)
        is_column = first_column + n < columns
    to = out + first_row.to(tl.int64) * columns + first_column + (m[:, None] * columns + n[None, :])
    tl.store(to, y.to(out.dtype.element_ty), mask=is_row[:, None] & is_column[None, :])


def int8_linear(
    x: Quantised,
    weight: Tensor,
    weight_steps: Tensor,
    weight_sums: Tensor,
    bias: Tensor,
    activation: str,
    count: Tensor,
    out_dtype: torch.dtype,
    *,
    source_rows: Tensor | None = None,
    add: Tensor | None = None,
    add_source_rows: Tensor | None = None,
    add_from: int = 0,
    out: Tensor | None = None,
    gated: bool = False,
) -> Tensor:
    """`linear` of rows and weights in int8. Sums of products are exact, and rounded to fp32 once.

    x: T rows of K numbers, at most 65,536. weight: int8 [N, K], of -127 to 127; weight_steps: fp32 [N]; weight_sums:
    int32 [N], of the rows of weight. A weight is its step times its number. bias and the other arguments, the result
    and errors are those of `linear`.
    """
    numbers = x.numbers
    check("weight", weight, torch.int8, -1, -1, like=numbers)
    columns, inner = weight.shape
    if inner > MAX_INNER:
        raise ValueError(f"weight has {inner} columns, expected at most {MAX_INNER}: sums might not fit in int32")
    x.check(-1, inner, like=weight)
    check("weight_steps", weight_steps, torch.float32, columns, like=weight)
    check("weight_sums", weight_sums, torch.int32, columns, like=weight)
    arguments = arguments_of(
        numbers, weight, bias, count, source_rows, add, add_source_rows, add_from, out, out_dtype, gated=gated
    )
    arguments |= {
        "steps": x.steps, "offsets": x.offsets, "weight_steps": weight_steps, "weight_sums": weight_sums,
    }  # fmt: skip
    return launch_fastest(arguments, activation, gated, launch_by_pointers)


def launch_by_pointers(arguments: dict[str, Any], activation: str, gated: bool = False) -> None:
    """The kernel for every device and place of rows."""
    tile = configs.int8_tile(len(arguments["out"]), arguments["columns"])
    launch_tiles(_int8_linear_kernel, tile, arguments, {"ACTIVATION": activation, "GATED": gated})
