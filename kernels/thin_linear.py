"""out = x W^T + b + add in fp32, for products too thin for `linear`: few rows, or a matrix W of few rows."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .dependent import wait_for_turn
from .functions import tanh
from .launch import FLOATS, check, launch
from .linear import arguments_of

BLOCK_R, BLOCK_C, BLOCK_K = 8, 4, 128  # fixed, because the cuts of a sum decide its last bit


@triton.jit
def thin_tile(
    x, weight, bias, add, out, source_rows, add_source_rows, first_row, first_column, rows, columns, inner, add_width,
    add_from, out_width, SIGMOID: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Write the tile of `out` that begins at this row and column.

    A number has the same bits in every kernel: BLOCK_K sums of every BLOCK_K-th product, added one after the other by a
    product of fp32 numbers. The order of `tl.sum` is the compiler's.
    """
    number, k = tl.arange(0, BLOCK_R * BLOCK_C), tl.arange(0, BLOCK_K)
    row, column = first_row + number // BLOCK_C, first_column + number % BLOCK_C
    is_number = (row < rows) & (column < columns)
    source, added = row, row
    if source_rows is not None:
        source = tl.load(source_rows + row, mask=is_number, other=0)
    x_at = x + source.to(tl.int64)[:, None] * inner + k[None, :]
    weight_at = weight + column.to(tl.int64)[:, None] * inner + k[None, :]
    sums = tl.zeros((BLOCK_R * BLOCK_C, BLOCK_K), tl.float32)
    for start in tl.range(0, inner, BLOCK_K, loop_unroll_factor=2):
        mask = is_number[:, None] & (start + k < inner)[None, :]
        a = tl.load(x_at + start, mask=mask, other=0.0).to(tl.float32)
        sums = tl.fma(a, tl.load(weight_at + start, mask=mask, other=0.0), sums)
    even, odd = tl.split(tl.reshape(sums, (BLOCK_R * BLOCK_C, BLOCK_K // 4, 2, 2)))
    first, second = tl.split(even + odd)
    ones = tl.full((BLOCK_K // 4, 1), 1.0, tl.float32)
    total = tl.reshape(tl.dot(first + second, ones, input_precision="ieee"), (BLOCK_R * BLOCK_C,))
    total += tl.load(bias + column, mask=is_number, other=0.0)
    if add is not None:
        if add_source_rows is not None:
            added = tl.load(add_source_rows + row, mask=is_number, other=0)
        total += tl.load(add + added.to(tl.int64) * add_width + add_from + column, mask=is_number, other=0.0)
    if SIGMOID:
        total = 0.5 + 0.5 * tanh(0.5 * total)
    tl.store(out + row.to(tl.int64) * out_width + column, total, mask=is_number)


@triton.jit
def _thin_linear_kernel(
    x, weight, bias, add, out, source_rows, add_source_rows, count, columns, inner, add_width, add_from,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    wait_for_turn()
    rows = tl.load(count)
    if tl.program_id(0) * BLOCK_R >= rows:
        return
    thin_tile(
        x, weight, bias, add, out, source_rows, add_source_rows, tl.program_id(0) * BLOCK_R, tl.program_id(1) * BLOCK_C,
        rows, columns, inner, add_width, add_from, columns, False, BLOCK_R, BLOCK_C, BLOCK_K,
    )  # fmt: skip


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
) -> Tensor:
    """`linear` without activation in fp32.

    x: [T, K], fp32, fp16 or bf16; weight: fp32 [N, K]; bias: fp32 [N]; add: fp32 [A, W]. Other arguments and errors are
    those of `linear`. Returns fp32 [R, N], or fills `out`.
    """
    check("x", x, FLOATS, -1, -1, like=x)
    check("weight", weight, torch.float32, -1, x.shape[1], like=x)
    fp32 = torch.float32
    arguments = arguments_of(x, weight, bias, count, source_rows, add, add_source_rows, add_from, out, fp32, (fp32,))
    rows, columns = arguments["out"].shape
    launch(
        _thin_linear_kernel,
        (triton.cdiv(rows, BLOCK_R), triton.cdiv(columns, BLOCK_C)),
        arguments,
        {"BLOCK_R": BLOCK_R, "BLOCK_C": BLOCK_C, "BLOCK_K": BLOCK_K},
        num_warps=4,
    )
    return arguments["out"]
