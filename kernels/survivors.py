"""Which rows are left after an exit, and where the next layer reads them from. Nothing moves, and it is one launch.

A move would read and write every state of every row that stays. Instead the next layer's first product and its residual
read the states through `source_tokens`. Their output is packed.

The host learns how many rows are left without a copy or an event. The GPU writes the numbers to memory of the host,
each beside a ticket, and the host reads them until it sees the ticket that it has given out for this batch.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .dependent import wait_for_turn
from .launch import check, check_count, launch
from .token_list import TokenList

MAX_ROWS = 4096  # every program reads what is known of all rows before its own
ROWS, BLOCK_T = 16, 128  # a program's own rows, and their tokens at a time
SCAN = 512  # rows at a time. The same for every batch, so that there is one variant of the kernel
TICKET = 32  # from this bit on


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


class Report(NamedTuple):
    """Where the host reads what is left: number + ticket * 2^32 of rows, tokens and queries."""

    ticket: Tensor  # int64 [1], on the device
    words: Tensor  # int64 [3], in memory of the host that the GPU writes


@triton.jit
def _tell(report, ticket, rows, tokens, queries):
    mark = tl.load(ticket) << 32
    # through the caches: a plain store need not reach the host before all that was launched is done
    tl.store(report, mark | rows.to(tl.int64), cache_modifier=".wt")
    tl.store(report + 1, mark | tokens.to(tl.int64), cache_modifier=".wt")
    tl.store(report + 2, mark | queries.to(tl.int64), cache_modifier=".wt")


@triton.jit
def _survivors_kernel(
    bounds, slots, leave, count, earlier_rows, earlier_firsts, new_bounds, new_slots, new_rows, new_firsts, new_tokens,
    new_counts, asking, frozen, query_bounds, query_count, token_slots, numbers, queries, sources, ticket, report,
    ROWS: tl.constexpr, SCAN: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    wait_for_turn()
    rows = tl.load(count)
    first_row = tl.program_id(0) * ROWS
    if first_row >= tl.maximum(rows, 1):
        return
    kept, kept_tokens, asked = rows * 0, rows * 0, rows * 0  # of the rows before
    for begin in range(0, first_row, SCAN):
        row = begin + tl.arange(0, SCAN)
        stays = tl.load(leave + row, mask=row < first_row, other=1) == 0
        length = tl.load(bounds + row + 1, mask=stays, other=0) - tl.load(bounds + row, mask=stays, other=0)
        kept += tl.sum(stays.to(tl.int32), 0)
        kept_tokens += tl.sum(length, 0)
        if asking is not None:
            asked += tl.sum(tl.load(asking + row, mask=stays, other=0), 0)
    row = first_row + tl.arange(0, ROWS)
    is_row = row < rows
    stays = tl.load(leave + row, mask=is_row, other=1) == 0
    begin = tl.load(bounds + row, mask=stays, other=0)
    length = tl.load(bounds + row + 1, mask=stays, other=0) - begin
    source, first = row, begin
    if earlier_rows is not None:
        source = tl.load(earlier_rows + row, mask=stays, other=0)
    if earlier_firsts is not None:
        first = tl.load(earlier_firsts + row, mask=stays, other=0)
    slot = tl.load(slots + row, mask=stays, other=0)
    number = kept + tl.cumsum(stays.to(tl.int32), 0) - 1
    start = kept_tokens + tl.cumsum(length, 0) - length
    tl.store(new_bounds + number, start, mask=stays)
    tl.store(new_slots + number, slot, mask=stays)
    tl.store(new_rows + number, source, mask=stays)
    tl.store(new_firsts + number, first, mask=stays)
    kept += tl.sum(stays.to(tl.int32), 0)
    kept_tokens += tl.sum(length, 0)
    if asking is not None:
        asks = tl.load(asking + row, mask=stays, other=0)
        query = asked + tl.cumsum(asks, 0) - asks
        tl.store(query_bounds + number, query, mask=stays)
        asked += tl.sum(asks, 0)
    if first_row + ROWS >= rows:  # the program of the last row knows all of them
        tl.store(new_bounds + kept, kept_tokens)
        tl.store(new_counts, kept)
        tl.store(new_counts + 1, kept_tokens)
        if asking is not None:
            tl.store(query_bounds + kept, asked)
            tl.store(query_count, asked)
        if report is not None:
            if asking is not None:
                _tell(report, ticket, kept, kept_tokens, asked)
            else:
                _tell(report, ticket, kept, kept_tokens, kept_tokens)
    for step in range(0, tl.max(length, 0), BLOCK_T):
        offset = step + tl.arange(0, BLOCK_T)
        is_token = offset[None, :] < length[:, None]
        token, read = start[:, None] + offset[None, :], first[:, None] + offset[None, :]
        tl.store(new_tokens + token, read, mask=is_token)
        if asking is not None:
            token_slot = slot[:, None] + offset[None, :]
            tl.store(token_slots + token, token_slot, mask=is_token)
            hot = is_token & (tl.load(frozen + token_slot, mask=is_token, other=1) == 0)
            at = query[:, None] + tl.cumsum(hot.to(tl.int32), 1) - 1
            tl.store(numbers + token, tl.where(hot, at, -1), mask=is_token)
            tl.store(queries + at, token, mask=hot)
            tl.store(sources + at, read, mask=hot)
            query += tl.sum(hot.to(tl.int32), 1)


@triton.jit
def _remaining_kernel(exit_layers, counts, new_counts, ticket, report, SCAN: tl.constexpr):
    wait_for_turn()
    rows, tokens = tl.load(counts), tl.load(counts + 1)
    some = rows * 0
    for begin in range(0, rows, SCAN):
        row = begin + tl.arange(0, SCAN)
        waits = tl.load(exit_layers + row, mask=row < rows, other=1) == 0
        some = tl.maximum(some, tl.max(waits.to(tl.int32), 0))
    tl.store(new_counts, rows * some)
    tl.store(new_counts + 1, tokens * some)
    if report is not None:
        _tell(report, ticket, rows * some, tokens * some, tokens * some)


def remaining(exit_layers: Tensor, counts: Tensor, out: Tensor, report: Report | None = None) -> Tensor:
    """Write `counts` to `out`, or zeros once every row has an answer, and return it.

    exit_layers: int64 [R], 0 for no answer yet; counts: int32 [2]: rows, at most R and 4,096, and tokens; out: int32
    [2], elsewhere, as launches beside this one may read the counts. report: tells the host what is in `out`. Raises
    ValueError for anything else.
    """
    rows = exit_layers.shape[0]
    check("exit_layers", exit_layers, torch.int64, rows, like=exit_layers)
    check("counts", counts, torch.int32, 2, like=exit_layers)
    check("out", out, torch.int32, 2, like=exit_layers)
    if rows > MAX_ROWS:
        raise ValueError(f"there are {rows} rows, expected at most {MAX_ROWS}")
    launch(
        _remaining_kernel,
        (1,),
        {"exit_layers": exit_layers, "counts": counts, "new_counts": out, **_arguments(report, exit_layers)},
        {"SCAN": SCAN},
    )
    return out


def survivors(
    bounds: Tensor,
    slots: Tensor,
    leave: Tensor,
    count: Tensor,
    out: Survivors,
    *,
    earlier_rows: Tensor | None = None,
    earlier_firsts: Tensor | None = None,
    tokens: TokenList | None = None,
    frozen: Tensor | None = None,
    asking: Tensor | None = None,
    report: Report | None = None,
) -> Survivors:
    """Fill `out` with those of the first `count` rows that do not leave, in the same order, and return it.

    bounds: int32 [R + 1], as in `Survivors`; slots: int64 [R]; leave: bool [R]; count: int32 [1], at most R; R is at
    most 4,096. out: for as many rows, in other memory than the inputs. earlier_rows, earlier_firsts: int32 [R],
    `source_rows` and `source_firsts` of survivors whose states are still at their source; the new survivors then name
    the same source. tokens: to be filled too. frozen: uint8 [P] by slot, not 0 for a token that is no query; asking:
    int32 [R], how many tokens of each row are queries. A row's slot is then that of its first token, and those of its
    other tokens follow. report: tells the host what is left; without `tokens` all tokens are queries. Raises ValueError
    for anything else.
    """
    rows = slots.shape[0]
    check("bounds", bounds, torch.int32, rows + 1, like=slots)
    check("slots", slots, torch.int64, rows, like=slots)
    check("leave", leave, torch.bool, rows, like=slots)
    for name, earlier in (("earlier_rows", earlier_rows), ("earlier_firsts", earlier_firsts)):
        if earlier is not None:
            check(name, earlier, torch.int32, rows, like=slots)
    check_count("count", count, slots)
    if rows > MAX_ROWS:
        raise ValueError(f"there are {rows} rows, expected at most {MAX_ROWS}")
    check("out.bounds", out.bounds, torch.int32, rows + 1, like=slots)
    check("out.slots", out.slots, torch.int64, rows, like=slots)
    for name in ("source_rows", "source_firsts", "source_tokens", "counts"):
        size = {"source_tokens": -1, "counts": 2}.get(name, rows)
        check(f"out.{name}", getattr(out, name), torch.int32, size, like=slots)
    if (tokens is None, frozen is None, asking is None) not in ((True, True, True), (False, False, False)):
        raise ValueError("a list of tokens is made of frozen and asking; give all three, or none")
    if tokens is not None and frozen is not None and asking is not None:
        check("frozen", frozen, torch.uint8, -1, like=slots)
        check("asking", asking, torch.int32, rows, like=slots)
        tokens.check(rows, out.source_tokens.shape[0], like=slots)
    listed = [None] * len(TokenList._fields) if tokens is None else tokens
    names = ("token_slots", "numbers", "queries", "sources", "query_bounds", "query_count")  # of `TokenList`, in order
    launch(
        _survivors_kernel,
        (max(triton.cdiv(rows, ROWS), 1),),
        {
            "bounds": bounds, "slots": slots, "leave": leave.view(torch.uint8), "count": count,
            "earlier_rows": earlier_rows, "earlier_firsts": earlier_firsts, "new_bounds": out.bounds,
            "new_slots": out.slots, "new_rows": out.source_rows, "new_firsts": out.source_firsts,
            "new_tokens": out.source_tokens, "new_counts": out.counts, "asking": asking, "frozen": frozen,
            **dict(zip(names, listed, strict=True)), **_arguments(report, slots),
        },
        {"ROWS": ROWS, "SCAN": SCAN, "BLOCK_T": BLOCK_T if tokens is None else BLOCK_T // 2},
    )  # fmt: skip
    return out


def _arguments(report: Report | None, like: Tensor) -> dict[str, Tensor | None]:
    """The arguments of a kernel that calls `_tell`. Raises ValueError where the host's memory cannot be written."""
    if report is None:
        return {"ticket": None, "report": None}
    check("ticket", report.ticket, torch.int64, 1, like=like)
    check("words", report.words, torch.int64, 3, like=report.words)
    if like.is_cuda and not report.words.is_pinned():
        raise ValueError("the words of a report are in memory that the GPU cannot write; pin it")
    return {"ticket": report.ticket, "report": report.words}
