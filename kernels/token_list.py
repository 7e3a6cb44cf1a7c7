"""The tokens of a packed batch: the slot of each, and which of them are queries, as those that are frozen are not."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import check, launch

BLOCK_T = 128


class TokenList(NamedTuple):
    """The T tokens and at most T queries of R rows. Numbers past those that are there are uninitialised."""

    slots: Tensor  # int64 [T]: the slot that each token answers to
    numbers: Tensor  # int32 [T]: the number of each token among the queries; -1: it is none
    queries: Tensor  # int32 [Q]: the token that each query is
    sources: Tensor  # int32 [Q]: the number that this token had before, as `Survivors.source_tokens`
    bounds: Tensor  # int32 [R + 1]: row r has queries bounds[r] to bounds[r + 1]
    query_count: Tensor  # int32 [1]

    @classmethod
    def empty(cls, rows: int, tokens: int, device: torch.device) -> TokenList:
        def numbers(n: int, dtype: torch.dtype = torch.int32) -> Tensor:
            return torch.empty(n, dtype=dtype, device=device)

        return cls(numbers(tokens, torch.int64), *map(numbers, (tokens, tokens, tokens, rows + 1, 1)))

    def first(self, rows: int, tokens: int, queries: int) -> TokenList:
        """The part for so many rows, tokens and queries."""
        return TokenList(
            self.slots[:tokens], self.numbers[:tokens], self.queries[:queries], self.sources[:queries],
            self.bounds[: rows + 1], self.query_count,
        )  # fmt: skip

    def check(self, rows: int, tokens: int, like: Tensor) -> None:
        """Raise ValueError unless there is room for so many rows and tokens. How many queries there are is not seen."""
        check("slots of tokens", self.slots, torch.int64, tokens, like=like)
        for name, size in (("numbers", tokens), ("queries", -1), ("sources", -1), ("bounds", rows + 1)):
            check(f"{name} of tokens", getattr(self, name), torch.int32, size, like=like)
        check("query_count", self.query_count, torch.int32, 1, like=like)


@triton.jit
def _token_list_kernel(
    bounds, slots, firsts, source_tokens, counts, frozen, query_bounds, token_slots, numbers, queries, sources,
    BLOCK_T: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    if row >= tl.load(counts):
        return
    start, stop = tl.load(bounds + row), tl.load(bounds + row + 1)
    first, first_slot, query = tl.load(firsts + row), tl.load(slots + row), tl.load(query_bounds + row)
    for begin in range(start, stop, BLOCK_T):
        token = begin + tl.arange(0, BLOCK_T)
        is_token = token < stop
        slot, source = first_slot + (token - start), first + (token - start)
        asks = is_token & (tl.load(frozen + slot, mask=is_token, other=1) == 0)
        number = query + tl.cumsum(asks.to(tl.int32), 0) - 1
        tl.store(source_tokens + token, source, mask=is_token)
        tl.store(token_slots + token, slot, mask=is_token)
        tl.store(numbers + token, tl.where(asks, number, -1), mask=is_token)
        tl.store(queries + number, token, mask=asks)
        tl.store(sources + number, source, mask=asks)
        query += tl.sum(asks.to(tl.int32), 0)


def list_tokens(
    bounds: Tensor, slots: Tensor, firsts: Tensor, source_tokens: Tensor, counts: Tensor, frozen: Tensor, out: TokenList
) -> None:
    """Fill `source_tokens` and all of `out` but its bounds and query_count, which must be there, for `counts[0]` rows.

    Called by `survivors`, which checks the arguments; they are parts of `Survivors`.
    """
    launch(
        _token_list_kernel,
        (slots.shape[0],),
        {
            "bounds": bounds, "slots": slots, "firsts": firsts, "source_tokens": source_tokens, "counts": counts,
            "frozen": frozen, "query_bounds": out.bounds, "token_slots": out.slots, "numbers": out.numbers,
            "queries": out.queries, "sources": out.sources,
        },
        {"BLOCK_T": BLOCK_T},
        num_warps=1,
    )  # fmt: skip
