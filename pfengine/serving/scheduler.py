"""The scheduler: the only place that batches. It takes rows of many requests through a model together.

Threads of its own take rows from the queue and run them (`serving.passage`). Where that fails they try the rows one by
one; where a thread itself ends it is started again. A single short row that comes when there is nothing else to do is
run by the thread that brings it: on an idle machine, handing it to another thread and back takes as long as the row.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Sequence

from .. import extension
from ..api import Engine
from ..exits.data import is_data
from ..torch_state import all_together, alone, keep_to_one_thread
from .failures import Failure
from .job import Job
from .limits import Limits
from .passage import run
from .queue import Place, Queue
from .totals import Totals

log = logging.getLogger("pfengine.serving")

RESTART_SECONDS = 0.1  # between a crash of a thread and its next start
AT_ONCE_SECONDS = 0.005  # a row that is expected to take longer is never run by the thread that brings it
QUIET_SECONDS = 0.01  # since the last job came or was run at once: a row that comes sooner may not be the only one


class Scheduler:
    """Takes jobs through one engine's model, batched.

    batch_tokens, batch_rows: the most that goes through the layers together. threads: how many batches are under way
    at once; on a CPU each then has one core. None: one per core on a CPU, where a batch on a core of its own waits for
    no other thread, and on a GPU as many as the engine takes.
    """

    def __init__(
        self,
        model: Engine,
        limits: Limits,
        batch_tokens: int,
        batch_rows: int | None = None,
        threads: int | None = None,
    ) -> None:
        self.engine, self.limits = model, limits
        self.batch_tokens, self.batch_rows = batch_tokens, batch_rows
        on_gpu = model.device.type != "cpu"
        self.cores = extension.threads()
        self.threads = threads or (model.model.worker_threads if on_gpu else self.cores)
        self.one_core_each = self.threads > 1 and not on_gpu
        self.may_run_at_once = not on_gpu and model.cascade is None
        self.totals = Totals(model.num_layers)
        self.queue = Queue(limits)
        self._running = [False] * self.threads
        self._busy_since: list[float | None] = [None] * self.threads
        self._process = 0
        self._threads: list[threading.Thread] = []
        self._starting = threading.Lock()
        self._last = 0.0  # when a job last came, or was over that was run at once; by time.monotonic()

    @property
    def running(self) -> bool:
        """Does every thread take jobs?"""
        return all(self._running)

    @property
    def busy_since(self) -> float | None:
        """By time.monotonic(): when the oldest of the batches under way was started; None where there is none."""
        return min((since for since in self._busy_since if since is not None), default=None)

    @property
    def busy(self) -> int:
        """How many batches are under way."""
        return sum(since is not None for since in self._busy_since)

    def start(self) -> None:
        """Start the threads; after a fork the child needs some of its own. Does nothing where they are there."""
        if self._process == os.getpid():
            return
        with self._starting:
            if self._process == os.getpid():
                return
            if self._process:  # of a parent process, whose jobs the parent answers
                self.queue = Queue(self.limits)
            self._running, self._busy_since = [True] * self.threads, [None] * self.threads
            self._process = os.getpid()
            self._threads = [
                threading.Thread(target=self._supervise, args=(number,), name=f"pfengine-{number}", daemon=True)
                for number in range(self.threads)
            ]
            for thread in self._threads:
                thread.start()

    def run_at_once(self, job: Job) -> bool:
        """Answer a job in the calling thread, if it is one short row and came when there was nothing to do.

        False where it is not, and must be submitted. Its caller takes in no other jobs meanwhile, so this is only for
        rows that take a few milliseconds, on a CPU, by a criterion whose code is ours.
        """
        now = time.monotonic()
        quiet, self._last = now - self._last >= QUIET_SECONDS, now
        fits = len(job.rows) == 1 and job.tokens * self.totals.token_seconds <= AT_ONCE_SECONDS
        if not (quiet and fits and self.may_run_at_once and is_data(job.selection.criterion)):
            return False
        if not self.running or self.busy or self.queue.rows or self.queue.closed or self._process != os.getpid():
            return False
        job.started, job.taken = now, 1
        try:
            with alone() if self.one_core_each else contextlib.nullcontext():
                self.run_isolated([Place(job, 0)], stops=job.deadline is not None)
        except BaseException:
            log.exception("the engine failed")
            self.totals.add_crash()
            job.fail(_crashed())
        self._last = time.monotonic()
        return True

    def submit(self, job: Job, size: int) -> None:
        """Queue a job whose request has `size` bytes. Raises Failure where there is no room, or the engine is down."""
        self.start()
        if not self.running and not self.queue.closed:
            raise Failure("unhealthy", "the engine is being started again; try again soon", retry_after=1.0)
        if not job.rows:
            job.done(job)
            return
        self.queue.put(job, size)

    def cancel(self, job: Job) -> None:
        """Nobody waits for the answers: rows that wait are dropped at once, those under way at the next exit."""
        self.queue.drop(job)

    def close(self, timeout: float | None = None) -> bool:
        """Take no more jobs, finish those that there are. False where that took longer than `timeout` seconds."""
        self.queue.close()
        if self._process != os.getpid():
            return True
        end = None if timeout is None else time.monotonic() + timeout
        for thread in self._threads:
            thread.join(None if end is None else max(0.0, end - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _supervise(self, number: int) -> None:
        """Run batches; where that ends with anything but a failure of rows, fail all jobs and start again."""
        if self.one_core_each:
            keep_to_one_thread()
        while True:
            under_way: list[Place] = []
            try:
                self._running[number] = True
                self._serve(number, under_way)
                self._running[number] = False
                return
            except BaseException:  # also SystemExit, which would end only this thread
                self._running[number] = False
                log.exception("a thread of the engine failed and is started again")
                self.totals.add_crash()
                for place in under_way:
                    place.job.fail(_crashed())
                self.queue.fail_all(_crashed)
            time.sleep(RESTART_SECONDS)

    def _serve(self, number: int, under_way: list[Place]) -> None:
        while (places := self.queue.take(self.batch_tokens, self.batch_rows)) is not None:
            under_way[:] = places
            self._busy_since[number] = time.monotonic()
            try:
                with self._cores_for(places):
                    self.run_isolated(places)
            finally:
                self._busy_since[number] = None
            under_way.clear()

    def _cores_for(self, places: Sequence[Place]) -> contextlib.AbstractContextManager[None]:
        """All cores for a query's documents, which no other thread can share, where there is nothing else to do."""
        whole = places[0].job.top_k is not None
        return (
            all_together(self.cores) if whole and self.busy == 1 and not self.queue.rows else contextlib.nullcontext()
        )

    def run_isolated(self, places: Sequence[Place], stops: bool = True) -> None:
        """Answer rows. Where that fails, each is tried alone, so that one of them cannot take the others with it."""
        try:
            run(self.engine, places, self.totals, stops)
        except Exception as error:
            left = [place for place in places if not place.over]
            if len(places) == 1:
                log.error("a row failed: %s", type(error).__name__, exc_info=error)
                places[0].job.fail_row(
                    places[0].row, Failure("backend", "the model failed on this row", row=places[0].row)
                )
                return
            log.warning("a batch of %d rows failed (%s); its rows are tried alone", len(places), type(error).__name__)
            for place in left:
                self.run_isolated([place])


def _crashed() -> Failure:
    """What jobs fail with after a crash."""
    return Failure("unhealthy", "the engine failed and is being started again", retry_after=1.0)
