"""A short row that comes alone is run by the thread that brings it, and answered as any other."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import pfengine
from pfengine.serving import scheduler
from pfengine.serving.limits import Limits
from pfengine.serving.server import served

from .conftest import WAIT, Bench, Make, random_rows


@pytest.fixture(params=[1, 2])
def idle(make_checkpoint: Make, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """A scheduler that has measured its model and has nothing to do."""
    monkeypatch.setattr(scheduler, "AT_ONCE_SECONDS", 1.0)  # on however busy a machine
    engine = pfengine.load(make_checkpoint("bert", threshold=0.8), precision="fp32")
    model = served("tiny", engine, Limits(), threads=request.param)
    found = Bench(engine, model.scheduler, model)
    found.submit(random_rows([5])).wait()
    quiet(found)
    yield found
    model.scheduler.close(WAIT)


def quiet(bench: Bench) -> None:
    end = time.monotonic() + WAIT
    while bench.scheduler.busy and time.monotonic() < end:
        time.sleep(0.001)
    time.sleep(2 * scheduler.QUIET_SECONDS)


@pytest.mark.parametrize("deadline", [None, 1000.0])
def test_it_is_answered_by_the_calling_thread(
    idle: Bench, monkeypatch: pytest.MonkeyPatch, deadline: float | None
) -> None:
    threads, real = [], scheduler.run

    def run(*arguments: Any) -> None:
        threads.append(threading.current_thread())
        real(*arguments)

    monkeypatch.setattr(scheduler, "run", run)
    for length in (1, 7, 30):
        rows = random_rows([length], seed=length)
        made = idle.job(rows, deadline=None if deadline is None else time.monotonic() + deadline)
        assert idle.scheduler.run_at_once(made.job)
        assert made.over.is_set()
        expected = idle.engine.predict(rows)
        assert made.job.logits is not None
        assert np.array_equal(made.job.logits, expected.logits)
        assert np.array_equal(made.job.exit_layers, expected.exit_layers)
        quiet(idle)
    assert set(threads) == {threading.current_thread()}
    assert idle.scheduler.totals.exits.sum() == 4


def test_where_it_is_not(idle: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def at_once(rows: list[Any], **options: Any) -> bool:
        quiet(idle)
        return idle.scheduler.run_at_once(idle.job(rows, **options).job)

    one = random_rows([5])
    assert at_once(one)
    assert not idle.scheduler.run_at_once(idle.job(one).job), "the last one was just now"
    assert not at_once(random_rows([5, 6])), "two rows"
    idle.scheduler.totals.token_seconds = 0.3
    assert not at_once(one), "it would take too long"
    idle.scheduler.totals.token_seconds = 0.0
    assert at_once(one)
    monkeypatch.setattr(idle.scheduler, "_running", [False])
    assert not at_once(one), "the engine is being started again"
    monkeypatch.undo()

    def own(layer: int, logits: Any, state: Any, row_ids: Any) -> Any:
        return logits[:, 0] > 0, state

    theirs = pfengine.load(idle.engine.checkpoint.path, precision="fp32", criterion=own)
    model = served("theirs", theirs, Limits())
    model.scheduler.start()
    model.scheduler.totals.token_seconds = 0.0
    assert not model.scheduler.run_at_once(idle.job(one, selection=model.selection).job), "code that is not ours"
    model.scheduler.close(WAIT)
    idle.scheduler.close(WAIT)
    assert not at_once(one), "it is closed"


@pytest.mark.parametrize(("error", "kind"), [(RuntimeError, "backend"), (SystemExit, "unhealthy")])
def test_a_failure_goes_no_further(
    idle: Bench, monkeypatch: pytest.MonkeyPatch, error: type[BaseException], kind: str
) -> None:
    real = scheduler.run

    def run(*_: Any) -> None:
        raise error

    monkeypatch.setattr(scheduler, "run", run)
    made = idle.job(random_rows([5]))
    assert idle.scheduler.run_at_once(made.job)
    assert made.over.is_set()
    failure = made.job.failure or made.job.failures[0]
    assert failure.kind == kind
    monkeypatch.setattr(scheduler, "run", real)
    assert idle.submit(random_rows([5])).wait().failure is None
