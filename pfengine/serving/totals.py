"""What the scheduler has done so far, counted by itself; `serving.metrics` shows it."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from ..rows import Row
from .drift import Drift


class Totals:
    """Sums since the start. The engine's thread writes them; a reader may see one a batch ahead of another.

    exits[i]: rows that left after layer i. hurried: rows that left because of a deadline. drift: of rows that run what
    the server runs by default, and were not hurried.
    """

    def __init__(self, num_layers: int) -> None:
        self.exits = np.zeros(num_layers + 1, np.int64)
        self.batches = self.batch_rows = self.batch_tokens = 0
        self.tokens_computed = self.tokens_saved = 0  # tokens times layers
        self.hurried = self.crashes = 0
        self.last_answer = float("-inf")  # by time.monotonic()
        self.drift = Drift(None, 0)

    def add_batch(self, rows: Sequence[Row]) -> None:
        self.batches += 1
        self.batch_rows += len(rows)
        self.batch_tokens += sum(len(row.ids) for row in rows)

    def add_answers(self, layers: np.ndarray, tokens: Sequence[int], usual: bool) -> None:
        """layers: int64 [rows], after which rows left; tokens: their lengths; usual: do they count for `drift`?"""
        self.last_answer = time.monotonic()
        if usual:
            self.drift.add(layers)
        deepest = len(self.exits) - 1
        np.add.at(self.exits, np.minimum(layers, deepest), 1)
        computed = int((layers * tokens).sum())
        self.tokens_computed += computed
        self.tokens_saved += max(0, deepest * int(sum(tokens)) - computed)

    @property
    def layer_speedup(self) -> float:
        """sum(n m_i) / sum(i m_i) over all rows so far; nan before the first."""
        layers = np.arange(len(self.exits))
        done = int((layers * self.exits).sum())
        return (len(self.exits) - 1) * int(self.exits[1:].sum()) / done if done else float("nan")
