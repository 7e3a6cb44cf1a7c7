"""The scheduler: the only place that batches. It takes rows of many requests through a model together.

A thread of its own takes rows from the queue and runs them (`serving.passage`). Where that fails it tries the rows one
by one; where the thread itself ends it is started again.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Sequence

from ..api import Engine
from .failures import Failure
from .job import Job
from .limits import Limits
from .passage import run
from .queue import Place, Queue
from .totals import Totals

log = logging.getLogger("pfengine.serving")

RESTART_SECONDS = 0.1  # between a crash of the engine's thread and its next start


class Scheduler:
    """Takes jobs through one engine's model, batched.

    batch_tokens, batch_rows: the most that goes through the layers together.
    """

    def __init__(self, model: Engine, limits: Limits, batch_tokens: int, batch_rows: int | None = None) -> None:
        self.engine, self.limits = model, limits
        self.batch_tokens, self.batch_rows = batch_tokens, batch_rows
        self.totals = Totals(model.num_layers)
        self.queue = Queue(limits)
        self.running = False  # does the engine's thread take jobs?
        self.busy_since: float | None = None  # by time.monotonic(): when the batch under way was started
        self._process = 0
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()

    def start(self) -> None:
        """Start the engine's thread; after a fork the child needs one of its own. Does nothing where there is one."""
        if self._process == os.getpid():
            return
        with self._starting:
            if self._process == os.getpid():
                return
            if self._process:  # of a parent process, whose jobs the parent answers
                self.queue = Queue(self.limits)
            self.running, self._process = True, os.getpid()
            self._thread = threading.Thread(target=self._supervise, name="pfengine-engine", daemon=True)
            self._thread.start()

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
        if self._thread is None or self._process != os.getpid():
            return True
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _supervise(self) -> None:
        """Run batches; where that ends with anything but a failure of rows, fail all jobs and start again."""
        while True:
            under_way: list[Place] = []
            try:
                self.running = True
                self._serve(under_way)
                self.running = False
                return
            except BaseException as error:  # also SystemExit, which would end only this thread
                self.running = False
                log.exception("the engine's thread failed and is started again")
                self.totals.crashes += 1
                crashed = _Crashed(error)
                for place in under_way:
                    place.job.fail(crashed())
                self.queue.fail_all(crashed)
            time.sleep(RESTART_SECONDS)

    def _serve(self, under_way: list[Place]) -> None:
        while (places := self.queue.take(self.batch_tokens, self.batch_rows)) is not None:
            under_way[:] = places
            self.busy_since = time.monotonic()
            try:
                self.run_isolated(places)
            finally:
                self.busy_since = None
            under_way.clear()

    def run_isolated(self, places: Sequence[Place]) -> None:
        """Answer rows. Where that fails, each is tried alone, so that one of them cannot take the others with it."""
        try:
            run(self.engine, places, self.totals)
        except Exception as error:
            left = [place for place in places if not place.job.over and not place.job.exit_layers[place.row]]
            if len(places) == 1:
                log.error("a row failed: %s", type(error).__name__, exc_info=error)
                places[0].job.fail_row(
                    places[0].row, Failure("backend", "the model failed on this row", row=places[0].row)
                )
                return
            log.warning("a batch of %d rows failed (%s); its rows are tried alone", len(places), type(error).__name__)
            for place in left:
                self.run_isolated([place])


class _Crashed:
    """What jobs fail with after a crash."""

    def __init__(self, error: BaseException) -> None:
        self.name = type(error).__name__

    def __call__(self) -> Failure:
        return Failure("unhealthy", "the engine failed and is being started again", retry_after=1.0)
