"""Which rows are left after an exit, and where the next layer reads them from. Nothing moves.

A move would read and write every state of every row that stays. Instead the next layer's first product and its residual
read the states through `source_tokens`. Their output is packed.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import check, check_count, launch, power_of_two
from .token_list import TokenList, list_tokens

MAX_ROWS = 4096  # one program handles all rows
BLOCK_T = 128


class Survivors(NamedTuple):
    """A ragged batch of at most R rows and T tokens, packed. Numbers past the counts are uninitialised."""

    bounds: Tensor  # int32 [R + 1]: row r is tokens bounds[r] to bounds[r + 1]
    slots: Tensor  # int64 [R]: the slot that each row answers to
    source_rows: Tensor  # int32 [R]: the number that each row had before
    source_firsts: Tensor  # int32 [R]: the number that its first token had
    source_tokens: Tensor  # int32 [T]: the number that each token had
    counts: Tensor  # int32 [2]: rows and tokens that are left

    @classmethod
    def empty(cls, rows: int, tokens: int, device: torch.device) -> Survivors:
        def numbers(n: int, dtype: torch.dtype = torch.int32) -> Tensor:
            return torch.empty(n, dtype=dtype, device=device)

        return cls(numbers(rows + 1), numbers(rows, torch.int64), *map(numbers, (rows, rows, tokens, 2)))


@triton.jit
def _survivors_kernel(
    bounds, slots, leave, count, earlier_rows, earlier_firsts, asking, new_bounds, new_slots, new_rows, new_firsts,
    new_counts, query_bounds, query_count, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.arange(0, BLOCK)
    is_row = row < tl.load(count)
    stays = is_row & (tl.load(leave + row, mask=is_row, other=1) == 0)
    begin = tl.load(bounds + row, mask=is_row, other=0)
    length = tl.where(stays, tl.load(bounds + row + 1, mask=is_row, other=0) - begin, 0)
    source, first = row, begin
    if earlier_rows is not None:
        source = tl.load(earlier_rows + row, mask=is_row, other=0)
    if earlier_firsts is not None:
        first = tl.load(earlier_firsts + row, mask=is_row, other=0)
    ends = tl.cumsum(length, 0)
    numbers = tl.cumsum(stays.to(tl.int32), 0)  # from 1 on, of those that stay
    tl.store(new_bounds + row, 0, mask=row == 0)
    tl.store(new_bounds + numbers, ends, mask=stays)
    tl.store(new_slots + numbers - 1, tl.load(slots + row, mask=is_row, other=0), mask=stays)
    tl.store(new_rows + numbers - 1, source, mask=stays)
    tl.store(new_firsts + numbers - 1, first, mask=stays)
    tl.store(new_counts + row, tl.sum(stays.to(tl.int32), 0), mask=row == 0)
    tl.store(new_counts + row, tl.sum(length, 0), mask=row == 1)
    if asking is not None:
        queries = tl.where(stays, tl.load(asking + row, mask=is_row, other=0), 0)
        tl.store(query_bounds + row, 0, mask=row == 0)
        tl.store(query_bounds + numbers, tl.cumsum(queries, 0), mask=stays)
        tl.store(query_count + row, tl.sum(queries, 0), mask=row == 0)


@triton.jit
def _tokens_kernel(bounds, firsts, tokens, counts, blocks, BLOCK_T: tl.constexpr):
    row = tl.program_id(0) // blocks
    if row >= tl.load(counts):
        return
    start = tl.load(bounds + row)
    token = start + tl.program_id(0) % blocks * BLOCK_T + tl.arange(0, BLOCK_T)
    tl.store(tokens + token, tl.load(firsts + row) + token - start, mask=token < tl.load(bounds + row + 1))


@triton.jit
def _remaining_kernel(exit_layers, counts, BLOCK: tl.constexpr):
    row = tl.arange(0, BLOCK)
    rows = tl.load(counts)
    waits = (row < rows) & (tl.load(exit_layers + row, mask=row < rows, other=1) == 0)
    some = tl.max(waits.to(tl.int32), 0)
    tl.store(counts + row, 0, mask=row < 2 - 2 * some)


def remaining(exit_layers: Tensor, counts: Tensor) -> Tensor:
    """Set `counts` to zeros once every row has an answer, and return them.

    exit_layers: int64 [R], 0 for no answer yet; counts: int32 [2]: rows, at most R and 4,096, and tokens. Raises
    ValueError for anything else.
    """
    rows = exit_layers.shape[0]
    check("exit_layers", exit_layers, torch.int64, rows, like=exit_layers)
    check("counts", counts, torch.int32, 2, like=exit_layers)
    if rows > MAX_ROWS:
        raise ValueError(f"there are {rows} rows, expected at most {MAX_ROWS}")
    launch(
        _remaining_kernel,
        (1,),
        {"exit_layers": exit_layers, "counts": counts},
        {"BLOCK": power_of_two(rows, 2)},
        num_warps=4 if rows <= 1024 else 8,
    )
    return counts


def survivors(
    bounds: Tensor,
    slots: Tensor,
    leave: Tensor,
    longest: int,
    count: Tensor,
    out: Survivors,
    *,
    earlier_rows: Tensor | None = None,
    earlier_firsts: Tensor | None = None,
    tokens: TokenList | None = None,
    frozen: Tensor | None = None,
    asking: Tensor | None = None,
) -> Survivors:
    """Fill `out` with those of the first `count` rows that do not leave, in the same order, and return it.

    bounds: int32 [R + 1], as in `Survivors`; slots: int64 [R]; leave: bool [R]; longest: no row has more tokens; count:
    int32 [1], at most R; R is at most 4,096. out: for as many rows, in other memory than the inputs. earlier_rows,
    earlier_firsts: int32 [R], `source_rows` and `source_firsts` of survivors whose states are still at their source;
    the new survivors then name the same source. tokens: to be filled too. frozen: uint8 [P] by slot, not 0 for a token
    that is no query; asking: int32 [R], how many tokens of each row are queries. A row's slot is then that of its first
    token, and those of its other tokens follow. Raises ValueError for anything else.
    """
    rows = slots.shape[0]
    check("bounds", bounds, torch.int32, rows + 1, like=slots)
    check("slots", slots, torch.int64, rows, like=slots)
    check("leave", leave, torch.bool, rows, like=slots)
    for name, earlier in (("earlier_rows", earlier_rows), ("earlier_firsts", earlier_firsts)):
        if earlier is not None:
            check(name, earlier, torch.int32, rows, like=slots)
    check_count("count", count, slots)
    if rows > MAX_ROWS or longest < 1:
        raise ValueError(f"there are {rows} rows of {longest} tokens, expected at most {MAX_ROWS} rows, of one or more")
    check("out.bounds", out.bounds, torch.int32, rows + 1, like=slots)
    check("out.slots", out.slots, torch.int64, rows, like=slots)
    for name in ("source_rows", "source_firsts", "source_tokens", "counts"):
        size = {"source_tokens": -1, "counts": 2}.get(name, rows)
        check(f"out.{name}", getattr(out, name), torch.int32, size, like=slots)
    if tokens is not None:
        if frozen is None or asking is None:
            raise ValueError("a list of tokens is wanted, but frozen or asking, of which it is made, is None")
        check("frozen", frozen, torch.uint8, -1, like=slots)
        check("asking", asking, torch.int32, rows, like=slots)
        tokens.check(rows, out.source_tokens.shape[0], like=slots)
    launch(
        _survivors_kernel,
        (1,),
        {
            "bounds": bounds, "slots": slots, "leave": leave.view(torch.uint8), "count": count,
            "earlier_rows": earlier_rows, "earlier_firsts": earlier_firsts, "asking": asking, "new_bounds": out.bounds,
            "new_slots": out.slots, "new_rows": out.source_rows, "new_firsts": out.source_firsts,
            "new_counts": out.counts, "query_bounds": None if tokens is None else tokens.bounds,
            "query_count": None if tokens is None else tokens.query_count,
        },
        {"BLOCK": power_of_two(rows, 2)},
        num_warps=4 if rows <= 1024 else 8,
        max_registers=255,  # it is one program; and without a limit triton 3.9 spills on sm_80
    )  # fmt: skip
    if tokens is not None and frozen is not None:
        list_tokens(out.bounds, out.slots, out.source_firsts, out.source_tokens, out.counts, frozen, tokens)
        return out
    blocks = triton.cdiv(longest, BLOCK_T)
    launch(
        _tokens_kernel,
        (rows * blocks,),
        {
            "bounds": out.bounds, "firsts": out.source_firsts, "tokens": out.source_tokens, "counts": out.counts,
            "blocks": blocks,
        },
        {"BLOCK_T": BLOCK_T},
        num_warps=1,
    )  # fmt: skip
    return out
