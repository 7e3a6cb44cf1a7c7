"""Batches that are joined as rows leave: every row gets what it gets without, and they are joined where that pays."""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pfengine
from pfengine import merging
from pfengine.exits import Entropy, Never, Patience, Replay
from pfengine.merging import Merger, is_worth_it, measured, stops_of
from pfengine.ops.flight import Answers, Joining
from pfengine.ops.rule import ExitRule

Make = Callable[..., Path]
GPU_LIKE = Joining(130e-6, 3000, 300e-6)
OPTIONS: dict[str, Any] = {"head": {"type": "past-future", "pooler": "per-layer"}, "config": {"num_hidden_layers": 6}}


def test_small_flights_are_worth_joining_and_large_ones_are_not() -> None:
    assert is_worth_it([200, 300], 8, GPU_LIKE)
    assert is_worth_it([200, 300, 1000], 8, GPU_LIKE)
    assert not is_worth_it([200, 300], 2, GPU_LIKE)  # two layers take 260 us
    assert not is_worth_it([3000, 3000], 8, GPU_LIKE)  # a layer of both takes as long as two layers
    assert is_worth_it([2900, 500], 8, GPU_LIKE)
    assert not is_worth_it([200, 300], 8, GPU_LIKE._replace(join=1.0))


@given(st.lists(st.floats(1, 5000), min_size=2, max_size=4), st.integers(1, 24), st.floats(0, 1e-3))
def test_more_layers_to_go_never_make_it_less_worth(tokens: list[float], layers: int, join: float) -> None:
    joining = GPU_LIKE._replace(join=join)
    assert is_worth_it(tokens, layers + 1, joining) >= is_worth_it(tokens, layers, joining)


def test_stops_are_tested_exits_at_a_third_and_two_thirds() -> None:
    every = ExitRule(bytes([1] * 12))
    assert stops_of(every, 12, GPU_LIKE) == [4, 8]
    assert stops_of(every, 12, GPU_LIKE._replace(join=700e-6)) == [4]  # after layer 8 only 520 us are left
    assert stops_of(ExitRule(bytes([0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0])), 12, GPU_LIKE) == [6]
    assert stops_of(ExitRule(bytes(12)), 12, GPU_LIKE) == []
    assert stops_of(ExitRule(bytes([1])), 1, GPU_LIKE) == []


@pytest.fixture
def mergers(monkeypatch: pytest.MonkeyPatch) -> list[Merger]:
    """All that were made."""
    made: list[Merger] = []

    class Noted(Merger):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            made.append(self)

    monkeypatch.setattr("pfengine.inference.Merger", Noted)
    return made


CRITERIA = [
    Entropy(0.95),
    Never(),
    Patience(1),
    Replay([6 if i % 4 == 0 else 1 + i % 2 for i in range(37)]),
    Replay([2] * 37),
]


@pytest.mark.parametrize("criterion", CRITERIA, ids=lambda criterion: repr(criterion)[:20])
@pytest.mark.parametrize("head", ["past-future", "linear"])
def test_each_row_gets_what_it_gets_without(
    make_checkpoint: Make, random_rows: Any, mergers: list[Merger], criterion: Any, head: str
) -> None:
    engine = pfengine.load(make_checkpoint("bert", **OPTIONS | {"head": {"type": head, "pooler": "per-layer"}}))
    rows = random_rows([1 + i % 9 for i in range(37)])
    options = {"criterion": criterion, "batch_size": 5}
    before = engine.predict(rows, **options)
    assert not mergers
    engine.model.carrier.joining = GPU_LIKE  # type: ignore[misc]
    after = engine.predict(rows, **options)
    np.testing.assert_array_equal(after.exit_layers, before.exit_layers)
    np.testing.assert_array_equal(after.logits, before.logits)
    assert sum(merger.joined for merger in mergers) == 0 or after.exit_layers.min() < 6
    if criterion is CRITERIA[3]:
        assert sum(merger.joined for merger in mergers) >= 2
    assert not any(merger.waiting for merger in mergers)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_batches(small: pfengine.Engine, data: st.DataObject) -> None:
    layers = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=30))
    lengths = [data.draw(st.integers(1, 6)) for _ in layers]
    generator = np.random.default_rng(0)
    rows = [{"input_ids": generator.integers(0, 20, length).tolist()} for length in lengths]
    options = {"criterion": Replay(layers), "batch_size": data.draw(st.integers(1, 7))}
    carrier: Any = small.model.carrier
    carrier.joining = None
    before = small.predict(rows, **options)
    carrier.joining = Joining(data.draw(st.floats(1e-6, 1e-3)), data.draw(st.integers(1, 40)), 1e-4)
    after = small.predict(rows, **options)
    np.testing.assert_array_equal(after.exit_layers, before.exit_layers)
    np.testing.assert_array_equal(after.logits, before.logits)


@pytest.fixture
def small(make_checkpoint: Make) -> pfengine.Engine:
    return pfengine.load(make_checkpoint("bert", head=OPTIONS["head"], config={"num_hidden_layers": 4}))


def test_joined_flights_are_no_larger_than_a_batch(
    make_checkpoint: Make, random_rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = pfengine.load(make_checkpoint("bert", **OPTIONS))
    carrier: Any = engine.model.carrier
    carrier.joining = GPU_LIKE
    flight, sizes = type(carrier.start(*one_row())), []
    join = flight.join

    def noted(self: Any, other: Any) -> None:
        sizes.append(len(self) + len(other))
        join(self, other)

    monkeypatch.setattr(flight, "join", noted)
    engine.predict(random_rows([3] * 40), criterion=Replay([1 if i % 3 else 6 for i in range(40)]), batch_size=6)
    assert sizes
    assert max(sizes) <= 6


def one_row() -> tuple[Any, np.ndarray, Answers]:
    zeros = np.zeros(2, np.int64)
    packed = pfengine.batch.Packed(zeros, np.arange(2), zeros, np.array([0, 2], np.int32), zeros[:1])
    return packed, zeros[:1], Answers(0, 1, 3)


def test_costs_are_measured_where_joining_can_pay(make_checkpoint: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = pfengine.load(make_checkpoint("bert", **OPTIONS))
    carrier: Any = engine.model.carrier
    engine.warmup(rows=(1,), tokens=(4,))
    assert carrier.joining is None  # a CPU's layers take as long as they have tokens
    monkeypatch.setattr(merging, "MOST_TOKENS", 64)
    found = measured(carrier, 6, engine.model.config.num_labels)
    assert 0 < found.layer < 1
    assert 16 <= found.flat_tokens <= 64
    assert 0 <= found.join < 1


def test_layers_that_take_longer_with_more_tokens_end_the_flat_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock of our own: up to 64 tokens a layer takes 1 ms, beyond that as long as it has tokens."""
    clock = [0.0]
    monkeypatch.setattr(merging.time, "perf_counter", lambda: clock[0])

    class Flight:
        def __init__(self, tokens: int) -> None:
            self.tokens = tokens

        def advance(self, rule: Any, until: int) -> None:
            clock[0] += until * 1e-3 * max(1, self.tokens / 64)

        def join(self, other: Any) -> None:
            clock[0] += 5e-3

        def slots(self) -> list[int]:
            return []

    class Carrier:
        def start(self, packed: Any, slots: Any, answers: Any) -> Any:
            return Flight(len(packed.ids))

    found = measured(Carrier(), 10, 2)  # type: ignore[arg-type]
    assert found.layer == pytest.approx(1e-3)
    assert found.flat_tokens == 64
    assert found.join == pytest.approx(5e-3)


class Room:
    """A carrier with room for a few flights, whose rows leave like a third at each stop."""

    def __init__(self, flights: int, turns: int) -> None:
        self.free: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.mergers = threading.Semaphore(turns)
        for _ in range(flights):
            self.free.put(None)

    def start(self, *_: Any) -> Going:
        self.free.get()
        return Going(self)


class Going:
    def __init__(self, room: Room) -> None:
        self.room, self.rows = room, 30

    def __len__(self) -> int:
        return self.rows

    def advance(self, rule: ExitRule, until: int) -> None:
        time.sleep(0.0005)
        self.rows = 0 if until == 12 else max(1, self.rows // 3)
        if not self.rows:
            self.room.free.put(None)

    def join(self, other: Going) -> None:
        self.rows, other.rows = self.rows + other.rows, 0
        self.room.free.put(None)


def test_many_threads_never_wait_for_each_others_flights() -> None:
    """Each holds two back and starts a third: without turns more than four threads would fill the room for good."""
    room, done = Room(10, 2), []
    batch: Any = SimpleNamespace(row_ids=range(30), ids=range(1200))

    def run() -> None:
        rule = ExitRule(bytes([1] * 12))
        merger = Merger(room, 12, rule, GPU_LIKE, 32, 4096)  # type: ignore[arg-type]
        merger.run([lambda: batch] * 30, SimpleNamespace(slots=lambda _: None))  # type: ignore[arg-type]
        done.append(merger)

    threads = [threading.Thread(target=run, daemon=True) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(done) == 12
    assert room.free.qsize() == 10
    assert sum(merger.joined > 0 for merger in done) >= 1
    assert room.mergers.acquire(blocking=False)  # turns are given back
    assert room.mergers.acquire(blocking=False)


@pytest.mark.skipif(sys.platform != "linux", reason="the GPU path needs triton, which is for Linux alone")
def test_a_gpus_carrier_may_join() -> None:
    from pfengine.ops.cuda_model import LANES, MAX_FLIGHTS, CudaModel

    assert CudaModel.may_join
    # threads that merge hold `STOPS` flights and wait for another, those of a server hold one: some room must be left
    assert MAX_FLIGHTS > LANES * (merging.STOPS + 1)
