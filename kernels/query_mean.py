"""The mean of each row's tokens, weighed by queries, token by token, so that its bits do not depend on other rows."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .dependent import wait_for_turn
from .launch import FLOATS, check, check_count, launch, power_of_two
from .scratch import empty


@triton.jit
def _query_mean_kernel(
    x, queries, out, bounds, count, size, groups, width, BLOCK: tl.constexpr, GROUP: tl.constexpr
):  # fmt: skip
    """One program per row and group of channels. One warp, so that no sum goes through shared memory."""
    wait_for_turn()
    row = tl.program_id(0) // groups
    if row >= tl.load(count):
        return
    group = tl.program_id(0) % groups
    column, own = tl.arange(0, BLOCK), tl.arange(0, GROUP)
    is_column, is_own = column < size, own < width
    query = tl.load(queries + group * size + column, mask=is_column, other=0.0)
    start, stop = tl.load(bounds + row), tl.load(bounds + row + 1)
    at = x + start.to(tl.int64) * size
    most = tl.full((1,), float("-inf"), tl.float32)
    total = tl.zeros((1,), tl.float32)
    sums = tl.zeros((GROUP,), tl.float32)
    for _ in range(start, stop):
        token = tl.load(at + column, mask=is_column, other=0.0).to(tl.float32)
        score = tl.expand_dims(tl.sum(token * query, 0), 0)
        higher = tl.maximum(most, score, propagate_nan=tl.PropagateNan.ALL)
        before, share = tl.exp(most - higher), tl.exp(score - higher)
        total = total * before + share
        sums = sums * before + share * tl.load(at + group * width + own, mask=is_own, other=0.0).to(tl.float32)
        most = higher
        at += size
    mean = sums / total
    tl.store(out + row.to(tl.int64) * size + group * width + own, mean.to(out.dtype.element_ty), mask=is_own)


def query_mean(
    x: Tensor, bounds: Tensor, queries: Tensor, count: Tensor, out_dtype: torch.dtype = torch.float32
) -> Tensor:
    """`OpSet.query_mean` of the first `count` rows, [R, H] of `out_dtype`. Output past `count` is uninitialised.

    x: [T, H], fp32, fp16 or bf16; bounds: int32 [R + 1], row r is tokens bounds[r] to bounds[r + 1], at least one;
    queries: float32 [K, H], where K divides H; count: int32 [1], at most R. Sums are fp32. Raises ValueError for
    anything else.
    """
    check("x", x, FLOATS, -1, -1, like=x)
    check("bounds", bounds, torch.int32, -1, like=x)
    rows, size = bounds.shape[0] - 1, x.shape[1]
    check("queries", queries, torch.float32, -1, size, like=x)
    check_count("count", count, x)
    groups = queries.shape[0]
    if not groups or size % groups:
        raise ValueError(f"queries is {list(queries.shape)}; their number must divide {size}")
    out = empty(rows, size, dtype=out_dtype, device=x.device)
    width = size // groups
    launch(
        _query_mean_kernel,
        (rows * groups,),
        {
            "x": x, "queries": queries, "out": out, "bounds": bounds, "count": count, "size": size, "groups": groups,
            "width": width,
        },
        {"BLOCK": power_of_two(size), "GROUP": power_of_two(width)},
        num_warps=1,
    )  # fmt: skip
    return out
