"""Graphs that are recorded, kept and replayed, over a stand-in for torch's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch

from pfengine.errors import ConfigError
from pfengine.kernels.scratch import Scratch, using
from pfengine.kernels.scratch import empty as scratch_empty
from pfengine.ops import cuda_graphs, cuda_whole
from pfengine.ops.cuda_buffers import Bucket, RuleForm
from pfengine.ops.cuda_graphs import Graphs, Recorder
from pfengine.ops.cuda_segment import Position, Segment

CPU = torch.device("cpu")
BUCKET = Bucket(1, 16, 64, 16)
A, B, C = ((Segment(Position(), last, RuleForm()), BUCKET) for last in (1, 2, 3))


@pytest.mark.parametrize(("module", "default"), [(cuda_graphs, True), (cuda_whole, False)])
def test_switches(monkeypatch: pytest.MonkeyPatch, module: Any, default: bool) -> None:
    monkeypatch.delenv(module.SWITCH, raising=False)
    assert module.is_on() is default
    for value, on in (("", default), ("0", False), ("1", True)):
        monkeypatch.setenv(module.SWITCH, value)
        assert module.is_on() is on
    monkeypatch.setenv(module.SWITCH, "yes")
    with pytest.raises(ConfigError, match=f"{module.SWITCH} is 'yes'; it must be 0 or 1"):
        module.is_on()


class Recorded:
    def __init__(self, number: int) -> None:
        self.number = number

    def replay(self) -> None: ...
    def raw_cuda_graph(self) -> int:
        return self.number

    def raw_cuda_graph_exec(self) -> int:
        return self.number


class FakeRecorder:
    recordings = 0

    def record(self, launches: Callable[[], None]) -> Recorded:
        launches()
        self.recordings += 1
        return Recorded(self.recordings)


class FakeLoop:
    """Knows which graphs it was given, and forgets them in that order."""

    def __init__(self) -> None:
        self.graphs: dict[Any, int] = {}

    def add(self, segment: int, bucket: Bucket, graph: int) -> None:
        self.graphs.pop((segment, bucket), None)
        self.graphs[segment, bucket] = graph

    def clear(self) -> None:
        self.graphs.clear()

    def drop_oldest(self) -> tuple[int, tuple[int, int, int, int]]:
        segment, bucket = next(iter(self.graphs))
        del self.graphs[segment, bucket]
        return segment, tuple(bucket)  # type: ignore[return-value]

    def run(self, *_: Any) -> tuple[int, int, int, int]:
        raise NotImplementedError


def test_launches_are_recorded_the_second_time_and_the_oldest_forgotten() -> None:
    recorder, ran = FakeRecorder(), []
    graphs = Graphs(recorder, most=2)
    for key in (A, A, A, B):
        graphs.run(key, lambda key=key: ran.append(key))  # type: ignore[misc]
    assert recorder.recordings == 1
    assert ran == [A, A, B]  # run, recorded (which is what the stand-in calls it for), run
    graphs.run(C, lambda: None)
    assert list(graphs.known) == [A, C]  # B was only run, so that nothing but compiling it is done again
    for key in (C, B):
        graphs.run(key, lambda: None)
    assert list(graphs.known) == [C, B]  # of two graphs the one used longest ago makes room for the newcomer
    graphs.clear()
    before = graphs.recorder.recordings
    graphs.run(C, lambda: None)
    assert graphs.recorder.recordings == before + 1  # it was compiled long ago


def test_with_a_loop_the_graph_that_the_loop_used_longest_ago_is_forgotten() -> None:
    loop = FakeLoop()
    graphs = Graphs(FakeRecorder(), loop, most=2)
    for key in (A, B, B, A):
        graphs.run(key, lambda: None)
    assert list(loop.graphs) == [(graphs.number(B[0]), BUCKET), (graphs.number(A[0]), BUCKET)]
    graphs.run(C, lambda: None)  # a newcomer stays, or it would never be recorded
    assert set(graphs.known) == {A, C}
    graphs.run(C, lambda: None)
    assert list(loop.graphs) == [(graphs.number(A[0]), BUCKET), (graphs.number(C[0]), BUCKET)]
    graphs.used([A])  # in another graph
    assert list(loop.graphs) == [(graphs.number(C[0]), BUCKET), (graphs.number(A[0]), BUCKET)]
    graphs.run(B, lambda: None)
    graphs.run(C, lambda: None)  # which goes before a graph does
    assert set(graphs.known) == {A, C}
    graphs.clear()
    assert not loop.graphs
    assert not any(graphs.known.values())


def test_what_the_loop_may_launch_is_kept_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    """It knows addresses. That of a graph which is gone may be another graph's by now."""
    loop = FakeLoop()
    graphs = Graphs(FakeRecorder(), loop)
    graphs.run(A, lambda: None)
    with monkeypatch.context() as patch:

        def fail(*_: Any) -> None:
            raise MemoryError("out of memory")  # the first replay sends the graph to the GPU

        patch.setattr(Recorded, "replay", fail)
        with pytest.raises(MemoryError):
            graphs.run(A, lambda: None)
    assert loop.graphs == {(graphs.number(A[0]), BUCKET): 1}
    assert isinstance(graphs.known[A], Recorded)
    graphs.run(A, lambda: None)

    def clear() -> None:
        assert graphs.known[A] is not None
        loop.graphs.clear()

    monkeypatch.setattr(loop, "clear", clear)
    graphs.clear()
    assert graphs.known[A] is None


def test_many_kinds_of_batches_are_recorded_even_where_not_all_can_be_kept() -> None:
    recorder = FakeRecorder()
    graphs = Graphs(recorder, FakeLoop(), most=2)
    eager = []
    for _ in range(10):
        for key in (A, B, C):
            for _ in range(3):
                graphs.run(key, lambda: eager.append(1))
        assert len(graphs.known) <= 2
    assert recorder.recordings >= 10
    assert len(eager) <= 60 + recorder.recordings  # a recording calls it, too


def test_launches_that_cannot_be_recorded_still_run(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[int] = []
    graphs = Graphs(FakeRecorder())

    def fail(*_: Any) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    with monkeypatch.context() as patch:
        patch.setattr(FakeRecorder, "record", fail)
        for _ in range(2):
            graphs.run(A, lambda: ran.append(1))
    assert len(ran) == 2
    assert "could not be recorded" in caplog.text
    graphs.run(A, lambda: ran.append(1))
    assert graphs.recorder.recordings == 1


class Graph:
    """As torch has it: `capture_end` says again what failed. A pool that is still recording cannot be recorded to."""

    failing = False
    ended = 0
    pools: ClassVar[list[Any]] = []  # to which torch directs allocations

    def __init__(self, keep_graph: bool) -> None:
        assert keep_graph

    def capture_begin(self, pool: Any, capture_error_mode: str) -> None:
        assert capture_error_mode == "thread_local"
        assert not torch.is_inference_mode_enabled()
        self.pools.append(pool)

    def capture_end(self) -> None:
        Graph.ended += 1
        if Graph.failing:  # as torch 2.10 to 2.12 do, before they end the pool
            raise RuntimeError("operation failed due to a previous error during capture")
        self.pools.clear()

    def instantiate(self) -> None: ...


@pytest.mark.parametrize("at_the_end", [True, False])
@pytest.mark.parametrize("kind", [KeyboardInterrupt, RuntimeError, MemoryError])
def test_a_recording_that_fails_ends_and_the_next_one_succeeds(
    monkeypatch: pytest.MonkeyPatch, kind: type[BaseException], at_the_end: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph, raising=False)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 7))
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", lambda _, pool: Graph.pools.remove(pool), raising=False)
    released: list[Any] = []
    monkeypatch.setattr(torch._C, "_cuda_releasePool", lambda _, pool: released.append(pool), raising=False)
    monkeypatch.setattr(Graph, "ended", 0)
    scratch = Scratch(CPU)
    recorder = Recorder([scratch])

    def fails() -> None:
        assert scratch.fixed
        monkeypatch.setattr(Graph, "failing", True)
        if not at_the_end:
            raise kind("stopped")

    with torch.inference_mode(), pytest.raises(RuntimeError if at_the_end else kind):
        recorder.record(fails)
    assert Graph.ended == 1
    assert not Graph.pools
    assert released == [(0, 7)]
    assert not scratch.fixed
    monkeypatch.setattr(Graph, "failing", False)
    recorder.record(lambda: None)
    assert Graph.ended == 2


def test_scratch_gives_the_same_memory_again() -> None:
    scratch = Scratch(CPU)
    with using(scratch):
        first = scratch_empty(3, 5, dtype=torch.float32, device=CPU)
        assert scratch.is_too_small()
        assert first.shape == (3, 5)
    scratch.grow()
    assert not scratch.is_too_small()
    addresses = []
    for _ in range(2):
        scratch.begin()
        with using(scratch):
            parts = [scratch_empty(3, 5, dtype=torch.float32, device=CPU)]
        addresses.append(parts[0].data_ptr())
    assert addresses == [scratch.memory.data_ptr()] * 2
    assert scratch_empty(2, dtype=torch.bool, device=CPU).data_ptr() != addresses[0]  # outside it is torch's


def test_scratch_that_could_not_grow_is_as_good_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = Scratch(CPU)
    scratch.empty((100,), torch.float32)
    new_empty = torch.Tensor.new_empty

    def fail(self: torch.Tensor, size: int) -> torch.Tensor:
        if size:
            raise torch.cuda.OutOfMemoryError("out of memory")
        return new_empty(self, size)

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "new_empty", fail)
        with pytest.raises(torch.cuda.OutOfMemoryError):
            scratch.grow()
    scratch.begin()
    assert scratch.empty((100,), torch.float32).shape == (100,)
    assert scratch.is_too_small()
    scratch.grow()
    assert not scratch.is_too_small()


def test_parts_of_scratch_do_not_overlap_and_nothing_is_allocated_while_recording() -> None:
    scratch = Scratch(CPU)
    shapes = [(0, 4), (1, 1), (7, 9), (300,)]
    for _ in range(2):
        scratch.begin()
        parts = [scratch.empty(shape, torch.float16) for shape in shapes]
        if scratch.is_too_small():
            scratch.grow()
    for i, part in enumerate(parts):
        part.fill_(i)
    assert all((part == i).all() for i, part in enumerate(parts))
    assert all(part.data_ptr() % 64 == 0 for part in parts if part.numel())
    scratch.fixed = True
    with pytest.raises(RuntimeError, match="a graph wants 1792 bytes of scratch memory, and there are 1280"):
        scratch.empty((200,), torch.float16)
