"""A request on its way through the scheduler."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..exits.selection import Selection
from ..exits.top_k import TopK
from ..rows import Row
from .failures import Failure

PATIENCE_SECONDS = 10.0  # a request without a deadline is ordered among the others as if it had this one

_numbers = itertools.count()


class Job:
    """The rows of one request, and their answers as they come.

    rows: tokenised, with their thresholds filled in. selection: what they run. deadline: by time.monotonic(), None for
    none. done: called once, in a thread of the scheduler's or the submitter's, when all rows are answered or the job
    has failed. top_k: the rows are the documents of a query, and run this instead, in a batch of their own. Only the
    scheduler changes what is below `top_k`. The rows may be answered by several threads at once.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        selection: Selection,
        deadline: float | None,
        done: Callable[[Job], None],
        top_k: TopK | None = None,
    ) -> None:
        self.rows, self.selection, self.deadline, self.done = rows, selection, deadline, done
        self.top_k = top_k
        self.arrived = time.monotonic()
        self.started = self.finished = 0.0
        self._changing = threading.Lock()
        self.order = (self.arrived + PATIENCE_SECONDS if deadline is None else deadline, next(_numbers))
        self.tokens = sum(len(row.ids) for row in rows)
        self.usual = False  # does it run what the server runs by default?
        self.cancelled = False
        self.failure: Failure | None = None  # of the whole job
        self.failures: dict[int, Failure] = {}  # of single rows
        self.taken = 0  # rows that are in a batch or answered
        self.open = len(rows)  # rows without an answer
        self.logits: np.ndarray | None = None  # float32 [rows, labels]
        self.exit_layers = np.zeros(len(rows), np.int64)
        self.models: np.ndarray | None = None  # int64 [rows] of a cascade

    @property
    def key(self) -> Any:
        """Rows of jobs with equal keys may share a batch: they run the same criterion, up to its threshold."""
        return id(self.selection if self.top_k is None else self)

    @property
    def over(self) -> bool:
        """Is there nothing left to compute for it?"""
        return self.cancelled or self.failure is not None or not self.open

    def answer(self, places: Sequence[int], logits: np.ndarray, layers: np.ndarray, models: Any = None) -> None:
        """Take the answers of some rows: float32 [k, labels], int64 [k]."""
        with self._changing:
            if self.logits is None:
                self.logits = np.full((len(self.rows), logits.shape[1]), np.nan, np.float32)
            self.logits[places] = logits
            self.exit_layers[places] = layers
            if models is not None:
                self.models = np.zeros(len(self.rows), np.int64) if self.models is None else self.models
                self.models[places] = models
            self._close(len(places))

    def fail_row(self, place: int, failure: Failure) -> None:
        """A row that has no answer. The others are not affected."""
        with self._changing:
            self.failures[place] = failure
            self._close(1)

    def fail(self, failure: Failure) -> None:
        """No row is answered."""
        with self._changing:
            if not self.over:
                self.failure = failure
                self._finish()

    def _close(self, rows: int) -> None:
        self.open -= rows
        if not self.open and self.failure is None and not self.cancelled:
            self._finish()

    def _finish(self) -> None:
        self.finished = time.monotonic()
        self.done(self)
