"""Where flights run on the GPU: buffers, streams and CUDA graphs, one set for each flight that is under way."""

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
from ..surroundings import undisturbed
from .cuda_buffers import Bucket, Buffers, PreparedModel, Rule, Sizes
from .cuda_rule import fill_by_slot, numbers_of
from .cuda_segment import Segment, run_segment
from .rule import ExitRule

log = logging.getLogger("pfengine")

MAX_GRAPHS = 1024  # of a lane; one per segment and bucket
GRAPH_MEMORY = 1 / 16  # of the GPU's: most that the graphs of a lane may hold
LEAST_ROWS, LEAST_TOKENS, LEAST_CLAUSES = 64, 1024, 2  # of a lane's buffers, so that they seldom grow

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
            except BaseException:
                with contextlib.suppress(RuntimeError):  # it says again what has failed
                    graph.capture_end()
                self.pool = torch.cuda.graph_pool_handle()  # of the old one torch may think that it still records
                raise
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
    """Room for one flight at a time, of any size: buffers grow to the largest so far."""

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
        n, labels = len(weights.layers), weights.labels
        self.counts = self.pinned(n + 1, 2, dtype=torch.int32)  # rows and tokens after each segment
        numbers = LEAST_CLAUSES * (3 * n + LEAST_ROWS)
        with self.active():  # on the stream that reads what is filled in here
            self.fit(Sizes(LEAST_ROWS, LEAST_TOKENS, numbers, labels + 2))

    def pinned(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """On the host, where copies from and to the GPU need no one to wait."""
        return torch.empty(*shape, dtype=dtype, device="cpu", pin_memory=self.stream is not None)

    def fit(self, sizes: Sizes) -> None:
        """Room for so much; what was in the buffers is lost."""
        if self.graphs is not None:
            self.graphs.clear()  # which hold the addresses of the buffers
        buffers = Buffers(self.weights, sizes)
        inbox = self.pinned(len(buffers.inbox), dtype=torch.int64)
        inbox.zero_()
        logits = self.pinned(sizes.rows, buffers.labels, dtype=torch.float32)
        exit_layers = self.pinned(sizes.rows, dtype=torch.int64)
        self.buffers, self.inbox, self.logits, self.exit_layers = buffers, inbox, logits, exit_layers

    def has_room(self, sizes: Sizes) -> bool:
        return self.buffers.sizes.largest(sizes) == self.buffers.sizes

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """On the stream of this lane, whatever the caller has set in torch."""
        with undisturbed():
            if self.stream is None:
                yield
            else:
                with torch.cuda.device(self.device), torch.cuda.stream(self.stream):
                    yield

    def callers_stream(self) -> torch.cuda.Stream | None:
        """Outside of `active`: where the caller's tensors are computed."""
        return None if self.stream is None else torch.cuda.current_stream(self.device)

    def hand_over(self, tensors: Iterable[Tensor | None], stream: torch.cuda.Stream | None) -> None:
        """Tensors made here become a caller's: complete, and their memory not used again before its stream is done."""
        if self.stream is None or stream is None:
            return
        self.stream.synchronize()
        for tensor in tensors:
            if tensor is not None:
                tensor.record_stream(stream)

    def take_over(self, tensor: Tensor, stream: torch.cuda.Stream | None) -> None:
        """A tensor of a caller's stream may be read here."""
        if self.stream is not None and stream is not None and tensor.is_cuda:
            self.stream.wait_stream(stream)
            tensor.record_stream(self.stream)

    def synchronize(self) -> None:
        """Nothing is under way any more."""
        for stream in (self.side, self.stream):
            if stream is not None:
                stream.synchronize()
        if self.graphs is not None and self.graphs.has_too_much():
            self.graphs.clear()

    def send(self, packed: Packed, rule: ExitRule, structure: Rule, slots: np.ndarray, bucket: Bucket) -> None:
        """A batch and its rule into the inbox, in one copy. Nothing of the flight before is under way."""
        buffers, tokens = self.buffers, len(packed.ids)
        self.write_batch(packed.cu_seqlens)
        self.write_rule(rule, structure, slots)
        ids = buffers.ids(self.inbox, bucket.tokens).numpy()
        for to, values in zip(ids, (packed.ids, packed.positions, packed.types), strict=True):
            to[:tokens] = values
        used = buffers.ids_from + ids.size
        buffers.inbox[:used].copy_(self.inbox[:used], non_blocking=True)
        buffers.exit_layers[: len(slots)].zero_()

    def write_batch(self, bounds: np.ndarray) -> None:
        """Counts and bounds of R rows, int32 [R + 1], into the inbox on the host."""
        counts, to = (part.numpy() for part in self.buffers.counts_and_bounds(self.inbox))
        counts[:] = len(bounds) - 1, bounds[-1]
        to[: len(bounds)] = bounds

    def write_rule(self, rule: ExitRule, structure: Rule, slots: np.ndarray) -> None:
        """The numbers of a rule for these slots into the inbox on the host."""
        shared, by_slot = (part.numpy() for part in self.buffers.numbers(self.inbox, structure))
        shared[:] = numbers_of(rule)
        fill_by_slot(rule, structure.forms, slots, by_slot)

    def send_head(self) -> None:
        """All of the inbox but the ids."""
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
        """Rows and tokens that are left, on their way into `counts[number]`; the event says when they are there."""
        self.counts[number].copy_(self.buffers.batch(batch, bucket).counts, non_blocking=True)
        return None if self.stream is None else self.stream.record_event()
