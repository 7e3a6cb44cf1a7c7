"""What the scheduler has done so far, counted by itself; `serving.metrics` shows it."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import numpy as np

from ..rows import Row
from .drift import Drift

RECENT = 0.1  # the weight of the last batch in averages


class Totals:
    """Sums since the start. The engine's threads write them; a reader may see one a batch ahead of another.

    exits[i]: rows that left after layer i. hurried: rows that left because of a deadline. drift: of rows that run what
    the server runs by default, and were not hurried. token_seconds: what a token of a batch took lately.
    """

    def __init__(self, num_layers: int) -> None:
        self.exits = np.zeros(num_layers + 1, np.int64)
        self.batches = self.batch_rows = self.batch_tokens = 0
        self.tokens_computed = self.tokens_saved = 0  # tokens times layers
        self.hurried = self.crashes = 0
        self.last_answer = float("-inf")  # by time.monotonic()
        self.token_seconds = float("inf")
        self.drift = Drift(None, 0)
        self._writing = threading.Lock()

    def add_batch(self, rows: Sequence[Row], seconds: float) -> None:
        tokens = sum(len(row.ids) for row in rows)
        pace = seconds / tokens
        with self._writing:
            self.batches += 1
            self.batch_rows += len(rows)
            self.batch_tokens += tokens
            self.token_seconds = pace if self.batches == 1 else (1 - RECENT) * self.token_seconds + RECENT * pace

    def add_crash(self) -> None:
        with self._writing:
            self.crashes += 1

    def add_answers(self, layers: np.ndarray, tokens: Sequence[int], *, usual: bool, hurried: bool) -> None:
        """layers: int64 [rows], after which rows left; tokens: their lengths; usual: they run what runs by default."""
        deepest, computed = len(self.exits) - 1, int((layers * tokens).sum())
        with self._writing:
            self.last_answer = time.monotonic()
            if hurried:
                self.hurried += len(layers)
            elif usual:
                self.drift.add(layers)
            np.add.at(self.exits, np.minimum(layers, deepest), 1)
            self.tokens_computed += computed
            self.tokens_saved += max(0, deepest * int(sum(tokens)) - computed)

    @property
    def layer_speedup(self) -> float:
        """sum(n m_i) / sum(i m_i) over all rows so far; nan before the first."""
        layers = np.arange(len(self.exits))
        done = int((layers * self.exits).sum())
        return (len(self.exits) - 1) * int(self.exits[1:].sum()) / done if done else float("nan")
