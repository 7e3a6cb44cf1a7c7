"""What may run at the same time: streams, threads, lanes."""

from __future__ import annotations

import contextlib
import gc
import inspect
import queue
import re
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from pfengine.exits import Entropy
from pfengine.kernels.launch import Launch
from pfengine.ops import cuda_lanes, cuda_ops, cuda_segment
from pfengine.ops.cuda_lanes import Lane
from pfengine.ops.cuda_model import FreeLanes

from .stand_ins import on_device

Make = Callable[..., Path]
Span = tuple[str, int, int]  # name, and the first and last byte


def span(name: str, x: Tensor) -> Span:
    return name, x.data_ptr(), x.data_ptr() + x.numel() * x.element_size()


class Watched:
    """Notes what launches read and write between the fork and the join of two streams."""

    def __init__(self) -> None:
        self.where, self.forks = "", 0
        self.used: dict[str, list[Span]] = {"side": [], "main": []}
        self.written: dict[str, list[Span]] = {"side": [], "main": []}

    def fork(self, _: Any, launches: Callable[[], None]) -> None:
        self.forks += 1
        self.where = "side"
        launches()
        self.where = "main"

    def join(self, _: Any) -> None:
        for one, other in (("side", "main"), ("main", "side")):
            for name, first, last in self.written[one]:
                clashes = [what for what, begin, end in self.used[other] if first < end and begin < last]
                assert not clashes, f"{one} writes {name}, and {other} uses {clashes} meanwhile"
            assert self.written[one]
        self.where = ""
        for spans in (*self.used.values(), *self.written.values()):
            spans.clear()

    def run(self, launch: Launch, run: Callable[[Launch], None]) -> None:
        tensors = {name: x for name, x in launch.arguments.items() if isinstance(x, Tensor) and x.numel()}
        before = {name: x.clone() for name, x in tensors.items()}
        run(launch)
        if self.where:
            stored = set(re.findall(r"tl\.store\((\w+)", inspect.getsource(launch.kernel.fn)))
            self.used[self.where] += [span(name, x) for name, x in tensors.items()]
            self.written[self.where] += [
                span(name, x) for name, x in tensors.items() if name in stored or not same(x, before[name])
            ]


def same(x: Tensor, other: Tensor) -> bool:
    return torch.equal(x.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))


@pytest.mark.parametrize("head", [{"type": "past-future", "pooler": "per-layer"}, {"type": "linear"}])
def test_an_exit_beside_a_layer_writes_nothing_that_the_layer_reads_nor_the_other_way(
    make_checkpoint: Make, random_rows: Any, device: torch.device, monkeypatch: pytest.MonkeyPatch, head: Any
) -> None:
    if device.type == "cuda":
        pytest.skip("the interpreter shows what each launch uses")
    config = {"num_hidden_layers": 4, "hidden_size": 16, "num_attention_heads": 1, "intermediate_size": 24}
    engine, _ = on_device(make_checkpoint("bert", head=head, config=config), device)
    watched, run = Watched(), Launch.run
    monkeypatch.setattr(cuda_segment, "_fork", watched.fork)
    monkeypatch.setattr(cuda_segment, "_join", watched.join)
    monkeypatch.setattr(Launch, "run", lambda launch: watched.run(launch, run))
    engine.predict(random_rows([3, 2]), criterion=Entropy(0.0))
    assert watched.forks == 3  # one for each exit but the last


def test_the_lane_that_was_used_last_is_taken_first() -> None:
    """It has recorded what runs most. Of lanes in turn each would have to record everything."""
    free, (one, other) = FreeLanes(), (object.__new__(Lane) for _ in range(2))
    with pytest.raises(queue.Empty):
        free.take(wait=False)
    for lane in (one, other):
        free.put(lane)
    assert len(free) == 2
    assert free.take(wait=False) is other
    free.put(other)
    assert [free.take(wait=True) for _ in range(2)] == [other, one]
    assert not len(free)
    threading.Timer(0.02, free.put, [one]).start()
    assert free.take(wait=True) is one


def test_a_thread_makes_the_context_of_a_device_its_own_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch does so only when it needs one, and the first that our driver calls find may be none."""
    asked: list[int] = []
    lane: Any = object.__new__(Lane)
    lane.device = torch.device("cuda", 7)
    lane.stream = SimpleNamespace(query=lambda: asked.append(threading.get_ident()))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: lane.stream)
    for name in ("device", "stream"):
        monkeypatch.setattr(torch.cuda, name, lambda _: contextlib.nullcontext())

    def work() -> None:
        for _ in range(2):
            with lane.active():
                pass

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
        thread.join()
    assert len(asked) == 2


def test_counts_are_made_once_for_all_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cpu")
    for number in (0, 1, 7, 4095, 4096, 70_000):
        found = cuda_ops.full(number, device)
        assert (found.tolist(), found.dtype, found.shape) == ([number], torch.int32, (1,))
        assert found.data_ptr() % 16 == 0  # as kernels are compiled for
        assert not found.is_inference()
    storages = {cuda_ops.full(number, device).untyped_storage().data_ptr() for number in range(4000)}
    assert len(storages) == 1


def test_a_lanes_stream_is_nobody_elses_until_the_lane_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch would give the 33rd stream that is asked for to whoever asks, while the first is still in use."""
    made: list[int] = []

    class Driver:
        def new_stream(self) -> int:
            made.append(len(made) + 7)
            return made[-1]

    class Owner:
        pass

    stream = SimpleNamespace(query=lambda: True)
    monkeypatch.setattr(cuda_lanes.cuda_driver, "driver", Driver)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "ExternalStream", lambda address, device: address)
    monkeypatch.setattr(cuda_lanes, "_idle", {})
    owners: list[Any] = [Owner() for _ in range(40)]
    device = torch.device("cuda", 0)
    streams = [cuda_lanes._own_stream(owner, device) for owner in owners]
    assert len({*streams}) == 40
    del owners[3]
    gc.collect()
    another = Owner()
    assert cuda_lanes._own_stream(another, device) == streams[3]  # type: ignore[arg-type,comparison-overlap]
    assert len(made) == 40
