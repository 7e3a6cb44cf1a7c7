"""Which documents of a query leave early where only the best k are wanted: those that are surely not among them.

After a tested exit a document leaves where k others score higher by more than the margin of that exit. Only scores of
the same exit are compared, and only those of documents that are still there. The others go on to the last layer, so
that the best k come with their own scores and in their own order. SEE (SIGIR 2025, 10.1145/3726302.3729962) looks at
all candidates of a query at once too; its rules keep a fixed number or share of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class TopK:
    """The rule of `Engine.rank`.

    k: how many documents are wanted. margins: one per exit before the last layer, in units of the score; inf where the
    exit is not tested.
    """

    k: int
    margins: tuple[float, ...]

    def record(self) -> dict[str, Any]:
        """What pfengine.json holds of it. JSON has no inf; null stands for it."""
        return {"top_k": self.k, "margins": [margin if np.isfinite(margin) else None for margin in self.margins]}

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> TopK:
        """The rule of such a record."""
        return cls(record["top_k"], tuple(np.inf if margin is None else float(margin) for margin in record["margins"]))

    def tests(self, number: int) -> bool:
        """Is exit `number`, from 0 on, tested?"""
        return bool(np.isfinite(self.margins[number]))

    def tested(self, exit_layers: Sequence[int]) -> dict[int, int]:
        """The number, from 0 on, of each tested exit by its layer. exit_layers: with the last layer."""
        return {layer: number for number, layer in enumerate(exit_layers[:-1]) if self.tests(number)}

    def leave(self, number: int, scores: np.ndarray) -> np.ndarray:
        """Which documents leave after exit `number`: float32 [..., documents] -> bool of the same shape.

        Each row along the last axis is a query, with -inf for documents that have left. A document whose score is nan
        stays, and no other leaves because of it.
        """
        if scores.shape[-1] <= self.k:
            return np.zeros(scores.shape, bool)
        known = np.where(np.isnan(scores), np.float32(-np.inf), scores)
        kth = np.partition(known, -self.k, axis=-1)[..., -self.k, None]
        with np.errstate(invalid="ignore"):  # -inf - inf where fewer than k are left
            left: np.ndarray = (scores < kth - np.float32(self.margins[number])) & (scores > -np.inf)
        return left


def exits_taken(rule: TopK, scores: np.ndarray) -> np.ndarray:
    """The exit where each document leaves, from 0 on.

    float32 [exits, queries, documents] -> int64 [queries, documents]. A query with fewer documents has -inf in the
    places of the others, at all exits.
    """
    last = len(scores) - 1
    taken = np.full(scores.shape[1:], last, np.int64)
    for number in range(last):
        if rule.tests(number):
            there = np.where(taken == last, scores[number], np.float32(-np.inf))
            taken[rule.leave(number, there)] = number
    return taken


def same_set(full: np.ndarray, stays: np.ndarray, k: int, tolerance: float) -> np.ndarray:
    """Are the best k of the documents that stay the best k of all?

    float32 and bool [queries, documents] -> bool [queries]. full: scores after the last layer, -inf in places without a
    document. Documents whose score is within `tolerance` of rank k's may stand for each other. Queries with k documents
    or fewer have the same set.
    """
    if full.shape[1] <= k:
        return np.ones(len(full), bool)
    kth = np.partition(full, -k, axis=1)[:, -k, None]
    best = np.where(stays, full, np.float32(-np.inf))
    found = np.partition(best, -k, axis=1)[:, -k, None]  # the lowest score of the set
    near = np.float32(tolerance)
    with np.errstate(invalid="ignore"):
        low, above = kth - near, full > kth + near
    return (found >= low)[:, 0] & ~(above & ~stays).any(1)
