"""What the host does around the launches: buckets, recorded launches, buffers that grow, several batches at once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pfengine
from pfengine import reader
from pfengine.exits import Entropy, Never, Patience, Replay
from pfengine.kernels.decide import Form
from pfengine.kernels.launch import recording
from pfengine.model import build
from pfengine.ops import cuda, cuda_flight, cuda_lanes
from pfengine.ops.cuda_buffers import Bucket, PreparedModel, RuleForm
from pfengine.ops.cuda_lanes import Graphs, Lane, Recorder
from pfengine.ops.cuda_model import LANES, MAX_FLIGHTS, CudaModel
from pfengine.ops.cuda_segment import Position, run_segment, segments
from pfengine.ops.decide import signal

Make = Callable[..., Path]
OPTIONS: dict[str, Any] = {
    "head": {"type": "past-future", "pooler": "per-layer"},
    "config": {"num_hidden_layers": 3},
}


class Recording:
    """Stands in for a CUDA graph: launches with the arguments of the first time, whatever they hold by now."""

    def __init__(self, launches: Callable[[], None]) -> None:
        with recording() as self.recorded:
            launches()

    def replay(self) -> None:
        for one in self.recorded:
            one.run()


class FakeRecorder:
    bytes = 0

    def __init__(self) -> None:
        self.recordings, self.cleared = 0, 0

    def record(self, launches: Callable[[], None]) -> Recording:
        self.recordings += 1
        self.bytes += 10
        return Recording(launches)

    def clear(self) -> None:
        self.cleared += 1
        self.bytes = 0


@pytest.fixture
def recorder() -> FakeRecorder:
    return FakeRecorder()


def on_device(path: Path, device: torch.device) -> tuple[pfengine.Engine, CudaModel]:
    engine = pfengine.load(path, precision="fp32", criterion="never")
    engine.model, engine.device = build(reader.read(path), cuda, torch.float32, device), device
    assert isinstance(engine.model.carrier, CudaModel)
    return engine, engine.model.carrier


def with_graphs(path: Path, device: torch.device, recorder: Any, most: int = 99, most_bytes: float = 1e9) -> Any:
    engine, model = on_device(path, device)
    lane = Lane(model.weights)
    lane.graphs = Graphs(recorder, most, most_bytes)
    model.free.put(lane)
    model.made = MAX_FLIGHTS
    return engine


def test_buckets() -> None:
    assert Bucket.of(1, 1, 1) == (1, 16, 16, 16)
    assert Bucket.of(5, 70, 33) == (8, 128, 64, 128)
    assert Bucket.of(5, 70, 33, queries=33) == (8, 128, 64, 64)
    assert Bucket.of(4096, 65536, 512) == (4096, 65536, 512, 65536)


def test_segments_end_where_rows_may_leave() -> None:
    exits: Any = [(None, 0), (None, 0), None, (None, 0), (None, 0)]
    weights = PreparedModel(None, None, [[]] * 5, exits)  # type: ignore[arg-type]

    def way(tested: list[int], until: int = 5, at: Position | None = None, overlap: bool = False) -> list[Any]:
        found = segments(weights, at or Position(), RuleForm(), bytes(tested), until, True, overlap)
        return [(one.at.layer + 1, one.last, one.tested, one.stops, one.pending) for one in found]

    assert way([0] * 5) == [(1, 5, False, False, False)]
    assert way([1, 0, 1, 1, 1]) == [(1, 1, True, False, False), (2, 4, True, False, False), (5, 5, False, False, False)]
    assert way([1] * 5, 2, Position(1)) == [(2, 2, True, True, False)]
    assert way([1] * 5, 3) == [(1, 1, True, False, False), (2, 2, True, False, False), (3, 3, False, True, False)]
    late = way([0, 1, 0, 1, 0], overlap=True)
    assert late == [(1, 2, False, False, False), (3, 4, False, False, True), (5, 5, False, False, True)]


def test_where_rows_are_after_a_segment() -> None:
    exits: Any = [(None, 0), None, (None, 0), (None, 0)]
    weights = PreparedModel(None, None, [[]] * 4, exits)  # type: ignore[arg-type]
    rule = RuleForm((Form("entropy", "<", "running"),))
    way = segments(weights, Position(), rule, bytes([1, 0, 1, 0]), 4, True, False)
    assert [one.after(weights) for one in way] == [
        Position(1, 1, True, True, 1), Position(3, 0, True, True, 2), Position(4, 0, False, False, 2),
    ]  # fmt: skip
    (stop,) = segments(weights, way[1].at, rule, bytes(4), 2, True, False)
    assert stop.after(weights) == Position(2, 1, False, True, 1)  # the past of the first exit has not been moved
    carries_nothing = way[1]._replace(rule=RuleForm((Form("entropy", "<"),)))
    assert carries_nothing.after(weights) == Position(3, 0, True, True, 1)


@pytest.mark.parametrize(
    ("criterion", "overlap_tokens"),
    [
        (Entropy(0.9), 0),
        *(
            pytest.param(each, overlap, marks=pytest.mark.slow)
            for each, overlap in ((Never(), 0), (Patience(1), 0), (Replay([3, 1, 3, 2]), 512))
        ),
    ],
    ids=repr,
)
def test_recorded_launches_give_the_same_answers(
    make_checkpoint: Make, random_rows: Any, device: torch.device, recorder: FakeRecorder, criterion: Any,
    overlap_tokens: int, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(cuda_flight, "OVERLAP_TOKENS", overlap_tokens)
    if device.type == "cuda":
        pytest.skip("the GPU has graphs of its own")
    path = make_checkpoint("bert", **OPTIONS)
    engine, plain = with_graphs(path, device, recorder), on_device(path, device)[0]
    for seed in range(2, 5):  # the buckets are the same
        rows = random_rows([seed, 2, 3, 5])
        ours, expected = (each.predict(rows, criterion=criterion) for each in (engine, plain))
        np.testing.assert_array_equal(ours.exit_layers, expected.exit_layers)
        np.testing.assert_array_equal(ours.logits, expected.logits)
    assert recorder.recordings


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tokee", "sentee-max"])
def test_tag_heads_are_recorded_and_warmed_up_too(
    make_checkpoint: Make, random_rows: Any, device: torch.device, recorder: FakeRecorder, name: str
) -> None:
    if device.type == "cuda":
        pytest.skip("the GPU has graphs of its own")
    config = {"num_hidden_layers": 3, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
    path = make_checkpoint("bert", head="tagger", labels=3, config=config)
    engine, (plain, model) = with_graphs(path, device, recorder), on_device(path, device)
    for seed in range(2, 5):
        rows = random_rows([seed, 7, 1])
        values = signal("normalised_entropy", torch.from_numpy(plain.layer_logits(rows)[0])).numpy()
        half = np.nanmedian(values if name == "tokee" else np.nanmax(values, axis=1))
        criterion = f"{name}:{half}" + ",1" * (name == "tokee")
        ours, expected = (each.predict(rows, criterion=criterion) for each in (engine, plain))
        np.testing.assert_array_equal(ours.exit_layers, expected.exit_layers)
        np.testing.assert_array_equal(ours.logits, expected.logits)
        assert len(np.unique(ours.exit_layers)) > 2  # and the padding's
    assert recorder.recordings
    plain.warmup(rows=(1,), tokens=(3,))
    assert model.made == LANES
    np.testing.assert_array_equal(plain.predict(rows, criterion=criterion).logits, expected.logits)


def test_launches_are_recorded_the_second_time_and_the_oldest_forgotten(recorder: FakeRecorder) -> None:
    ran: list[str] = []
    graphs = Graphs(recorder, most=2, most_bytes=25)  # type: ignore[arg-type]
    for key in "aaab":
        graphs.run(key, lambda key=key: ran.append(key))  # type: ignore[misc]
    assert recorder.recordings == 1
    assert ran == ["a", "a", "b"]  # run, recorded (which is what the stand-in calls it for), run
    graphs.run("c", lambda: None)
    assert list(graphs.known) == ["b", "c"]
    graphs.run("c", lambda: None)
    graphs.run("b", lambda: None)
    assert graphs.has_too_much()
    graphs.clear()
    assert not graphs.known
    assert not graphs.has_too_much()


def test_launches_that_cannot_be_recorded_still_run(
    recorder: FakeRecorder, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[int] = []
    graphs = Graphs(recorder, most=2, most_bytes=25)  # type: ignore[arg-type]

    def fail(_: Any) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    with monkeypatch.context() as patch:
        patch.setattr(FakeRecorder, "record", lambda self, launches: fail(launches))
        for _ in range(2):
            graphs.run("a", lambda: ran.append(1))
    assert len(ran) == 2
    assert "could not be recorded" in caplog.text
    graphs.run("a", lambda: ran.append(1))
    assert recorder.recordings == 1


def test_a_recording_that_fails_ends_and_the_next_one_has_other_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch has it: `capture_end` says again what failed, and leaves the pool of that recording unusable."""
    pools, ended = iter(range(9)), []

    class Graph:
        failed = False

        def capture_begin(self, pool: Any, capture_error_mode: str) -> None:
            self.pool = pool

        def capture_end(self) -> None:
            ended.append(self.pool)
            if self.failed:
                raise RuntimeError("operation failed due to a previous error during capture")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph, raising=False)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: next(pools), raising=False)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
    recorder = Recorder(torch.device("cuda", 0))
    assert recorder.record(lambda: None).pool == 0  # type: ignore[attr-defined]

    def interrupted() -> None:
        monkeypatch.setattr(Graph, "failed", True)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        recorder.record(interrupted)
    monkeypatch.setattr(Graph, "failed", False)
    assert recorder.record(lambda: None).pool == 1  # type: ignore[attr-defined]
    assert ended == [0, 0, 1]


def test_graphs_that_hold_too_much_memory_are_dropped(
    make_checkpoint: Make, random_rows: Any, device: torch.device, recorder: FakeRecorder
) -> None:
    if device.type == "cuda":
        pytest.skip("the GPU has graphs of its own")
    engine = with_graphs(make_checkpoint("bert", **OPTIONS), device, recorder, most_bytes=5)
    before = recorder.cleared
    for _ in range(2):
        engine.predict(random_rows([5, 6]), criterion="never")
    assert recorder.cleared == before + 1
    engine.predict(random_rows([5, 6]), criterion="never")


@pytest.mark.slow
def test_buffers_grow_to_the_largest_batch(
    make_checkpoint: Make, random_rows: Any, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_lanes, "LEAST_ROWS", 2)
    monkeypatch.setattr(cuda_lanes, "LEAST_TOKENS", 16)
    engine, model = on_device(make_checkpoint("bert", **OPTIONS), device)
    few = random_rows([3, 4])
    before = engine.predict(few, criterion="never")
    many = random_rows([2] * 10 + [40, 30])
    engine.predict(many, criterion=Entropy(0.9))
    lane = model.take()
    assert lane.buffers.sizes[:2] == (16, 128)
    model.free.put(lane)
    np.testing.assert_array_equal(engine.predict(few, criterion="never").logits, before.logits)


def test_more_rows_than_a_batch_may_have_are_cut(
    make_checkpoint: Make, random_rows: Any, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, model = on_device(make_checkpoint("bert", **OPTIONS), device)
    rows = random_rows([2, 1, 3, 2, 1])
    expected = engine.predict(rows, criterion=Entropy(0.9))
    monkeypatch.setattr(model, "max_rows", 2)
    found = engine.predict(rows, criterion=Entropy(0.9))
    np.testing.assert_array_equal(found.logits, expected.logits)


@pytest.mark.slow
def test_several_threads(
    make_checkpoint: Make, random_rows: Any, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_at_a_time = threading.Lock()  # the interpreter cannot do two, but segments of batches take turns

    def run(*arguments: Any) -> None:
        with one_at_a_time:
            run_segment(*arguments)

    monkeypatch.setattr(cuda_lanes, "run_segment", run)
    engine, model = on_device(make_checkpoint("bert", **OPTIONS), device)
    rows = random_rows([3, 9, 1, 17])
    expected = engine.predict(rows, criterion=Entropy(0.9)).logits
    found: list[np.ndarray] = []
    threads = [
        threading.Thread(target=lambda: found.append(engine.predict(rows, criterion=Entropy(0.9)).logits))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for logits in found:
        np.testing.assert_array_equal(logits, expected)
    assert len(found) == 3
    assert model.made <= MAX_FLIGHTS


@pytest.mark.slow
def test_warmup_changes_no_answer(make_checkpoint: Make, random_rows: Any, device: torch.device) -> None:
    engine, model = on_device(make_checkpoint("bert", **OPTIONS), device)
    engine.criterion = Entropy(0.9)
    rows = random_rows([3, 9])
    before = engine.predict(rows)
    engine.warmup(rows=(2,), tokens=(6,))
    assert model.made == LANES
    after = engine.predict(rows)
    np.testing.assert_array_equal(after.logits, before.logits)
    np.testing.assert_array_equal(after.exit_layers, before.exit_layers)


def test_a_batch_that_fails_leaves_the_model_usable(
    make_checkpoint: Make, random_rows: Any, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, model = on_device(make_checkpoint("bert", **OPTIONS), device)
    rows = random_rows([3, 9])
    expected = engine.predict(rows, criterion="never").logits

    def fail(*_: Any) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(Lane, "run", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            engine.predict(rows, criterion="never")
    assert model.free.qsize() == model.made == 1
    np.testing.assert_array_equal(engine.predict(rows, criterion="never").logits, expected)
