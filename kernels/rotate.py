"""Rotary positions: heads are turned, in place, by the angles of their token's position in its row."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .dependent import wait_for_turn
from .launch import FLOATS, check, check_count, launch, power_of_two

BLOCK_T = 16  # tokens of one program


@triton.jit
def _rotate_kernel(
    x, cu_seqlens, bounds, tokens, angles, count, blocks, width, heads, size, half,
    BLOCK_T: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    wait_for_turn()
    row = tl.program_id(0) // blocks
    if row >= tl.load(count):
        return
    first = tl.load(bounds + row).to(tl.int64)
    item = tl.program_id(0) % blocks * BLOCK_T + tl.arange(0, BLOCK_T)
    is_item = item < (tl.load(bounds + row + 1) - first).to(tl.int32)
    position = item
    if tokens is not None:
        position = tl.load(tokens + first + item, mask=is_item, other=0).to(tl.int32) - tl.load(cu_seqlens + row)
    column = tl.arange(0, BLOCK_H)
    is_number = is_item[:, None] & (column < half)[None, :]
    at_angle = angles + tl.where(is_item, position, 0)[:, None] * (2 * half) + column[None, :]
    cosine = tl.load(at_angle, mask=is_number, other=1.0)
    sine = tl.load(at_angle + half, mask=is_number, other=0.0)
    low = x + (first + item)[:, None] * width + column[None, :]
    for _ in range(heads):
        a = tl.load(low, mask=is_number, other=0.0).to(tl.float32)
        b = tl.load(low + half, mask=is_number, other=0.0).to(tl.float32)
        tl.store(low, (a * cosine - b * sine).to(x.dtype.element_ty), mask=is_number)
        tl.store(low + half, (b * cosine + a * sine).to(x.dtype.element_ty), mask=is_number)
        low += size


def rotate(
    x: Tensor,
    cu_seqlens: Tensor,
    angles: Tensor,
    heads: int,
    size: int,
    longest: int,
    count: Tensor,
    bounds: Tensor | None = None,
    tokens: Tensor | None = None,
) -> Tensor:
    """Turn the first `heads` heads of each row of x that belongs to the first `count` rows of the batch. Returns x.

    x: [T, W], fp32, fp16 or bf16, whose first `heads` times `size` columns are heads; cu_seqlens: int32 [R + 1], row r
    is tokens cu_seqlens[r] to cu_seqlens[r + 1], at most `longest`; angles: fp32 [P, d], as in `ops.rotary`, d <= size;
    count: int32 [1], at most R. bounds, tokens: x is of some tokens, bounds[r] to bounds[r + 1] of row r, int32
    [R + 1], and which tokens they are, int32 or int64 [T]; None: x is of all tokens in order.
    Raises ValueError for anything else.
    """
    check("x", x, FLOATS, -1, -1, like=x)
    check("cu_seqlens", cu_seqlens, torch.int32, -1, like=x)
    check("angles", angles, torch.float32, -1, -1, like=x)
    check_count("count", count, x)
    rows, (turned, columns) = cu_seqlens.shape[0] - 1, (angles.shape[1], x.shape[1])
    if turned % 2 or turned > size or heads * size > columns:
        raise ValueError(
            f"{heads} heads of {size} numbers do not take angles of {turned}, or not fit {columns} columns"
        )
    if (bounds is None) != (tokens is None):
        raise ValueError("bounds and tokens must be given together")
    if bounds is not None and tokens is not None:
        check("bounds", bounds, torch.int32, rows + 1, like=x)
        check("tokens", tokens, (torch.int32, torch.int64), x.shape[0], like=x)
    blocks = triton.cdiv(longest, BLOCK_T)
    launch(
        _rotate_kernel,
        (rows * blocks,),
        {
            "x": x, "cu_seqlens": cu_seqlens, "bounds": cu_seqlens if bounds is None else bounds, "tokens": tokens,
            "angles": angles, "count": count, "blocks": blocks, "width": columns, "heads": heads, "size": size,
            "half": turned // 2,
        },
        {"BLOCK_T": BLOCK_T, "BLOCK_H": power_of_two(turned // 2, 16)},
        num_warps=1 if turned <= 64 else 2,
    )  # fmt: skip
    return x
