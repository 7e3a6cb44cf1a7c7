"""Segments as CUDA graphs: recorded, kept, and replayed, one by one or many without Python in between."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch

from ..kernels.scratch import Scratch
from ..options import switch
from .cuda_buffers import Bucket
from .cuda_segment import Segment

log = logging.getLogger("pfengine")

SWITCH = "PFENGINE_CUDA_GRAPHS"
MOST_GRAPHS = 2048  # per lane; one for each segment and bucket
Key = tuple[Segment, Bucket]

_recording = threading.Lock()  # lanes may replay at the same time, but record one after the other


def is_on() -> bool:
    """Are launches recorded? Raises ConfigError for what is neither 0 nor 1."""
    return switch(SWITCH, default=True)


class Left(NamedTuple):
    """What is left of a flight; before the GPU has said so, an upper bound."""

    rows: int
    tokens: int
    queries: int


class Graph(Protocol):
    """The part of torch.cuda.CUDAGraph that is used here."""

    def replay(self) -> None: ...
    def raw_cuda_graph(self) -> int: ...
    def raw_cuda_graph_exec(self) -> int: ...


class Loop(Protocol):
    """The part of `_C.SegmentLoop` that is used here. It launches graphs that it is given."""

    def add(self, segment: int, bucket: Bucket, graph: int) -> None: ...
    def clear(self) -> None: ...
    def drop_oldest(self) -> tuple[int, tuple[int, int, int, int]]: ...
    def run(
        self, segments: list[int], slots: list[int], next: int, rows: int, tokens: int, queries: int,
        bucket: Bucket | None, longest: int, ticket: int, stream: int,
    ) -> tuple[int, int, int, int]: ...  # fmt: skip


class Recorder:
    """Records launches as CUDA graphs. These hold no memory of their own: launches must take theirs from `scratch`."""

    def __init__(self, scratch: Sequence[Scratch]) -> None:
        self.scratch = scratch

    def record(self, launches: Callable[[], None]) -> Graph:
        graph = torch.cuda.CUDAGraph(keep_graph=True)
        with _recording, self._fixed():
            # a pool of its own, as torch keeps believing that the pool of a failed recording is still in use
            pool = torch.cuda.graph_pool_handle()
            with torch.inference_mode(False):  # torch makes tensors of its own here once, which others will write
                graph.capture_begin(pool, capture_error_mode="thread_local")
            try:
                launches()
            except BaseException:
                with contextlib.suppress(RuntimeError):  # it would raise the same failure again
                    self._end(graph, pool)
                raise
            self._end(graph, pool)
            graph.instantiate()
        return graph

    def _end(self, graph: torch.cuda.CUDAGraph, pool: tuple[int, int]) -> None:
        """End a recording. Where it has failed, some versions of torch would go on directing allocations to the pool,
        and never free memory again that several streams have used.
        """
        try:
            graph.capture_end()
        except RuntimeError:
            device = self.scratch[0].memory.device.index
            with contextlib.suppress(RuntimeError, AttributeError):  # other versions have done it already
                torch._C._cuda_endAllocateToPool(device, pool)
                torch._C._cuda_releasePool(device, pool)
            raise

    @contextlib.contextmanager
    def _fixed(self) -> Iterator[None]:
        for each in self.scratch:
            each.fixed = True
        try:
            yield
        finally:
            for each in self.scratch:
                each.fixed = False


class Graphs:
    """Graphs by key. The first time of a key compiles what it needs, the second records, later ones replay.

    The graph that was used longest ago is dropped when there are more than `most`.
    """

    def __init__(self, recorder: Any, loop: Loop | None = None, most: int = MOST_GRAPHS) -> None:
        """recorder: a `Recorder`. loop: replays several segments at once; None: they are replayed one by one."""
        self.recorder, self.loop, self.most = recorder, loop, most
        self.known: OrderedDict[Key, Graph | None] = OrderedDict()
        self.numbers: dict[Segment, int] = {}  # what the loop calls them, for good

    def run(self, key: Key, launches: Callable[[], None]) -> None:
        """Do what `launches` does, on the current stream. It must launch the same each time, at the same addresses."""
        graph = None
        if key in self.known:
            graph = self.known[key] or self._record(key, launches)
        if graph is None:
            launches()
        else:
            graph.replay()
        self.known.setdefault(key, None)
        self.known.move_to_end(key)
        if len(self.known) > self.most:
            self._drop_oldest(key)

    def used(self, keys: Sequence[Key]) -> None:
        """These graphs, which are all recorded, were launched as part of another one."""
        if len(self.known) < self.most:  # nothing is dropped yet
            return
        for key in keys:
            self.known.move_to_end(key)
            graph = self.known[key]
            if graph is not None and self.loop is not None:
                self.loop.add(self.number(key[0]), key[1], graph.raw_cuda_graph_exec())

    def recorded(self, key: Key) -> Graph | None:
        return self.known.get(key)

    def number(self, segment: Segment) -> int:
        """What the loop calls a segment."""
        return self.numbers.setdefault(segment, len(self.numbers))

    def clear(self) -> None:
        """All graphs have to be recorded anew, as memory has moved. What they launch stays compiled."""
        if self.loop is not None:
            self.loop.clear()  # first, as it launches graphs that it does not keep alive
        self.known = OrderedDict.fromkeys(self.known)

    def _record(self, key: Key, launches: Callable[[], None]) -> Graph | None:
        """None where recording fails, as when a thread waits for the whole device; it is tried again the next time."""
        try:
            graph: Graph = self.recorder.record(launches)
        except RuntimeError as error:
            log.warning("launches could not be recorded as a CUDA graph and run one by one this time: %s", error)
            return None
        self.known[key] = graph  # keeps alive what the loop may launch from now on, even if the first replay fails
        if self.loop is not None:
            self.loop.add(self.number(key[0]), key[1], graph.raw_cuda_graph_exec())
        return graph

    def _drop_oldest(self, newest: Key) -> None:
        """What is not recorded goes first, but for the newest, which would never be recorded then.

        Of graphs only the loop knows when it has used them.
        """
        unrecorded = next((key for key, graph in self.known.items() if graph is None and key != newest), None)
        if unrecorded is not None or self.loop is None:
            del self.known[unrecorded or next(iter(self.known))]
            return
        number, bucket = self.loop.drop_oldest()
        (segment,) = (segment for segment, known in self.numbers.items() if known == number)
        del self.known[segment, Bucket(*bucket)]
