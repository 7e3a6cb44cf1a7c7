"""Windows end where rows keep one waiting or the source fails, and are full otherwise."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import pfengine
from pfengine import windows
from pfengine.row_thread import ROWS, RowThread
from pfengine.rows import size

Make = Callable[..., Path]


@pytest.fixture(scope="module")
def engine(make_checkpoint: Make) -> pfengine.Engine:
    return pfengine.load(make_checkpoint("bert"), criterion="never", precision="fp32")


@pytest.fixture(params=[0, 2], ids=["here", "workers"])
def any_engine(
    engine: pfengine.Engine, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[pfengine.Engine]:
    """Also as on a GPU, where a window is read while the one before it is computed."""
    if not request.param:
        yield engine
        return
    with ThreadPoolExecutor(request.param) as pool:
        monkeypatch.setattr(pfengine.Engine, "_workers", pool)
        yield engine


def ids(token: int) -> dict[str, Any]:
    return {"input_ids": [token, 7, 8]}


def arriving(rows: Iterator[Any]) -> RowThread[Any]:
    return RowThread(contextlib.nullcontext(rows), size)


def test_a_slow_generator_is_answered_row_by_row(any_engine: pfengine.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "MAX_WAIT_SECONDS", 0.01)
    given: list[int] = []

    def slow() -> Iterator[Any]:
        for i in range(4):
            time.sleep(0.05)
            given.append(i)
            yield ids(5 + i)

    expected = any_engine.classify([ids(5 + i) for i in range(4)])
    for i, answer in enumerate(any_engine.stream(slow())):
        assert answer == expected[i]
        assert len(given) == i + 1  # no later row was waited for


def test_a_row_that_has_arrived_is_answered_before_the_next_comes(any_engine: pfengine.Engine) -> None:
    more = threading.Event()

    def rows() -> Iterator[Any]:
        yield ids(5)
        yield ids(6)
        assert more.wait(30)
        yield ids(7)

    answers = any_engine.stream(arriving(rows()))
    assert len(list(itertools.islice(answers, 2))) == 2
    more.set()
    assert len(list(answers)) == 1


@pytest.mark.parametrize("as_they_come", [False, True])
def test_a_fast_source_fills_its_windows(
    engine: pfengine.Engine, as_they_come: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(windows, "MAX_WAIT_SECONDS", 10.0)  # however busy the machine is
    rows = [ids(5)] * 1000
    inputs = arriving(iter(rows)) if as_they_come else iter(rows)
    found = list(windows.read_windows(engine.tokenizer, inputs, "truncate", 300, flush_when_slow=True))
    sizes = [len(window) for window in found if window]
    assert sum(sizes) == 1000
    assert all(size >= 300 for size in sizes[:-1])
    assert [row.row_id for window in found for row in window] == list(range(1000))  # type: ignore[union-attr]


@pytest.mark.parametrize("error", [OSError("the disk is gone"), ValueError("no such row"), MemoryError()], ids=repr)
@pytest.mark.parametrize("as_they_come", [False, True])
@pytest.mark.parametrize("before", [0, 30, 400])
def test_rows_before_a_failure_are_answered(
    any_engine: pfengine.Engine, before: int, as_they_come: bool, error: Exception
) -> None:
    def failing() -> Iterator[Any]:
        yield from [ids(5)] * before
        raise error

    inputs = arriving(failing()) if as_they_come else failing()
    stream = any_engine.stream(inputs, batch_tokens=64)
    assert len(list(itertools.islice(stream, before))) == before
    with pytest.raises(type(error)) as caught:
        next(stream)
    assert caught.value is error
    for call in (any_engine.classify, any_engine.predict, any_engine.layer_logits):
        with pytest.raises(type(error)):
            call(failing())


def test_a_source_that_goes_on_after_failing_is_left_alone(engine: pfengine.Engine) -> None:
    class Broken:
        def __iter__(self) -> Broken:
            return self

        def __next__(self) -> Any:
            raise OSError("again")

    with pytest.raises(OSError, match="again"):
        engine.classify(Broken())


def test_ctrl_c_in_a_source_is_not_held_back(engine: pfengine.Engine) -> None:
    def interrupted() -> Iterator[Any]:
        yield ids(5)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        next(engine.stream(interrupted()))


def test_what_is_read_ahead_is_bounded() -> None:
    read: list[str] = []

    def rows(text: str) -> Iterator[str]:
        for _ in range(10_000):
            read.append(text)
            yield text

    for text, most in (("short", ROWS), ("x" * 300_000, 4)):
        read.clear()
        source = arriving(rows(text))
        assert next(source) == text
        time.sleep(0.05)
        assert len(read) <= most + 2
        source.close()


def test_the_reader_closes_its_source() -> None:
    closed = threading.Event()

    @contextlib.contextmanager
    def opened() -> Iterator[Iterator[int]]:
        try:
            yield iter([1, 2])
        finally:
            closed.set()

    assert list(RowThread(opened(), lambda row: 1)) == [1, 2]
    assert closed.wait(10)


@pytest.mark.parametrize(
    ("inputs", "size", "expected"),
    [
        ("a text", None, True), (("a", "pair"), None, True), ([ids(5)], None, True), ([], None, True),
        ([ids(5)] * 3, None, True), ((ids(5), "abc"), None, True), ([ids(5)] * 4, None, False),
        (["a text of more"], None, True), (["a text"] * 2, None, False), ([""] * 300, None, False),
        ([ids(5)] * 4, 4, True), ([ids(5)] * 4, 3, False), ([ids(5)] * 2, 1, False), (iter([ids(5)]), None, False),
        ([3, None], None, True),
    ],
)  # fmt: skip
def test_one_batch_needs_no_worker(inputs: Any, size: int | None, expected: bool) -> None:
    """Batches have 10 tokens, rows of ids 3; a character is taken for a token."""
    assert windows.are_one_batch(inputs, 10, size) == expected


def test_workers_are_for_more_than_one_batch(engine: pfengine.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    with ThreadPoolExecutor(2) as pool:
        submitted: list[Any] = []
        submit = pool.submit
        monkeypatch.setattr(pool, "submit", lambda *task: submitted.append(task) or submit(*task))
        monkeypatch.setattr(pfengine.Engine, "_workers", pool)
        rows = [ids(5 + i) for i in range(20)]
        answers = engine.classify(rows)
        assert not submitted
        assert engine.classify(rows, batch_tokens=30) == answers
        assert len(submitted) == 2
        assert list(engine.stream(iter(rows))) == answers
        assert len(submitted) == 3
