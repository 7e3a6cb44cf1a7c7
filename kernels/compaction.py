"""The rows that stay, in the same order, moved together: the Triton twin of csrc/cuda/compact.cu."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import check, launch, power_of_two
from .survivors import Survivors, survivors

BLOCK_T = 16


@triton.jit
def _move_kernel(tokens, out, bounds, firsts, counts, blocks, size, BLOCK_T: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0) // blocks
    if row >= tl.load(counts):
        return
    begin, start = tl.load(firsts + row), tl.load(bounds + row)
    token = tl.program_id(0) % blocks * BLOCK_T + tl.arange(0, BLOCK_T)
    is_token = token < tl.load(bounds + row + 1) - start
    source, target = (begin + token).to(tl.int64) * size, (start + token).to(tl.int64) * size
    for first in range(0, size, BLOCK):
        column = first + tl.arange(0, BLOCK)
        mask = is_token[:, None] & (column < size)[None, :]
        x = tl.load(tokens + source[:, None] + column[None, :], mask=mask, other=0)
        tl.store(out + target[:, None] + column[None, :], x, mask=mask)


def compact(
    tokens: Tensor, cu_seqlens: Tensor, row_ids: Tensor, stay: Tensor, longest: int, count: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Tokens, cu_seqlens and row_ids of those of the first `count` rows that stay, and how many: int32 [2].

    tokens: [T, H], any dtype; cu_seqlens: int32 [R + 1]; row_ids: int64 [R]; stay: bool [R]; longest: no row has more
    tokens; count: int32 [1], at most R, which is at most 4,096. What comes back is as large as what came in; beyond
    the rows and tokens that the last result says it is left as it comes. Raises ValueError for anything else.
    """
    check("tokens", tokens, tokens.dtype, -1, -1, like=tokens)
    rows = row_ids.shape[0]
    check("cu_seqlens", cu_seqlens, torch.int32, rows + 1, like=tokens)
    check("stay", stay, torch.bool, rows, like=tokens)
    left = Survivors.empty(rows, tokens.shape[0], tokens.device)
    survivors(cu_seqlens, row_ids, stay.logical_not(), longest, count, left)
    out = torch.empty_like(tokens)
    size, blocks = tokens.shape[1], triton.cdiv(longest, BLOCK_T)
    launch(
        _move_kernel,
        (rows * blocks,),
        {
            "tokens": tokens, "out": out, "bounds": left.bounds, "firsts": left.firsts, "counts": left.counts,
            "blocks": blocks, "size": size,
        },
        {"BLOCK_T": BLOCK_T, "BLOCK": min(256, power_of_two(size, 16))},
        num_warps=4,
    )  # fmt: skip
    return out, left.bounds, left.row_ids, left.counts
