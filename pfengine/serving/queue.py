"""Requests that wait for the engine: bounded, in order of deadline and then of age."""

from __future__ import annotations

import heapq
import math
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from .failures import Failure, overloaded, shutting_down
from .job import Job
from .limits import Limits


class Place(NamedTuple):
    """A row of a job."""

    job: Job
    row: int

    @property
    def over(self) -> bool:
        """Is there nothing left to compute for it?"""
        return self.job.over or self.row in self.job.failures or self.job.exit_layers[self.row] > 0


class Queue:
    """Jobs whose rows are handed out in batches. A job of many rows may be spread over several batches.

    rows, tokens, bytes: how much waits; `put` refuses what would be beyond the limits.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.rows = self.tokens = self.bytes = 0
        self._heaps: dict[Any, list[tuple[tuple[float, int], Job]]] = {}  # jobs with rows to hand out, by key
        self._waiting: dict[int, tuple[Job, int]] = {}  # id of such a job: the job, its bytes
        self._changed = threading.Condition()
        self._takers = 0  # threads that wait in `take`
        self._left = 0  # rows that are not handed out
        self.closed = False

    def put(self, job: Job, size: int) -> None:
        """Take in a job whose request has `size` bytes. Raises Failure where there is no room for it."""
        limits, rows = self.limits, len(job.rows)
        with self._changed:
            if self.closed:
                raise shutting_down()
            full = (
                self.rows + rows > limits.max_queue_rows
                or self.tokens + job.tokens > limits.max_queue_tokens
                or self.bytes + size > limits.max_queue_bytes
            )
            if full and self._waiting:
                raise overloaded()
            if full:
                raise Failure("validation", "the request is larger than the whole queue; send fewer or shorter texts")
            heapq.heappush(self._heaps.setdefault(job.key, []), (job.order, job))
            self._waiting[id(job)] = job, size
            self._left += rows
            self.rows, self.tokens, self.bytes = self.rows + rows, self.tokens + job.tokens, self.bytes + size
            self._changed.notify(rows)

    def take(self, tokens: int, rows: int | None) -> list[Place] | None:
        """The next rows, which share a key: at most so many tokens and rows, but always one; of a query all documents.

        Waits until there are some. Rows are divided among all threads that wait, so that a request of many rows is
        answered by all of them. None where the queue has been closed and nothing is left in it.
        """
        with self._changed:
            while not (heap := self._first()):
                if self.closed:
                    return None
                self._takers += 1
                self._changed.wait()
                self._takers -= 1
            share = -(-self._left // (1 + self._takers))
            return self._handed_out(heap, tokens, share if rows is None else min(rows, share))

    def drop(self, job: Job) -> None:
        """Forget a job whose answers nobody waits for any more."""
        with self._changed:
            job.cancelled = True
            self._forget(job)

    def fail_all(self, failure: Callable[[], Failure]) -> None:
        """Nothing that waits is answered."""
        with self._changed:
            jobs = [job for job, _ in self._waiting.values()]
            for job in jobs:
                self._forget(job)
            self._heaps.clear()
        for job in jobs:
            job.fail(failure())

    def close(self) -> None:
        """Take in nothing more; what is there is still handed out."""
        with self._changed:
            self.closed = True
            self._changed.notify_all()

    def _first(self) -> list[tuple[tuple[float, int], Job]] | None:
        """The heap whose first job comes before those of all others; jobs that are over are thrown away."""
        now, late = time.monotonic(), []
        for key, heap in list(self._heaps.items()):
            while heap and (heap[0][1].over or (heap[0][1].deadline or now) < now):
                late.append(heapq.heappop(heap)[1])
            if not heap:
                del self._heaps[key]
        for job in late:
            self._forget(job)
            job.fail(Failure("deadline", "the deadline passed while the request waited for the model"))
        return min(self._heaps.values(), default=None)

    def _handed_out(self, heap: list[tuple[tuple[float, int], Job]], tokens: int, rows: int | None) -> list[Place]:
        found: list[Place] = []
        whole = heap[0][1].top_k is not None
        room, rows = (math.inf, None) if whole else (tokens, rows)
        while heap and (rows is None or len(found) < rows):
            job = heap[0][1]
            if job.over:
                heapq.heappop(heap)
                self._forget(job)
                continue
            length = len(job.rows[job.taken].ids)
            if found and length > room:
                break
            if not job.taken:
                job.started = time.monotonic()
            found.append(Place(job, job.taken))
            job.taken += 1
            self._left -= 1
            room -= length
            if job.taken == len(job.rows):
                heapq.heappop(heap)
                self._forget(job)
        return found

    def _forget(self, job: Job) -> None:
        """Count it no more among those that wait."""
        if (entry := self._waiting.pop(id(job), None)) is not None:
            self._left -= len(job.rows) - job.taken
            self.rows -= len(job.rows)
            self.tokens -= job.tokens
            self.bytes -= entry[1]
