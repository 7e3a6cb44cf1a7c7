"""The mean of each row's tokens, summed in order, so that a row's bits do not depend on its neighbours; the maximum."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .dependent import wait_for_turn
from .launch import FLOATS, check, check_count, launch
from .scratch import empty

BLOCK = 128


@triton.jit
def _mean_kernel(x, out, bounds, count, size, blocks, BLOCK: tl.constexpr):
    wait_for_turn()
    row = tl.program_id(0) // blocks
    if row >= tl.load(count):
        return
    column = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    is_column = column < size
    start, stop = tl.load(bounds + row), tl.load(bounds + row + 1)
    total = tl.zeros((BLOCK,), tl.float32)
    at = x + start.to(tl.int64) * size + column
    for _ in range(start, stop):
        total += tl.load(at, mask=is_column, other=0.0).to(tl.float32)
        at += size
    mean = tl.math.div_rn(total, total * 0 + (stop - start).to(tl.float32))  # `/` rounds as it likes
    tl.store(out + row.to(tl.int64) * size + column, mean.to(out.dtype.element_ty), mask=is_column)


@triton.jit
def _maximum_kernel(x, out, bounds, count, size, blocks, BLOCK: tl.constexpr):
    wait_for_turn()
    row = tl.program_id(0) // blocks
    if row >= tl.load(count):
        return
    column = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    is_column = column < size
    start, stop = tl.load(bounds + row), tl.load(bounds + row + 1)
    most = tl.full((BLOCK,), float("-inf"), tl.float32)
    at = x + start.to(tl.int64) * size + column
    for _ in range(start, stop):
        y = tl.load(at, mask=is_column, other=0.0).to(tl.float32)
        most = tl.maximum(most, y, propagate_nan=tl.PropagateNan.ALL)
        at += size
    tl.store(out + row.to(tl.int64) * size + column, most.to(out.dtype.element_ty), mask=is_column)


def mean(x: Tensor, bounds: Tensor, count: Tensor, out_dtype: torch.dtype = torch.float32) -> Tensor:
    """The means of the first `count` rows, [R, H] of `out_dtype`. Output past `count` is uninitialised.

    x: [T, H], fp32, fp16 or bf16; bounds: int32 [R + 1], row r is tokens bounds[r] to bounds[r + 1], at least one;
    count: int32 [1], at most R. Sums are fp32. Raises ValueError for anything else.
    """
    return _of_rows(_mean_kernel, x, bounds, count, out_dtype)


def maximum(x: Tensor, bounds: Tensor, count: Tensor, out_dtype: torch.dtype = torch.float32) -> Tensor:
    """Of each number the greatest among a row's tokens, for the first `count` rows: [R, H] of `out_dtype`.

    nan stays nan. Arguments and errors are those of `mean`.
    """
    return _of_rows(_maximum_kernel, x, bounds, count, out_dtype)


def _of_rows(kernel: Any, x: Tensor, bounds: Tensor, count: Tensor, out_dtype: torch.dtype) -> Tensor:
    check("x", x, FLOATS, -1, -1, like=x)
    check("bounds", bounds, torch.int32, -1, like=x)
    check_count("count", count, x)
    rows, size = bounds.shape[0] - 1, x.shape[1]
    out = empty(rows, size, dtype=out_dtype, device=x.device)
    blocks = triton.cdiv(size, BLOCK)
    launch(
        kernel,
        (rows * blocks,),
        {"x": x, "out": out, "bounds": bounds, "count": count, "size": size, "blocks": blocks},
        {"BLOCK": BLOCK},
        num_warps=1,
    )
    return out
