"""The carrier of flights on the GPU, and `prepare_model`, which makes it."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections import deque
from typing import Any

import numpy as np
import torch

from ..batch import Packed
from ..kernels.survivors import MAX_ROWS
from . import Norm, cuda_graphs, cuda_whole
from .cuda_buffers import Bucket, PreparedModel
from .cuda_flight import CudaFlight
from .cuda_graphs import Left
from .cuda_lanes import Lane
from .cuda_linear import Linear
from .cuda_ops import Embedding
from .cuda_segment import Segment
from .cuda_token_flight import CudaTokenFlight
from .cuda_warmup import compile_smaller, nobody_leaves
from .flight import Answers, Carrier, Joining
from .reference import PreparedBlock
from .rule import ExitRule

LANES = 2  # threads served at once: one flight computes while another is sent or answered
# under way at once: of LANES threads that merge, two that wait at the stops of `merging` and one that goes on; beside
# them one for each of a server's threads, and as many for a user's
MAX_FLIGHTS = (2 + 3) * LANES


class FreeLanes:
    """Lanes that no flight has. The one that came last is taken first: it has recorded what runs most.

    Unlike queue.LifoQueue it is reentrant: garbage collection may put a lane back while this thread takes one.
    """

    def __init__(self) -> None:
        self._lanes: deque[Lane] = deque()
        self._tokens: queue.SimpleQueue[None] = queue.SimpleQueue()  # at most as many as there are lanes

    def put(self, lane: Lane) -> None:
        self._lanes.append(lane)
        self._tokens.put(None)

    def __len__(self) -> int:
        return len(self._lanes)

    def take(self, wait: bool) -> Lane:
        """Raises queue.Empty where there is none and this does not wait for one."""
        self._tokens.get(wait)
        return self._lanes.pop()


class CudaModel(Carrier):
    """The carrier of a prepared model, on the GPU that holds its weights.

    At most MAX_FLIGHTS flights are under way. `start` waits until one of them is done or dropped.
    """

    worker_threads, max_flights, max_rows, may_join = LANES, MAX_FLIGHTS, MAX_ROWS, True
    joining: Joining | None = None

    def __init__(self, weights: PreparedModel) -> None:
        self.weights = weights
        self.flight = CudaTokenFlight if weights.tags else CudaFlight
        device = weights.embedding.tables[0].device
        if device.type == "cuda":
            torch.cuda.current_stream(device).synchronize()  # the weights are there for every stream
        self.free = FreeLanes()
        self.mergers = threading.Semaphore(LANES)
        self.made = 0
        self.records, self.whole = cuda_graphs.is_on(), cuda_whole.is_on()  # of lanes that are made from now on
        self.warmed: set[tuple[Segment, Bucket]] = set()  # compiled by `warmup`, for whatever lane
        self.making, self.warming = threading.Lock(), threading.Lock()

    def start(self, packed: Packed, slots: np.ndarray, answers: Answers) -> CudaFlight:
        rows, tokens = len(slots), len(packed.ids)
        lengths = {len(part) for part in (packed.positions, packed.types)}
        if len(packed.cu_seqlens) != rows + 1 or lengths != {tokens} or packed.cu_seqlens[-1] != tokens:
            raise ValueError(
                f"cu_seqlens has {len(packed.cu_seqlens)} numbers for {rows} rows and ends at {packed.cu_seqlens[-1]} "
                f"for {tokens} tokens; expected {rows + 1} numbers that end at {tokens}"
            )
        if not 1 <= rows <= self.max_rows:
            raise ValueError(f"there are {rows} rows; expected 1 to {self.max_rows} in a flight")
        self._check_ids(packed)
        if self.weights.tags:
            packed.words()  # checks them
        return self.flight(self.take(), self.free.put, packed, slots, answers)

    def _check_ids(self, packed: Packed) -> None:
        """Raise IndexError for an id outside its table, for which the kernel would give zeros."""
        for name, ids, table in zip(("id", "position", "type"), packed[:3], self.weights.embedding.tables, strict=True):
            if table is None:
                continue
            if np.maximum.reduce(ids.view(np.uint64)) >= table.shape[0]:  # without its sign a negative number is large
                bad = int(ids.min() if ids.min() < 0 else ids.max())
                raise IndexError(f"a token has the {name} {bad}; expected 0 to {len(table) - 1}")

    def warmup(self, packed: Packed, rule: ExitRule) -> None:
        """Record what flights of this size launch through all layers, for as many lanes as threads are served.

        What they launch after rows have left is compiled, too; it is recorded when it is first used.
        """
        rows, n = len(packed.row_ids), len(self.weights.layers)
        slots, count = np.zeros(rows, np.int64), max(len(packed.ids), 2)
        nobody = nobody_leaves(rule, count)
        with self.warming:
            lanes: list[Lane] = []
            try:
                for _ in range(self.worker_threads):
                    lanes.append(self.take())
                for lane in lanes:
                    for _ in range(2):  # the second time records
                        answers = Answers(0, count, self.weights.labels)
                        self.flight(lane, _keep, packed, slots, answers).advance(nobody, n)
                longest = int(np.diff(packed.cu_seqlens).max())
                compile_smaller(lanes[0], nobody, Left(rows, len(packed.ids), len(packed.ids)), longest, self.warmed)
            finally:
                for lane in lanes:
                    self.free.put(lane)

    def take(self) -> Lane:
        """A free lane; a new one while there may be more; otherwise the next that becomes free."""
        with contextlib.suppress(queue.Empty):
            return self.free.take(wait=False)
        with self.making:
            if self.made < MAX_FLIGHTS:
                lane = Lane(self.weights, self.records, self.whole)
                self.made += 1
                return lane
        return self.free.take(wait=True)


def _keep(lane: Lane) -> None:
    """Called when a flight of `warmup` ends, whose lane the next one takes over."""


def prepare_model(
    embedding: Embedding,
    projection: Linear | None,
    layers: list[list[PreparedBlock]],
    exits: list[tuple[Any, int] | None],
    renormalises: bool = False,
    final_norm: Norm | None = None,
) -> CudaModel:
    return CudaModel(PreparedModel(embedding, projection, layers, exits, renormalises, final_norm))
