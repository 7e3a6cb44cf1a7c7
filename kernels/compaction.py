"""The rows that stay, in the same order, moved together: the Triton twin of csrc/cuda/compact.cu."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import check, check_count, launch, power_of_two

MAX_ROWS = 4096  # one program looks at all of them
BLOCK_T = 16


@triton.jit
def _places_kernel(
    cu_seqlens, row_ids, stay, new_cu_seqlens, new_row_ids, starts, counts, rows_before, BLOCK: tl.constexpr
):
    row = tl.arange(0, BLOCK)
    is_row = row < tl.load(rows_before)
    stays = tl.load(stay + row, mask=is_row, other=0).to(tl.int32)
    begin = tl.load(cu_seqlens + row, mask=is_row, other=0)
    end = tl.load(cu_seqlens + row + 1, mask=is_row, other=0)
    ends = tl.cumsum(stays * (end - begin), 0)
    places = tl.cumsum(stays, 0)
    moves = is_row & (stays != 0)
    tl.store(new_cu_seqlens + places, ends, mask=moves)
    tl.store(new_cu_seqlens + row, 0, mask=row == 0)
    tl.store(new_row_ids + places - 1, tl.load(row_ids + row, mask=is_row, other=0), mask=moves)
    tl.store(starts + row, tl.where(moves, ends - (end - begin), -1), mask=is_row)
    tl.store(counts + row, tl.sum(stays, 0), mask=row == 0)
    tl.store(counts + row, tl.sum(stays * (end - begin), 0), mask=row == 1)


@triton.jit
def _move_kernel(
    tokens, out, cu_seqlens, starts, rows_before, blocks, size, BLOCK_T: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0) // blocks
    if row >= tl.load(rows_before):
        return
    start = tl.load(starts + row)
    if start < 0:
        return
    begin = tl.load(cu_seqlens + row)
    token = tl.program_id(0) % blocks * BLOCK_T + tl.arange(0, BLOCK_T)
    is_token = token < tl.load(cu_seqlens + row + 1) - begin
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
    check("row_ids", row_ids, torch.int64, rows, like=tokens)
    check("stay", stay, torch.bool, rows, like=tokens)
    check_count("count", count, tokens)
    if rows > MAX_ROWS or longest < 1:
        raise ValueError(f"there are {rows} rows of {longest} tokens, expected at most {MAX_ROWS} rows, of one or more")
    out, bounds, ids = torch.empty_like(tokens), torch.zeros_like(cu_seqlens), torch.empty_like(row_ids)
    starts, counts = torch.empty(rows, dtype=torch.int32, device=tokens.device), torch.zeros_like(count).repeat(2)
    launch(
        _places_kernel,
        (1 if rows else 0,),
        {
            "cu_seqlens": cu_seqlens, "row_ids": row_ids, "stay": stay.view(torch.uint8), "new_cu_seqlens": bounds,
            "new_row_ids": ids, "starts": starts, "counts": counts, "rows_before": count,
        },
        {"BLOCK": power_of_two(rows, 2)},
        num_warps=4,
    )  # fmt: skip
    size, blocks = tokens.shape[1], triton.cdiv(longest, BLOCK_T)
    launch(
        _move_kernel,
        (rows * blocks,),
        {
            "tokens": tokens, "out": out, "cu_seqlens": cu_seqlens, "starts": starts, "rows_before": count,
            "blocks": blocks, "size": size,
        },
        {"BLOCK_T": BLOCK_T, "BLOCK": min(256, power_of_two(size, 16))},
        num_warps=4,
    )  # fmt: skip
    return out, bounds, ids, counts
