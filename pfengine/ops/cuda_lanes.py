"""Lanes, in which flights run on the GPU: buffers, streams and CUDA graphs, one set per flight under way."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from ..batch import Packed
from ..torch_state import isolated
from .cuda_buffers import Bucket, Buffers, PreparedModel, RuleForm, Sizes
from .cuda_rule import fill_by_slot, numbers_of
from .cuda_segment import Segment, run_segment
from .rule import ExitRule

log = logging.getLogger("pfengine")

MAX_GRAPHS = 1024  # per lane; one for each segment and bucket
GRAPH_MEMORY = 1 / 16  # the share of the GPU's memory that the graphs of a lane may hold
LEAST_ROWS, LEAST_TOKENS, LEAST_CLAUSES = 64, 1024, 2  # of a lane's buffers, so that they seldom grow

_recording = threading.Lock()  # lanes may replay at the same time, but record one after the other


class Recorder:
    """Records launches as CUDA graphs. The graphs share their memory, so they run one after the other on one stream."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.clear()

    def clear(self) -> None:
        """Begin anew; nothing recorded so far may be replayed."""
        self.pool, self.bytes = torch.cuda.graph_pool_handle(), 0

    def record(self, launches: Callable[[], None]) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        with _recording:
            before = torch.cuda.memory_reserved(self.device)
            graph.capture_begin(pool=self.pool, capture_error_mode="thread_local")
            try:
                launches()
            except BaseException:
                with contextlib.suppress(RuntimeError):  # it would raise the same failure again
                    graph.capture_end()
                self.pool = torch.cuda.graph_pool_handle()  # torch may believe that the old pool is still recording
                raise
            graph.capture_end()
            self.bytes += max(0, torch.cuda.memory_reserved(self.device) - before)
        return graph


class Graphs:
    """Graphs by key. The first time of a key compiles what it needs, the second records, later ones replay.

    The least recently used graph is dropped when there are more than `most`, all when they hold more than `most_bytes`.
    """

    def __init__(self, recorder: Recorder, most: int, most_bytes: float) -> None:
        self.recorder, self.most, self.most_bytes = recorder, most, most_bytes
        self.known: OrderedDict[Hashable, torch.cuda.CUDAGraph | None] = OrderedDict()

    def run(self, key: Hashable, launches: Callable[[], None]) -> None:
        """Do what `launches` does, on the current stream. It must launch the same each time, at the same addresses."""
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
        """None where recording fails, as when a thread waits for the whole device; it is tried again the next time."""
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
    """Room for one flight at a time, of any size: buffers grow to the largest flight so far."""

    def __init__(self, weights: PreparedModel) -> None:
        self.weights = weights
        self.device = weights.embedding.tables[0].device
        self.graphs: Graphs | None = None  # None without a GPU
        self.stream: torch.cuda.Stream | None = None
        self.side: torch.cuda.Stream | None = None
        if self.device.type == "cuda":
            memory = torch.cuda.get_device_properties(self.device).total_memory
            self.graphs = Graphs(Recorder(self.device), MAX_GRAPHS, GRAPH_MEMORY * memory)
            self.stream, self.side = torch.cuda.Stream(self.device), torch.cuda.Stream(self.device)
        n, labels = len(weights.layers), weights.labels
        self.counts = self.pinned(n + 1, 3, dtype=torch.int32)  # rows, tokens and queries after each segment
        numbers = LEAST_CLAUSES * (3 * n + (LEAST_TOKENS if weights.tags else LEAST_ROWS))
        with self.active():  # on the stream that reads what is filled in here
            self.fit(Sizes(LEAST_ROWS, LEAST_TOKENS, numbers, labels + 2))

    def pinned(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """Memory on the host, to and from which copies need not be waited for."""
        return torch.empty(*shape, dtype=dtype, device="cpu", pin_memory=self.stream is not None)

    def fit(self, sizes: Sizes) -> None:
        """Make buffers of these sizes; what was in the old ones is lost."""
        if self.graphs is not None:
            self.graphs.clear()  # they hold the addresses of the buffers
        buffers = Buffers(self.weights, sizes)
        inbox = self.pinned(len(buffers.inbox), dtype=torch.int64)
        inbox.zero_()
        logits = self.pinned(buffers.units, buffers.labels, dtype=torch.float32)
        exit_layers = self.pinned(buffers.units, dtype=torch.int64)
        self.buffers, self.inbox, self.logits, self.exit_layers = buffers, inbox, logits, exit_layers

    def has_room(self, sizes: Sizes) -> bool:
        return self.buffers.sizes.largest(sizes) == self.buffers.sizes

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Compute on the stream of this lane, whatever the caller has set in torch."""
        with isolated():
            if self.stream is None:
                yield
            else:
                with torch.cuda.device(self.device), torch.cuda.stream(self.stream):
                    yield

    def callers_stream(self) -> torch.cuda.Stream | None:
        """Outside of `active`: the stream on which the caller's tensors are computed."""
        return None if self.stream is None else torch.cuda.current_stream(self.device)

    def hand_over(self, tensors: Iterable[Tensor | None], stream: torch.cuda.Stream | None) -> None:
        """Give tensors made here to a caller: they are complete, and their memory is kept until `stream` is done."""
        if self.stream is None or stream is None:
            return
        self.stream.synchronize()
        for tensor in tensors:
            if tensor is not None:
                tensor.record_stream(stream)

    def take_over(self, tensor: Tensor, stream: torch.cuda.Stream | None) -> None:
        """Make a tensor that the caller's stream computes readable here."""
        if self.stream is not None and stream is not None and tensor.is_cuda:
            self.stream.wait_stream(stream)
            tensor.record_stream(self.stream)

    def synchronize(self) -> None:
        """Wait until nothing is under way."""
        for stream in (self.side, self.stream):
            if stream is not None:
                stream.synchronize()
        if self.graphs is not None and self.graphs.has_too_much():
            self.graphs.clear()

    def send(self, packed: Packed, rule: ExitRule, structure: RuleForm, slots: np.ndarray, bucket: Bucket) -> None:
        """Send a batch and its rule to the inbox, in one copy. Nothing of the flight before may be under way."""
        buffers, tokens = self.buffers, len(packed.ids)
        self.write_batch(packed.cu_seqlens)
        self.write_rule(rule, structure, slots)
        ids = buffers.ids(self.inbox, bucket.tokens).numpy()
        for to, values in zip(ids, (packed.ids, packed.positions, packed.types), strict=True):
            to[:tokens] = values
        used = buffers.ids_from + ids.size
        buffers.inbox[:used].copy_(self.inbox[:used], non_blocking=True)
        buffers.begin(len(packed.cu_seqlens) - 1, len(slots))

    def write_batch(self, bounds: np.ndarray) -> None:
        """Write counts and bounds of R rows, int32 [R + 1], to the inbox on the host."""
        counts, to = (part.numpy() for part in self.buffers.counts_and_bounds(self.inbox))
        counts[:] = len(bounds) - 1, bounds[-1]
        to[: len(bounds)] = bounds

    def write_rule(self, rule: ExitRule, structure: RuleForm, slots: np.ndarray) -> None:
        """Write the numbers of a rule for these slots, int64 [units], to the inbox on the host."""
        shared, by_slot = (part.numpy() for part in self.buffers.numbers(self.inbox, structure))
        shared[:] = numbers_of(rule)
        fill_by_slot(rule, structure.forms, slots, by_slot)

    def send_head(self) -> None:
        """Send the inbox, except the ids."""
        used = self.buffers.ids_from
        self.buffers.inbox[:used].copy_(self.inbox[:used], non_blocking=True)

    def run(self, segment: Segment, bucket: Bucket) -> None:
        def launches() -> None:
            run_segment(self.weights, self.buffers, segment, bucket, self.side)

        if self.graphs is None:
            launches()
        else:
            self.graphs.run((segment, bucket), launches)

    def count(self, number: int, batch: int, bucket: Bucket) -> torch.cuda.Event | None:
        """Copy the numbers of rows, tokens and queries to `counts[number]`. The event says when they have arrived."""
        counts, tokens, to = self.buffers.batch(batch, bucket).counts, self.buffers.tokens, self.counts[number]
        to[:2].copy_(counts, non_blocking=True)
        if tokens is not None:
            to[2:].copy_(tokens.lists[batch].query_count if batch >= 0 else counts[1:], non_blocking=True)
        return None if self.stream is None else self.stream.record_event()
