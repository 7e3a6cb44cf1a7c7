"""The tokens of a packed batch: the slot of each, and which of them are queries, as those that are frozen are not."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .launch import check


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
