"""Stand-ins for CUDA graphs and for the driver that launches them, and engines over the kernels."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch

import pfengine
from pfengine import extension, reader
from pfengine.kernels.launch import recording
from pfengine.model import build
from pfengine.ops import cuda, reference
from pfengine.ops.cuda_buffers import LEAST_LONGEST, LEAST_TOKENS
from pfengine.ops.cuda_graphs import Graphs
from pfengine.ops.cuda_lanes import Lane
from pfengine.ops.cuda_model import MAX_FLIGHTS, CudaModel
from pfengine.ops.cuda_whole import WholeFlights

from ..ops.fake_driver import FakeDriver


class Recording:
    """Stands in for a CUDA graph: launches with the arguments of the first time, whatever they hold by now."""

    made: ClassVar[list[Recording]] = []

    def __init__(self, launches: Callable[[], None]) -> None:
        with recording() as self.recorded:
            launches()
        self.made.append(self)

    def replay(self) -> None:
        for one in self.recorded:
            one.run()

    def raw_cuda_graph(self) -> int:
        """Its place in `made`, from 1 on."""
        return self.made.index(self) + 1

    raw_cuda_graph_exec = raw_cuda_graph


class Made(Mapping[int, Callable[[], None]]):
    """What `Recording.raw_cuda_graph` stands for."""

    def __getitem__(self, graph: int) -> Callable[[], None]:
        return Recording.made[graph - 1].replay

    def __len__(self) -> int:
        return len(Recording.made)

    def __iter__(self) -> Iterator[int]:
        return iter(range(1, len(self) + 1))


class FakeRecorder:
    def __init__(self) -> None:
        self.recordings = 0

    def record(self, launches: Callable[[], None]) -> Recording:
        self.recordings += 1
        return Recording(launches)


class FakeLoop:
    """`_C.SegmentLoop` over a stand-in for the CUDA driver, which replays a `Recording` at once."""

    def __init__(self, lane: Lane) -> None:
        self.launched, self.failing = 0, 0  # failing: what the next launch gives

        @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
        def launch(graph: int, stream: int) -> int:
            self.launched += 1
            if not self.failing:
                Recording.made[graph - 1].replay()
            return self.failing

        @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)
        def query(stream: int) -> int:
            return 0

        self.kept = launch, query
        addresses = (ctypes.cast(each, ctypes.c_void_p).value for each in self.kept)
        words = lane.words.data_ptr(), len(lane.words)
        self.loop = extension._C.SegmentLoop(*addresses, *words, LEAST_TOKENS, LEAST_LONGEST)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loop, name)


def beside_torch(
    path: Path, device: torch.device, dtype: torch.dtype, plain_ops: Any = reference
) -> tuple[pfengine.Engine, pfengine.Engine]:
    """On the device, and in plain torch."""
    ckpt = reader.read(path)
    plain, ours = (pfengine.load(path, precision="fp32", criterion="never") for _ in range(2))
    plain.model = build(ckpt, plain_ops, dtype)
    ours.model, ours.device = build(ckpt, cuda, dtype, device), device
    assert isinstance(ours.model.carrier, CudaModel)
    return ours, plain


def on_device(path: Path, device: torch.device) -> tuple[pfengine.Engine, CudaModel]:
    engine = pfengine.load(path, precision="fp32", criterion="never")
    engine.model, engine.device = build(reader.read(path), cuda, torch.float32, device), device
    assert isinstance(engine.model.carrier, CudaModel)
    return engine, engine.model.carrier


def with_graphs(path: Path, device: torch.device, recorder: Any, how: str = "one by one") -> Any:
    """An engine with a single lane, whose graphs are stand-ins. how: "one by one", "loop" or "whole"."""
    engine, model = on_device(path, device)
    lane = Lane(model.weights)
    lane.graphs = Graphs(recorder, FakeLoop(lane) if how == "loop" else None)
    if how == "whole":
        lane.whole = WholeFlights(FakeDriver(Made()), lane.graphs)
    model.free.put(lane)
    model.made = MAX_FLIGHTS
    return engine


def lane_of(engine: Any) -> Lane:
    """The only one."""
    lane = engine.model.carrier.free.take(wait=False)
    engine.model.carrier.free.put(lane)
    return lane
