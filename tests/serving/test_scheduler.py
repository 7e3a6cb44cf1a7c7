"""What is asked of the scheduler comes back as the engine alone answers it, whatever shares its batches."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from typing import Any

import numpy as np
import pytest

import pfengine
from pfengine import extension
from pfengine.serving import passage, scheduler
from pfengine.serving.failures import Failure
from pfengine.serving.limits import Limits
from pfengine.serving.scheduler import Scheduler

from .conftest import WAIT, Bench, random_rows


def test_answers_are_the_engines_own_bit_for_bit(any_bench: Bench, engine: pfengine.Engine) -> None:
    bench = any_bench
    rows = random_rows([1, 3, 17, 2, 40, 9, 5, 64, 100, 7, 30, 1])
    expected = engine.predict(rows)
    draw = random.Random(0)
    for _ in range(3):
        order = draw.sample(range(len(rows)), len(rows))
        cuts = sorted(draw.sample(range(1, len(rows)), 4))
        parts = [order[a:b] for a, b in zip([0, *cuts], [*cuts, len(rows)], strict=True)]
        submitted = [bench.submit([rows[i] for i in part]) for part in parts]
        for part, each in zip(parts, submitted, strict=True):
            job = each.wait()
            assert job.failure is None
            assert job.failures == {}
            np.testing.assert_array_equal(job.logits, expected.logits[part])
            np.testing.assert_array_equal(job.exit_layers, expected.exit_layers[part])
    assert len(set(expected.exit_layers.tolist())) > 2


def test_jobs_of_different_criteria(any_bench: Bench, engine: pfengine.Engine) -> None:
    bench = any_bench
    rows = random_rows([5, 9, 13])
    submitted = {
        text: bench.submit(rows, selection=bench.served._by_text(text, None, None))
        for text in ("never", "entropy:0.5", "patience:2", "confidence:0.6")
    }
    for text, each in submitted.items():
        expected = engine.predict(rows, criterion=text)
        np.testing.assert_array_equal(each.wait().logits, expected.logits)
        np.testing.assert_array_equal(each.job.exit_layers, expected.exit_layers)


def test_a_callable_runs_as_in_the_engine(engine: pfengine.Engine) -> None:
    def after_two(layer: int, logits: Any, state: Any, row_ids: Any) -> tuple[Any, Any]:
        return logits[:, 0] > 0 if layer >= 2 else logits[:, 0] > 1e9, state

    from pfengine.serving.server import served

    other = pfengine.load(engine.checkpoint.path, precision="fp32", criterion=after_two)
    model = served("tiny", other, Limits(), batch_tokens=64)
    bench, rows = Bench(other, model.scheduler, model), random_rows([5, 9, 13, 2])
    expected = other.predict(rows)
    job = bench.submit(rows).wait()
    np.testing.assert_array_equal(job.logits, expected.logits)
    np.testing.assert_array_equal(job.exit_layers, expected.exit_layers)
    assert model.scheduler.close(WAIT)


def slow(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Every exit takes so long."""
    real = passage.engine.exits

    def exits(*arguments: Any) -> Any:
        for exit in real(*arguments):
            time.sleep(seconds)
            yield exit

    monkeypatch.setattr(passage.engine, "exits", exits)


@pytest.mark.parametrize("criterion", ["never", "entropy:0.0001", "patience:5"])
def test_a_deadline_gets_the_deepest_exit_in_time(
    bench: Bench, engine: pfengine.Engine, monkeypatch: pytest.MonkeyPatch, criterion: str
) -> None:
    slow(monkeypatch, 0.2)
    rows = random_rows([6, 11])
    selection = bench.served._by_text(criterion, None, None)
    asked = time.monotonic()
    hurried = bench.submit(rows, deadline=asked + 0.5, selection=selection)
    patient = bench.submit(rows, selection=selection)
    job = hurried.wait()
    assert job.finished - asked < 0.9
    (layer,) = set(job.exit_layers.tolist())
    assert 1 <= layer < engine.num_layers
    np.testing.assert_array_equal(job.logits, engine.layer_logits(rows)[layer - 1])
    np.testing.assert_array_equal(patient.wait().logits, engine.predict(rows, criterion=criterion).logits)
    assert bench.scheduler.totals.hurried == 2


def test_a_deadline_that_passes_in_the_queue(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    slow(monkeypatch, 0.05)
    first = bench.submit_alone(random_rows([64]), selection=bench.served._by_text("never", None, None))
    late = bench.submit(random_rows([3]), deadline=time.monotonic() + 0.001)
    job = late.wait()
    assert job.failure is not None
    assert job.failure.kind == "deadline"
    assert first.wait().failure is None


def test_order_is_by_deadline_and_then_by_age(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    ready, order = threading.Event(), []
    real = scheduler.run

    def run(engine: Any, places: Any, *others: Any) -> None:
        ready.wait(WAIT)
        order.extend(len(place.job.rows[place.row].ids) for place in places)
        real(engine, places, *others)

    monkeypatch.setattr(scheduler, "run", run)
    bench.scheduler.batch_rows = 1
    blocker = bench.submit_alone(random_rows([60]))
    now = time.monotonic()
    jobs = [bench.submit(random_rows([n]), deadline=d) for n, d in ((1, None), (2, now + 9), (3, now + 5), (4, None))]
    ready.set()
    for each in (blocker, *jobs):
        each.wait()
    assert order == [60, 3, 2, 1, 4]


def test_a_cancelled_job_leaves_at_the_next_exit(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    slow(monkeypatch, 0.1)
    selection = bench.served._by_text("never", None, None)
    job = bench.submit(random_rows([9]), selection=selection)
    neighbour = bench.submit(random_rows([4]), selection=selection)
    time.sleep(0.15)
    bench.scheduler.cancel(job.job)
    assert neighbour.wait().failure is None
    assert job.job.open == 1
    assert not job.over.is_set()
    assert bench.scheduler.queue.rows == bench.scheduler.queue.tokens == bench.scheduler.queue.bytes == 0


def test_a_row_that_fails_fails_alone(bench: Bench, engine: pfengine.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    real = scheduler.run

    def run(model: Any, places: Any, *others: Any) -> None:
        if any(len(place.job.rows[place.row].ids) == 13 for place in places):
            raise MemoryError
        real(model, places, *others)

    monkeypatch.setattr(scheduler, "run", run)
    rows = random_rows([5, 13, 7])
    job, other = bench.submit(rows), bench.submit(rows[:1])
    assert {place: failure.kind for place, failure in job.wait().failures.items()} == {1: "backend"}
    np.testing.assert_array_equal(job.job.logits[[0, 2]], engine.predict([rows[0], rows[2]]).logits)
    assert other.wait().failures == {}


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_a_crash_fails_what_is_under_way_and_starts_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    real, crash = scheduler.run, threading.Event()

    def run(*arguments: Any) -> None:
        if not crash.is_set():
            crash.wait(WAIT)
            raise error
        real(*arguments)

    monkeypatch.setattr(scheduler, "run", run)
    jobs = [bench.submit_alone(random_rows([5])), *(bench.submit(random_rows([5])) for _ in range(2))]
    crash.set()
    assert [each.wait().failure.kind for each in jobs] == ["unhealthy"] * 3  # type: ignore[union-attr]
    end = time.monotonic() + WAIT
    while not bench.scheduler.running and time.monotonic() < end:  # it refuses until then
        with contextlib.suppress(Failure):
            bench.submit(random_rows([5]))
        time.sleep(0.01)
    assert bench.submit(random_rows([5])).wait().failure is None
    assert bench.scheduler.totals.crashes == 1


def test_a_full_queue_refuses_and_forgets_nothing(engine: pfengine.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    from pfengine.serving.server import served

    gate, real = threading.Event(), scheduler.run

    def run(*arguments: Any) -> None:
        gate.wait(WAIT)
        real(*arguments)

    monkeypatch.setattr(scheduler, "run", run)
    limits = Limits(max_queue_rows=6, max_queue_tokens=60, max_queue_bytes=1000)
    model = served("tiny", engine, limits, batch_tokens=64, threads=1)
    bench = Bench(engine, model.scheduler, model)
    first = bench.submit_alone(random_rows([5]))
    taken = [bench.submit(random_rows([5, 5])) for _ in range(3)]
    for rows in ([5], [200]):  # one row too many; larger than the whole queue, but something waits
        with pytest.raises(Failure) as refused:
            bench.submit(random_rows(rows))
        assert refused.value.kind == "overloaded"
        assert refused.value.retry_after == 1.0
    gate.set()
    assert all(each.wait().failure is None for each in (first, *taken))
    with pytest.raises(Failure, match="larger than the whole queue"):
        bench.submit(random_rows([200]))
    assert bench.submit(random_rows([50])).wait().failure is None
    assert model.scheduler.close(WAIT)
    with pytest.raises(Failure, match="shutting down"):
        bench.submit(random_rows([5]))


def test_rows_without_an_answer(make_checkpoint: Any) -> None:
    """Weights that overflow: the row fails, and says so."""
    from safetensors.torch import load_file, save_file

    from pfengine.serving.server import served

    path = make_checkpoint("bert", seed=77)
    tensors = load_file(path / "model.safetensors")
    tensors["bert.encoder.layer.0.output.dense.weight"] *= 1e38
    save_file(tensors, path / "model.safetensors")
    engine = pfengine.load(path, precision="fp32")
    model = served("tiny", engine, Limits(), batch_tokens=64)
    job = Bench(engine, model.scheduler, model).submit(random_rows([5, 7])).wait()
    assert {failure.kind for failure in job.failures.values()} == {"backend"}
    assert model.scheduler.close(WAIT)


def test_a_job_of_many_rows_is_spread_over_batches(bench: Bench, engine: pfengine.Engine) -> None:
    rows = random_rows([20] * 50)
    np.testing.assert_array_equal(bench.submit(rows).wait().logits, engine.predict(rows).logits)
    assert bench.scheduler.totals.batches >= 50 * 20 / 64


def test_idle_threads_divide_the_rows_of_a_job(engine: pfengine.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    from pfengine.serving.server import served

    sizes, together, real = [], threading.Barrier(3, timeout=WAIT), scheduler.run

    def run(model: Any, places: Any, *others: Any) -> None:
        sizes.append(len(places))
        together.wait()  # so that no thread takes a second part
        assert extension.threads() == 1
        real(model, places, *others)

    monkeypatch.setattr(scheduler, "run", run)
    model = served("tiny", engine, Limits(), batch_tokens=10_000, threads=3)
    bench, rows = Bench(engine, model.scheduler, model), random_rows([9] * 16)
    model.scheduler.start()
    while model.scheduler.queue._takers < 3:
        time.sleep(0.001)
    job = bench.submit(rows).wait()
    assert sorted(sizes) == [5, 5, 6]
    np.testing.assert_array_equal(job.logits, engine.predict(rows).logits)
    assert job.failures == {}
    assert model.scheduler.close(WAIT)


def test_many_threads_at_once_lose_nothing(engine: pfengine.Engine) -> None:
    from pfengine.serving.server import served

    model = served("tiny", engine, Limits(), batch_tokens=40, threads=4)
    bench, lengths = Bench(engine, model.scheduler, model), [3, 30, 9, 14, 1, 22]
    rows = random_rows(lengths)
    expected = engine.predict(rows)
    submitted = [bench.submit(rows) for _ in range(60)]
    for each in submitted:
        np.testing.assert_array_equal(each.wait().logits, expected.logits)
        assert (each.job.open, each.job.failures) == (0, {})
    assert model.scheduler.close(WAIT)
    totals, queue = model.scheduler.totals, model.scheduler.queue
    assert totals.exits.sum() == totals.batch_rows == 360
    assert totals.tokens_computed == 60 * (lengths * expected.exit_layers).sum()
    assert (queue.rows, queue.tokens, queue.bytes, queue._left) == (0, 0, 0, 0)


def test_a_job_without_rows_is_over_at_once(bench: Bench) -> None:
    assert bench.submit([]).wait().failure is None


def test_totals(bench: Bench, engine: pfengine.Engine) -> None:
    rows = random_rows([4, 8, 16])
    expected = engine.predict(rows)
    bench.submit(rows).wait()
    totals, lengths = bench.scheduler.totals, np.array([4, 8, 16])
    assert totals.exits[expected.exit_layers].sum() >= 3
    assert totals.exits.sum() == 3
    assert totals.tokens_computed == (lengths * expected.exit_layers).sum()
    assert totals.tokens_computed + totals.tokens_saved == 28 * engine.num_layers
    assert totals.layer_speedup == pytest.approx(expected.layer_speedup)


def test_a_forked_child_has_a_scheduler_of_its_own(any_bench: Bench) -> None:
    import os

    bench = any_bench
    bench.submit(random_rows([5])).wait()
    child = os.fork()
    if not child:
        try:
            fine = bench.submit(random_rows([5])).wait().failure is None
        except BaseException:
            fine = False
        os._exit(0 if fine else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert bench.submit(random_rows([5])).wait().failure is None


def test_close_answers_what_waits(engine: pfengine.Engine) -> None:
    from pfengine.serving.server import served

    model = served("tiny", engine, Limits(), batch_tokens=64)
    jobs = [Bench(engine, model.scheduler, model).submit(random_rows([30])) for _ in range(20)]
    assert model.scheduler.close(WAIT)
    assert all(each.job.open == 0 for each in jobs)
    assert isinstance(model.scheduler, Scheduler)
