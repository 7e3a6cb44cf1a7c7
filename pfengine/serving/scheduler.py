"""The scheduler: the only place that batches. It takes rows of many requests through a model together.

A thread of its own takes rows from the queue, packs them into one flight, and stops after every exit: answers go out
as rows leave, rows of requests that were cancelled are dropped, and rows whose deadline comes before the next exit
would be reached leave with the scores of this one.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import engine
from ..answers import has_answer
from ..api import Engine
from ..batching import pack
from ..cascade_runner import CascadeRunner
from ..errors import InputError
from ..inference import RowAnswers
from .failures import Failure
from .job import Job
from .limits import Limits
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
        self.totals = Totals(model.num_layers, len(model.checkpoint.manifest.calibration) > 0)
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
        if not self.running:
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
            self._run(places)
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

    def _run(self, places: Sequence[Place]) -> None:
        selection = places[0].job.selection
        rows = [place.job.rows[place.row]._replace(row_id=i) for i, place in enumerate(places)]
        model, cascade = self.engine.model, self.engine.cascade
        if cascade is not None:
            runner = CascadeRunner(cascade, self.engine.precision, self.batch_tokens, self.batch_rows)
            (found,) = runner.answer([rows], selection, None)
            fine = np.array([not isinstance(row, InputError) for row in found.window])
            self._deliver(places, np.arange(len(rows)), found.logits, found.exit_layers, fine, found.models)
            return
        answers = RowAnswers(0, len(rows), model.config.num_labels)
        rule: Any = selection.rule(model.num_layers, model.exit_layers, 0, rows)
        packed = pack(rows, model.config)
        flight = model.carrier.start(packed, answers.slots(packed), answers)
        open_rows, last = np.ones(len(rows), bool), time.monotonic()
        for exit in engine.exits(model, flight, rule, answers.base):
            left = np.flatnonzero(open_rows & (answers.exit_layers > 0))
            if len(left):
                open_rows[left] = False
                self._deliver(places, left, answers.logits, answers.exit_layers)
            now = time.monotonic()
            next_exit, last = now + (now - last), now  # layers take about as long as the ones before
            slots = exit.slots.tolist()
            gone = np.array([places[slot].job.cancelled or places[slot].job.failure is not None for slot in slots])
            if gone.any():
                open_rows[[slot for slot, leaves in zip(slots, gone, strict=True) if leaves]] = False
                flight.leave(gone, answered=False)
                slots = [slot for slot, leaves in zip(slots, gone, strict=True) if not leaves]
            due = np.array([(places[slot].job.deadline or next_exit) < next_exit for slot in slots], bool)
            if due.any():
                self.totals.hurried += int(due.sum())
                flight.leave(due)
        left = np.flatnonzero(open_rows)
        self._deliver(places, left, answers.logits, answers.exit_layers)
        self.totals.add_batch(rows)

    def _deliver(
        self,
        places: Sequence[Place],
        which: np.ndarray,
        logits: np.ndarray,
        layers: np.ndarray,
        fine: np.ndarray | None = None,
        models: np.ndarray | None = None,
    ) -> None:
        """Hand answers to the jobs of the rows `which`. A row whose numbers overflow has none."""
        fine = has_answer(logits) if fine is None else fine
        by_job: dict[int, list[int]] = {}
        for i in which.tolist():
            by_job.setdefault(id(places[i].job), []).append(i)
        self.totals.add_answers(layers[which], [len(places[i].job.rows[places[i].row].ids) for i in which.tolist()])
        for members in by_job.values():
            job = places[members[0]].job
            for i in members:
                if not fine[i]:
                    text = f"the model's numbers overflow in {self.engine.precision}; there is no answer"
                    job.fail_row(places[i].row, Failure("backend", text, row=places[i].row))
            good = [i for i in members if fine[i]]
            if good:
                job.answer(
                    [places[i].row for i in good], logits[good], layers[good], None if models is None else models[good]
                )


class _Crashed:
    """What jobs fail with after a crash."""

    def __init__(self, error: BaseException) -> None:
        self.name = type(error).__name__

    def __call__(self) -> Failure:
        return Failure("unhealthy", "the engine failed and is being started again", retry_after=1.0)
