"""Batches on their way: buffers, a stream and CUDA graphs, and what the host does while the GPU works.

A batch runs segment by segment, from one tested exit to the next. The host queues a segment before the one in front of
it has ended, and reads how many rows the one before that has left: so the GPU never waits for it, stops one segment
after the last row has left, and gets launches as small as the batch has become.
"""

from __future__ import annotations

import contextlib
import logging
import math
import queue
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..batch import Packed
from ..kernels.survivors import MAX_ROWS
from ..surroundings import undisturbed
from .cuda_model import Bucket, Buffers, Plan, PreparedModel, run_segment

log = logging.getLogger("pfengine")

LANES = 2  # one computes while another is copied to or answered
MAX_GRAPHS = 1024  # of a lane; one a segment and bucket
GRAPH_MEMORY = 1 / 16  # of the GPU's: most that the graphs of a lane may hold
LATE_TOKENS = 512  # up to here a layer takes as long with fewer tokens, so that rows stay and exits run beside it
LATE_TOKENS = 512  # up to here a layer takes as long with fewer tokens: rows stay together, exits run beside layers
LEAST_ROWS, LEAST_TOKENS = 64, 1024  # of a lane's buffers, so that they seldom grow


class Rule(NamedTuple):
    """When rows leave. For R rows and n layers; a row leaves after the last layer at the latest."""

    tested: bytes  # [n]: is the exit after this layer tested?
    entropy: float  # a row leaves where its entropy is below this
    layers: np.ndarray | None  # int64 [R]: or after this layer, 1-based, or a later one


_recording = threading.Lock()  # lanes replay side by side, but record one after the other


class Recorder:
    """Records launches as CUDA graphs that share their memory: they run one after the other, on one stream."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.clear()

    def clear(self) -> None:
        """Nothing of what was recorded is replayed any more."""
        self.pool, self.bytes = torch.cuda.graph_pool_handle(), 0

    def record(self, launches: Callable[[], None]) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        with _recording:
            before = torch.cuda.memory_reserved(self.device)
            graph.capture_begin(pool=self.pool, capture_error_mode="thread_local")
            try:
                launches()
            finally:
                graph.capture_end()
            self.bytes += max(0, torch.cuda.memory_reserved(self.device) - before)
        return graph


class Graphs:
    """Launches recorded once and replayed: at the second time of a key, since the first one compiles what it needs.

    The least recently used goes when there are more than `most`, all of them when they hold more than `most_bytes`.
    """

    def __init__(self, recorder: Recorder, most: int, most_bytes: float) -> None:
        self.recorder, self.most, self.most_bytes = recorder, most, most_bytes
        self.known: OrderedDict[Hashable, torch.cuda.CUDAGraph | None] = OrderedDict()

    def run(self, key: Hashable, launches: Callable[[], None]) -> None:
        """What `launches` does, on the current stream. It must launch the same each time, at the same addresses."""
        graph = None
        if key in self.known:
            graph = self.known[key] or self.record(launches)
        if graph is None:
            launches()
        else:
            graph.replay()
        self.known[key] = graph
        self.known.move_to_end(key)
        if len(self.known) > self.most:
            self.known.popitem(last=False)

    def record(self, launches: Callable[[], None]) -> torch.cuda.CUDAGraph | None:
        """None where that is disturbed, as by a thread that waits for the whole device; the next time is another."""
        try:
            return self.recorder.record(launches)
        except RuntimeError as error:
            log.warning("launches could not be recorded as a CUDA graph and run one by one this time: %s", error)
            return None

    def has_too_much(self) -> bool:
        return self.recorder.bytes > self.most_bytes

    def clear(self) -> None:
        self.known.clear()
        self.recorder.clear()


class Lane:
    """One batch at a time, of any size: buffers grow to the largest so far."""

    def __init__(self, weights: PreparedModel) -> None:
        self.weights = weights
        self.device = weights.embedding.tables[0].device
        self.graphs: Graphs | None = None  # without a GPU there is nothing to record
        self.stream: torch.cuda.Stream | None = None
        self.side: torch.cuda.Stream | None = None
        if self.device.type == "cuda":
            memory = torch.cuda.get_device_properties(self.device).total_memory
            self.graphs = Graphs(Recorder(self.device), MAX_GRAPHS, GRAPH_MEMORY * memory)
            self.stream, self.side = torch.cuda.Stream(self.device), torch.cuda.Stream(self.device)
        self.left = self.host(len(weights.layers), 2, dtype=torch.int32)  # behind each layer: rows, tokens
        with undisturbed(), self.on_stream():  # which is the one that reads what is filled in here
            self.fit(LEAST_ROWS, LEAST_TOKENS)

    def host(self, *shape: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(*shape, dtype=dtype, device="cpu", pin_memory=self.stream is not None)

    def fit(self, rows: int, tokens: int) -> None:
        """Room for so many."""
        self.buffers = Buffers(self.weights, rows, tokens)
        self.inbox = self.host(len(self.buffers.inbox), dtype=torch.int64)
        self.logits = self.host(rows, self.buffers.labels, dtype=torch.float32)
        self.exit_layers = self.host(rows, dtype=torch.int64)
        if self.graphs is not None:
            self.graphs.clear()

    def run(self, packed: Packed, rule: Rule, places: np.ndarray, logits: np.ndarray, exit_layers: np.ndarray) -> None:
        with undisturbed(), self.on_stream():
            rows, tokens = len(places), len(packed.ids)
            bucket = Bucket.of(rows, tokens, int(np.diff(packed.cu_seqlens).max()))
            tested = bytes(
                is_tested and behind is not None
                for is_tested, behind in zip(rule.tested, self.weights.exits, strict=True)
            )
            try:
                if bucket.rows > self.buffers.rows or bucket.tokens > self.buffers.tokens:
                    self.fit(max(bucket.rows, self.buffers.rows), max(bucket.tokens, self.buffers.tokens))
                self.send(packed, rule, bucket)
                late = any(tested[:-1]) and bucket.tokens <= LATE_TOKENS
                self.compute(Plan(tested, rule.layers is not None, late), bucket)
                self.logits[:rows].copy_(self.buffers.logits[:rows], non_blocking=True)
                self.exit_layers[:rows].copy_(self.buffers.exit_layers[:rows], non_blocking=True)
            finally:
                if self.stream is not None:
                    self.stream.synchronize()  # nothing of this batch is under way when the next one comes
                if self.graphs is not None and self.graphs.has_too_much():
                    self.graphs.clear()
            logits[places] = self.logits.numpy()[:rows]
            exit_layers[places] = self.exit_layers.numpy()[:rows]

    @contextlib.contextmanager
    def on_stream(self) -> Iterator[None]:
        if self.stream is None:
            yield
        else:
            with torch.cuda.device(self.device), torch.cuda.stream(self.stream):
                yield

    def send(self, packed: Packed, rule: Rule, bucket: Bucket) -> None:
        """A batch into the inbox, in one copy. The one before has been answered, so it is free."""
        buffers, rows, tokens = self.buffers, len(packed.row_ids), len(packed.ids)
        counts, threshold, layers, bounds = (part.numpy() for part in buffers.inputs(self.inbox, buffers.rows))
        counts[:] = rows, tokens
        threshold[:] = rule.entropy
        bounds[: rows + 1] = packed.cu_seqlens
        if rule.layers is not None:
            layers[:rows] = rule.layers
        ids = buffers.ids(self.inbox, bucket).numpy()
        for to, values in zip(ids, (packed.ids, packed.positions, packed.types), strict=True):
            to[:tokens] = values
        used = buffers.ids_from + ids.size
        buffers.inbox[:used].copy_(self.inbox[:used], non_blocking=True)
        buffers.exit_layers[:rows].zero_()

    def compute(self, plan: Plan, bucket: Bucket) -> None:
        segments = plan.segments()
        arrived: list[torch.cuda.Event | None] = []
        for i, segment in enumerate(segments):
            if i >= 2:
                event = arrived[i - 2]
                if event is not None:
                    event.synchronize()
                rows, tokens = self.left[i - 2].tolist()
                if not rows:
                    return
                if not plan.late:
                    bucket = Bucket.of(rows, tokens, bucket.longest)
            self.segment(plan, segment, bucket)
            if i < len(segments) - 1:
                self.left[i].copy_(self.buffers.batch_of(plan, i + 1, bucket).counts, non_blocking=True)
                arrived.append(None if self.stream is None else self.stream.record_event())

    def segment(self, plan: Plan, segment: tuple[int, int], bucket: Bucket) -> None:
        def launches() -> None:
            run_segment(self.weights, self.buffers, plan, segment, bucket, self.side)

        if self.graphs is None:
            launches()
        else:
            self.graphs.run((plan, segment, bucket), launches)


class CudaModel:
    """`ops.model.run_model` of a prepared model, on the GPU where its weights are; from several threads if need be."""

    LANES, MAX_ROWS = LANES, MAX_ROWS  # batches at once, rows of a batch

    def __init__(self, weights: PreparedModel) -> None:
        self.weights = weights
        device = weights.embedding.tables[0].device
        if device.type == "cuda":
            torch.cuda.current_stream(device).synchronize()  # the weights are there for every stream
        self.free: queue.LifoQueue[Lane] = queue.LifoQueue()
        self.made = 0
        self.making, self.warming = threading.Lock(), threading.Lock()

    def __call__(
        self,
        packed: Packed,
        rule: Rule,
        open_from: int,
        places: np.ndarray,
        logits: np.ndarray,
        exit_layers: np.ndarray,
    ) -> None:
        """R rows: logits[places[r]] and exit_layers[places[r]] become the answers of row r.

        open_from means nothing here: layers are computed in one piece. Raises ValueError for sizes that do not fit.
        """
        rows, n = len(places), len(self.weights.layers)
        if len(packed.cu_seqlens) != rows + 1 or len(rule.tested) != n:
            raise ValueError(
                f"cu_seqlens has {len(packed.cu_seqlens)} numbers for {rows} rows, tested {len(rule.tested)} for {n} "
                f"layers; expected {rows + 1} and {n}"
            )
        if rows > MAX_ROWS:
            raise ValueError(f"there are {rows} rows; expected at most {MAX_ROWS} in a batch")
        lane = self.take()
        try:
            lane.run(packed, rule, places, logits, exit_layers)
        finally:
            self.free.put(lane)

    def warmup(self, packed: Packed, tested: bytes) -> None:
        """Record what batches of this size launch, all the way, in every lane; tested: as in `Rule`."""
        rule, rows = Rule(tested, -math.inf, None), len(packed.row_ids)
        places, logits = np.arange(rows), np.empty((rows, self.weights.labels), np.float32)
        with self.warming:  # two that each hold a lane would wait for each other's
            lanes: list[Lane] = []
            try:
                for _ in range(LANES):
                    lanes.append(self.take())
                for lane in lanes:
                    for _ in range(2):  # recorded at the second time
                        lane.run(packed, rule, places, logits, np.empty(rows, np.int64))
            finally:
                for lane in lanes:
                    self.free.put(lane)

    def take(self) -> Lane:
        """A lane that nobody uses; a new one while there may be more."""
        with contextlib.suppress(queue.Empty):
            return self.free.get_nowait()
        with self.making:
            if self.made < LANES:
                lane = Lane(self.weights)
                self.made += 1
                return lane
        return self.free.get()
