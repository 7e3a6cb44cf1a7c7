from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pfengine
from pfengine.prefetch import Work, run_ahead


@pytest.fixture(params=[0, 2], ids=["here", "workers"])
def workers(request: pytest.FixtureRequest) -> Iterator[ThreadPoolExecutor | None]:
    if not request.param:
        yield None
        return
    with ThreadPoolExecutor(request.param) as pool:
        yield pool


def work(done: list[int], stop: int, fails: bool = False) -> Iterator[Work[int]]:
    for item in range(stop):
        yield item, [partial(done.append, item)] * 2
    if fails:
        raise OSError("the file is gone")


@pytest.mark.parametrize("items", [0, 1, 5])
def test_items_come_in_order_with_their_tasks_done(workers: ThreadPoolExecutor | None, items: int) -> None:
    done: list[int] = []
    for expected, item in enumerate(run_ahead(work(done, items), workers)):
        assert item == expected
        assert done.count(item) == 2
    assert len(done) == 2 * items


def test_the_next_item_is_read_while_one_is_under_way() -> None:
    read = threading.Event()

    def items() -> Iterator[Work[str]]:
        yield "first", [lambda: None if read.wait(10) else pytest.fail("nobody reads on")]
        read.set()
        yield "second", []

    with ThreadPoolExecutor(1) as pool:
        assert list(run_ahead(items(), pool)) == ["first", "second"]


def test_what_reading_raises_comes_after_the_items_before_it(workers: ThreadPoolExecutor | None) -> None:
    results = run_ahead(work([], 3, fails=True), workers)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(OSError, match="the file is gone"):
        next(results)


def test_what_a_task_raises_comes_in_its_place(workers: ThreadPoolExecutor | None) -> None:
    def items() -> Iterator[Work[int]]:
        yield 0, []
        yield 1, [lambda: None, lambda: [][0]]
        yield 2, []

    results = run_ahead(items(), workers)
    assert next(results) == 0
    with pytest.raises(IndexError):
        next(results)


def test_nothing_more_is_started_when_the_reader_stops(workers: ThreadPoolExecutor | None) -> None:
    done: list[int] = []
    results = run_ahead(work(done, 1000), workers)
    assert next(results) == 0
    results.close()  # type: ignore[attr-defined]
    assert set(done) <= {0, 1, 2}


@pytest.mark.parametrize("criterion", ["entropy:0.9", lambda layer, logits, state, row_ids: (logits[:, 0] > 0, state)])
def test_an_engine_with_workers_gives_the_same_answers(
    make_checkpoint: Callable[..., Path], random_rows: Any, criterion: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = pfengine.load(make_checkpoint("bert"), precision="fp32")
    rows = random_rows([3, 9, 1, 17, 5] * 20)
    expected = engine.predict(rows, criterion=criterion)
    with ThreadPoolExecutor(2) as pool:
        monkeypatch.setattr(pfengine.Engine, "_workers", pool)
        found = engine.predict(rows, criterion=criterion, batch_tokens=40)
        np.testing.assert_array_equal(found.logits, expected.logits)
        np.testing.assert_array_equal(found.exit_layers, expected.exit_layers)
        answers = list(engine.stream(iter(rows), criterion=criterion, batch_tokens=40))
        assert [answer["exit_layer"] for answer in answers] == expected.exit_layers.tolist()
        bad = engine.classify([*rows, 7, rows[0]], criterion=criterion, on_error="return", batch_tokens=40)
        assert bad[:-2] == answers
        assert bad[-2]["row"] == len(rows)
        with pytest.raises(pfengine.InputError, match="row 1"):
            engine.predict([rows[0], 7])
