"""What the host does around the launches: buckets, recorded launches, buffers that grow, several batches at once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pfengine import extension
from pfengine.exits import Entropy, Never, Patience, Replay
from pfengine.kernels.decide import Form
from pfengine.ops import cuda_flight, cuda_lanes
from pfengine.ops.cuda_buffers import Bucket, PreparedModel, RuleForm
from pfengine.ops.cuda_lanes import Lane
from pfengine.ops.cuda_model import LANES, MAX_FLIGHTS
from pfengine.ops.cuda_segment import Position, run_segment, segments
from pfengine.ops.decide import signal
from pfengine.ops.flight import Joining

from .stand_ins import FakeRecorder, lane_of, on_device, with_graphs

Make = Callable[..., Path]
OPTIONS: dict[str, Any] = {
    "head": {"type": "past-future", "pooler": "per-layer"},
    "config": {"num_hidden_layers": 3, "hidden_size": 16, "num_attention_heads": 1, "intermediate_size": 24},
}


@pytest.fixture
def recorder() -> FakeRecorder:
    return FakeRecorder()


def test_buckets() -> None:
    assert Bucket.of(1, 1, 1) == (1, 16, 64, 16)
    assert Bucket.of(5, 70, 33) == (8, 128, 64, 128)
    assert Bucket.of(5, 70, 65) == (8, 128, 128, 128)
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


needs_loop = pytest.mark.skipif(not extension.has_cpu(), reason=extension.status())


@pytest.mark.parametrize(
    ("criterion", "overlap_tokens", "how"),
    [
        pytest.param(Entropy(0.9), 0, "one by one", marks=pytest.mark.slow),
        pytest.param(Entropy(0.9), 0, "loop", marks=needs_loop),
        (Entropy(0.9), 0, "whole"),
        pytest.param(Replay([3, 1, 3, 2]), 512, "loop", marks=[needs_loop, pytest.mark.slow]),
        pytest.param(Never(), 0, "one by one", marks=pytest.mark.slow),
        pytest.param(Patience(1), 0, "loop", marks=[needs_loop, pytest.mark.slow]),
        pytest.param(Patience(1), 0, "whole", marks=pytest.mark.slow),
        *(pytest.param(Replay([3, 1, 3, 2]), 512, how, marks=pytest.mark.wide) for how in ("one by one", "whole")),
        pytest.param(Never(), 0, "loop", marks=[needs_loop, pytest.mark.slow, pytest.mark.wide]),
        pytest.param(Never(), 0, "whole", marks=[pytest.mark.slow, pytest.mark.wide]),
        pytest.param(Patience(1), 0, "one by one", marks=[pytest.mark.slow, pytest.mark.wide]),
    ],
    ids=repr,
)
def test_recorded_launches_give_the_same_answers(
    make_checkpoint: Make, random_rows: Any, device: torch.device, recorder: FakeRecorder, criterion: Any,
    overlap_tokens: int, how: str, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(cuda_flight, "OVERLAP_TOKENS", overlap_tokens)
    if device.type == "cuda":
        pytest.skip("the GPU has graphs of its own")
    path = make_checkpoint("bert", **OPTIONS)
    engine, plain = with_graphs(path, device, recorder, how), on_device(path, device)[0]
    for seed in range(2, 7):  # the buckets are the same
        rows = random_rows([seed, 2, 3, 5])
        ours, expected = (each.predict(rows, criterion=criterion) for each in (engine, plain))
        np.testing.assert_array_equal(ours.exit_layers, expected.exit_layers)
        np.testing.assert_array_equal(ours.logits, expected.logits)
    assert recorder.recordings
    lane: Any = lane_of(engine)
    if how == "loop":
        assert lane.graphs.loop.launched
    if how == "whole":  # where rows do not stay together each segment has a size of its own
        assert bool(lane.whole.made) == (overlap_tokens > 0)


@needs_loop
def test_a_launch_that_fails_in_the_loop_is_that_batchs_error(
    make_checkpoint: Make, random_rows: Any, device: torch.device, recorder: FakeRecorder
) -> None:
    engine = with_graphs(make_checkpoint("bert", **OPTIONS), device, recorder, "loop")
    rows = random_rows([2, 2, 3, 5])
    expected = [engine.predict(rows, criterion="never").logits for _ in range(2)]
    loop: Any = lane_of(engine).graphs.loop  # type: ignore[union-attr]
    loop.failing = 719
    with pytest.raises(RuntimeError, match="cuGraphLaunch failed: CUDA error 719"):
        engine.predict(rows, criterion="never")
    loop.failing = 0
    np.testing.assert_array_equal(engine.predict(rows, criterion="never").logits, expected[0])


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


@pytest.mark.slow
def test_buffers_grow_to_the_largest_batch(
    make_checkpoint: Make, random_rows: Any, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_lanes, "ROOM_FOR_ROWS", 2)
    monkeypatch.setattr(cuda_lanes, "ROOM_FOR_TOKENS", 16)
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


@pytest.mark.slow
def test_batches_are_joined_as_rows_leave(
    make_checkpoint: Make, random_rows: Any, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, model = on_device(make_checkpoint("bert", **OPTIONS), device)
    rows, options = random_rows([3, 9, 2, 5] * 3), {"criterion": Replay([3, 1, 1] * 4), "batch_size": 3}
    expected = engine.predict(rows, **options)
    sizes, join = [], cuda_flight.CudaFlight.join

    def noted(self: Any, other: Any) -> None:
        sizes.append(len(self) + len(other))
        join(self, other)

    monkeypatch.setattr(cuda_flight.CudaFlight, "join", noted)
    model.joining = Joining(1e-3, 3000, 1e-4)
    found = engine.predict(rows, **options)
    np.testing.assert_array_equal(found.exit_layers, expected.exit_layers)
    np.testing.assert_array_equal(found.logits, expected.logits)
    assert sizes
    assert max(sizes) <= 3


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
    assert len(model.free) == model.made == 1
    np.testing.assert_array_equal(engine.predict(rows, criterion="never").logits, expected)


def test_once_scratch_has_grown_nothing_is_allocated(
    make_checkpoint: Make, random_rows: Any, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a graph holds no memory of its own, and none can be given back while it has its address."""
    engine, model = on_device(make_checkpoint("bert", **OPTIONS), device)
    rows = random_rows([3, 9, 2])
    expected = engine.predict(rows, criterion=Entropy(0.9)).logits
    allocated: list[str] = []

    def run(*arguments: Any) -> None:
        with monkeypatch.context() as patch:
            for name in ("empty", "zeros", "full", "empty_like", "empty_strided"):
                patch.setattr(torch, name, lambda *_, name=name, **__: allocated.append(name))
            run_segment(*arguments)

    monkeypatch.setattr(cuda_lanes, "run_segment", run)
    found = engine.predict(rows, criterion=Entropy(0.9)).logits
    np.testing.assert_array_equal(found, expected)
    assert not allocated
    assert not any(scratch.is_too_small() for scratch in model.take().scratch)
