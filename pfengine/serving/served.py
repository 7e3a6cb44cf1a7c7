"""A model under a name: tokenises the rows of a request, hands them to the scheduler, and waits for the answers."""

from __future__ import annotations

import asyncio
import functools
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..answers import probabilities
from ..api import Engine
from ..errors import ConfigError, InputError
from ..exits.data import DataCriterion
from ..exits.selection import CheckpointExits, Selection, form_of, select
from ..per_row import own_exits
from ..ranking import own_margins
from ..rows import Row, size
from .bodies import ClientGone
from .drift import Drift, expected_exits
from .failures import Failure, overloaded
from .job import Job
from .limits import Limits
from .scheduler import Scheduler

INLINE_CHARACTERS = 4096  # requests up to this size are tokenised in the event loop, which a thread would only delay
WATCH_AFTER_SECONDS = 0.02  # a request that is answered sooner is not watched for a client that hangs up
FRESH_SECONDS = 1.0  # an answer that old says that the model answers
PROBE, PROBE_IDS = "health", {"input_ids": [0]}
STAGES = ("tokenisation", "queue", "inference")  # of an answer, in order; fields of `Answer`, in seconds
CRITERIA_KEPT = 64  # of those that requests bring


@dataclass(frozen=True)
class Knobs:
    """What a request may say beside its rows; None where it says nothing.

    deadline_ms: from its arrival; the best answer there is by then is sent. top_k: the rows are the documents of a
    query, and only so many of the best are wanted.
    """

    threshold: float | None = None
    speedup: float | None = None
    criterion: str | None = None
    deadline_ms: float | None = None
    truncate: bool | None = None
    top_k: int | None = None


@dataclass(frozen=True)
class Answer:
    """The answers to the rows of a request, in order.

    failures: by row. tokens: of each row. by_margins: have documents left that are surely not among the best, whose
    scores say no more than that? arrived_at: by time.time(); from there on come the three stages, in seconds.
    """

    logits: np.ndarray  # float32 [rows, labels]; nan for a row that failed
    exit_layers: np.ndarray  # int64 [rows]; 0 for a row that failed
    models: np.ndarray | None
    failures: dict[int, Failure]
    tokens: list[int]
    tokenisation: float  # seconds
    queue: float
    inference: float
    arrived_at: float = 0.0
    characters: int = 0  # of all rows
    by_margins: bool = False


class Served:
    """A model that a server answers with."""

    def __init__(self, name: str, engine: Engine, limits: Limits, scheduler: Scheduler) -> None:
        self.name, self.engine, self.limits, self.scheduler = name, engine, limits, scheduler
        self.created = int(time.time())
        self._exits = own_exits(engine.checkpoint, engine.model.exit_layers)
        self.selection = self._with_criterion(None, None, None)
        self.margins = own_margins(engine)
        scheduler.totals.drift = self._drift()
        self._by_text = functools.lru_cache(CRITERIA_KEPT)(self._with_criterion)

    @property
    def labels(self) -> tuple[str, ...]:
        return self.engine.labels

    @property
    def exits(self) -> CheckpointExits:
        """What criteria may know of the model."""
        return self._exits

    @property
    def max_length(self) -> int:
        """The longest row in tokens."""
        return self.engine.max_length

    async def answer(
        self, rows: Sequence[Any], knobs: Knobs, gone: Callable[[], Awaitable[None]] | None = None
    ) -> Answer:
        """Answers to rows, in the forms that `Engine.classify` takes.

        gone: returns when nobody waits for the answers any more, which are then not computed. Raises Failure where the
        request as a whole is not answered; rows that fail alone are in `Answer.failures`.
        """
        arrived = time.monotonic()
        length = sum(map(size, rows))
        self._check_room(len(rows))
        read = functools.partial(self.read, rows, knobs)
        loop = asyncio.get_running_loop()
        selection, found = read() if length <= INLINE_CHARACTERS else await loop.run_in_executor(None, read)
        failures = {i: _failure(row) for i, row in enumerate(found) if isinstance(row, InputError)}
        places = [i for i, row in enumerate(found) if isinstance(row, Row)]
        good = [row for row in found if isinstance(row, Row)]
        read_at = time.monotonic()
        deadline = None if knobs.deadline_ms is None else arrived + knobs.deadline_ms / 1000
        margins = self.margins if self._by_margins(knobs) else None
        if margins is not None and len(good) > (most := self.engine.model.carrier.max_rows):
            raise Failure("validation", f"at most {most} documents are ranked by the model's margins; send fewer")
        job = Job(good, selection, deadline, _nothing, margins)
        job.usual = selection is self.selection and margins is None
        if good and not self.scheduler.run_at_once(job):
            future: asyncio.Future[None] = loop.create_future()
            job.done = functools.partial(_done, loop, future)
            self.scheduler.submit(job, length)
            await self._wait(job, future, gone)
        if job.failure is not None:
            raise job.failure
        failures |= {places[i]: _at(failure, places[i]) for i, failure in job.failures.items()}
        logits = np.full((len(rows), len(self.labels)), np.nan, np.float32)
        exit_layers = np.zeros(len(rows), np.int64)
        models = None if self.engine.cascade is None else np.zeros(len(rows), np.int64)
        if job.logits is not None:
            logits[places], exit_layers[places] = job.logits, job.exit_layers
            if models is not None and job.models is not None:
                models[places] = job.models
        tokens = [len(row.ids) if isinstance(row, Row) else 0 for row in found]
        started = job.started or read_at
        waited, computed = started - read_at, max(0.0, job.finished - started)
        at = time.time() - (time.monotonic() - arrived)
        stages = read_at - arrived, waited, computed
        return Answer(logits, exit_layers, models, failures, tokens, *stages, at, length, margins is not None)

    def probabilities(self, answer: Answer, problem_type: str | None = None) -> np.ndarray:
        """float32 [rows, labels]; problem_type: None for the model's own."""
        return probabilities(answer.logits, problem_type or self.engine.model.config.problem_type)

    async def check(self) -> None:
        """Raise Failure where the model does not answer: what it answered a moment ago counts, else a row is tried."""
        scheduler = self.scheduler
        busy, now = scheduler.busy_since, time.monotonic()
        if busy is not None and now - busy > self.limits.request_timeout:
            raise Failure("unhealthy", "the engine has been at one batch for too long")
        if scheduler.running and now - scheduler.totals.last_answer < FRESH_SECONDS:
            return
        try:
            answer = await self.answer([PROBE if self.engine.tokenizer.backend is not None else PROBE_IDS], Knobs())
        except Failure as failure:
            if failure.kind != "overloaded":
                raise Failure("unhealthy", "unhealthy") from None
        else:
            if answer.failures:
                raise Failure("unhealthy", "unhealthy")

    async def tokens(self, texts: Sequence[str], special: bool) -> list[list[dict[str, Any]]]:
        """The tokens of texts, as Text Embeddings Inference describes them. Raises Failure for the first bad text."""
        if self.engine.tokenizer.backend is None:
            raise Failure("unsupported", "the model has no tokenizer; it takes token ids")
        describe = functools.partial(self._described, texts, special)
        if sum(map(size, texts)) <= INLINE_CHARACTERS:
            return describe()
        return await asyncio.get_running_loop().run_in_executor(None, describe)

    def _described(self, texts: Sequence[str], special: bool) -> list[list[dict[str, Any]]]:
        described = []
        for row, given in enumerate(texts):
            try:
                text, found = self.engine.tokenizer.tokens(given, special)
            except InputError as error:
                raise Failure("tokenizer", error.reason, row=row) from None
            parts = zip(found.ids, found.tokens, found.special_tokens_mask, found.offsets, strict=True)
            described.append(
                [
                    {"id": i, "text": token if is_special else text[start:stop], "special": bool(is_special)}
                    | ({"start": None, "stop": None} if is_special else {"start": start, "stop": stop})
                    for i, token, is_special, (start, stop) in parts
                ]
            )
        return described

    @property
    def calibration(self) -> Sequence[dict[str, Any]]:
        """The checkpoint's table, where it is of the criterion that runs by default; else nothing."""
        now = self.selection.criterion
        same = isinstance(now, DataCriterion) and now.form == form_of(self._exits.criterion)
        return self._exits.calibration if same else ()

    def _drift(self) -> Drift:
        """Beside the calibration at the criterion's threshold."""
        table, threshold = self.calibration, getattr(self.selection.criterion, "threshold", None)
        expected = expected_exits(table, threshold if isinstance(threshold, (int, float)) else None)
        return Drift(expected, 0 if expected is None else max(sum(point.get("exit_rows", ())) for point in table))

    def _check_room(self, rows: int) -> None:
        """Refuse before any work what would be refused after it."""
        queue = self.scheduler.queue
        if queue.rows and queue.rows + rows > self.limits.max_queue_rows:
            raise overloaded()

    def read(self, rows: Sequence[Any], knobs: Knobs) -> tuple[Selection, list[Row | InputError]]:
        """The rows tokenised, with their thresholds. Raises Failure for knobs that make no sense."""
        for name in ("threshold", "speedup", "deadline_ms"):
            value = getattr(knobs, name)
            if value is not None and not math.isfinite(value):
                raise Failure("validation", f"{name} is {value}; it must be a finite number")
        if knobs.deadline_ms is not None and knobs.deadline_ms <= 0:
            raise Failure("validation", f"deadline_ms is {knobs.deadline_ms:g}; it must be positive")
        if knobs.deadline_ms is not None and self.engine.cascade is not None:
            raise Failure("unsupported", "this model is a cascade, which takes no deadline_ms")
        selection = self.selection
        try:
            if not _says_nothing(knobs):
                selection = self._by_text(knobs.criterion, knobs.threshold, knobs.speedup)
            elif self.margins is not None and knobs.top_k is not None and knobs.top_k > self.margins.k:
                selection = self._by_text("never", None, None)  # as Engine.rank does: nothing is known of so many
        except ConfigError as error:
            raise Failure("validation", _public(str(error), self.engine)) from None
        tokenizer = self.engine.tokenizer
        if self.engine.cascade is not None:
            tokenizer = self.engine.cascade.members[self.engine.cascade.reader(selection.criterion)].tokenizer
        found = selection.resolved(tokenizer.encode(enumerate(rows)))
        truncate = self.limits.auto_truncate if knobs.truncate is None else knobs.truncate
        if not truncate:
            found = [self._uncut(row) for row in found]
        return selection, list(found)

    def _uncut(self, row: Row | InputError) -> Row | InputError:
        if isinstance(row, Row) and row.truncated:
            return InputError(row.row_id, f"must have at most {self.max_length} tokens; it has more")
        return row

    def _by_margins(self, knobs: Knobs) -> bool:
        """Do the checkpoint's margins for the best k decide?"""
        wanted = self.margins is not None and knobs.top_k is not None and knobs.top_k <= self.margins.k
        return wanted and _says_nothing(knobs)

    def _with_criterion(self, criterion: str | None, threshold: float | None, speedup: float | None) -> Selection:
        return select(self._exits, criterion, threshold, speedup, self.engine.criterion, None)

    async def _wait(self, job: Job, future: asyncio.Future[None], gone: Callable[[], Awaitable[None]] | None) -> None:
        """Until the job is over. Raises Failure where that takes too long."""
        loop, watch = asyncio.get_running_loop(), None

        def look() -> None:
            nonlocal watch
            if gone is not None:
                watch = loop.create_task(_cancel_when(gone, future))

        timers = (
            loop.call_later(self.limits.request_timeout, _expire, future),
            loop.call_later(WATCH_AFTER_SECONDS, look),
        )
        try:
            await future
        except TimeoutError:
            raise Failure("deadline", f"no answer within {self.limits.request_timeout:g} seconds") from None
        finally:
            for timer in timers:
                timer.cancel()
            if watch is not None:
                watch.cancel()
            if not job.over:
                self.scheduler.cancel(job)


def _says_nothing(knobs: Knobs) -> bool:
    """Does a request leave it to the server when rows leave?"""
    return knobs.criterion is knobs.threshold is knobs.speedup is None


def _nothing(job: Job) -> None:
    """For a job that is over before anybody waits for it."""


def _done(loop: asyncio.AbstractEventLoop, future: asyncio.Future[None], job: Job) -> None:
    """Called in the engine's thread."""
    loop.call_soon_threadsafe(_resolve, future)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _expire(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_exception(TimeoutError())


async def _cancel_when(gone: Callable[[], Awaitable[None]], future: asyncio.Future[None]) -> None:
    await gone()
    if not future.done():
        future.set_exception(ClientGone())


def _failure(error: InputError) -> Failure:
    return Failure("tokenizer" if "tokenised" in error.reason else "validation", error.reason, row=error.row)


def _at(failure: Failure, row: int) -> Failure:
    return Failure(failure.kind, failure.message, row=row, retry_after=failure.retry_after)


def _public(message: str, engine: Engine) -> str:
    """A message of the engine without where its checkpoint lies."""
    return message.replace(str(engine.checkpoint.path), "the checkpoint")
