"""Lanes, in which flights run on the GPU: buffers, streams and CUDA graphs, one set per flight under way."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
import weakref
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import extension
from ..batch import Packed
from ..kernels.scratch import Scratch
from ..kernels.survivors import TICKET
from ..torch_state import isolated
from . import cuda_driver, cuda_whole
from .cuda_buffers import LEAST_LONGEST, LEAST_TOKENS, Bucket, Buffers, Inbox, PreparedModel, RuleForm, Sizes
from .cuda_graphs import Graphs, Left, Recorder
from .cuda_rule import fill_by_slot, numbers_of
from .cuda_segment import Segment, run_segment, segments
from .rule import ExitRule

ROOM_FOR_ROWS, ROOM_FOR_TOKENS, ROOM_FOR_CLAUSES = 64, 1024, 2  # of a lane's buffers, so that they seldom grow
MOST_WAYS = 256  # plans that are kept
LOOKS = 1000  # for what the GPU writes, between two questions whether it still works


class Way(NamedTuple):
    """The segments of a flight up to where it stops."""

    parts: list[Segment]
    numbers: list[int]  # what the loop calls them; none where there are no graphs
    slots: list[int]  # the layer after which each says what is left, -1: it does not


class Lane:
    """Room for one flight at a time, of any size: buffers grow to the largest flight so far."""

    def __init__(self, weights: PreparedModel, records: bool = True, whole: bool = False) -> None:
        """On a GPU: records: are launches recorded as CUDA graphs? whole: may a flight be one graph?"""
        self.weights = weights
        self.device = weights.embedding.tables[0].device
        self.graphs: Graphs | None = None  # None without a GPU
        self.whole: cuda_whole.WholeFlights | None = None
        self.stream: torch.cuda.Stream | None = None
        self.side: torch.cuda.Stream | None = None
        n, labels = len(weights.layers), weights.labels
        self.scratch = Scratch(self.device), Scratch(self.device)
        if self.device.type == "cuda":
            self.stream, self.side = (_own_stream(self, self.device) for _ in range(2))
        self.words = self.pinned(n + 1, 4, dtype=torch.int64)  # what the GPU says is left after each layer, aligned
        self.words.zero_()
        self.tickets, self.ticket = itertools.count(1), 0
        self.ways: dict[Any, Way] = {}
        if self.device.type == "cuda" and records:
            self.graphs = Graphs(Recorder(self.scratch), self._loop())
            if whole:
                self.whole = cuda_whole.WholeFlights(cuda_driver.driver(), self.graphs)
        numbers = ROOM_FOR_CLAUSES * (3 * n + (ROOM_FOR_TOKENS if weights.tags else ROOM_FOR_ROWS))
        with self.active():  # on the stream that reads what is filled in here
            self.fit(Sizes(ROOM_FOR_ROWS, ROOM_FOR_TOKENS, numbers, labels + 2))

    def _loop(self) -> Any:
        """What replays segments without Python in between; None where `_C` is missing."""
        if not extension.has_cpu():
            return None
        driver = cuda_driver.driver()
        functions = driver.address("cuGraphLaunch"), driver.address("cuStreamQuery")
        words = extension.address("words", self.words, torch.int64, self.words.shape)
        return extension._C.SegmentLoop(*functions, words, len(self.words), LEAST_TOKENS, LEAST_LONGEST)

    def pinned(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """Memory on the host, which the GPU can write, and to and from which copies need not be waited for."""
        return torch.empty(*shape, dtype=dtype, device="cpu", pin_memory=self.stream is not None)

    def fit(self, sizes: Sizes) -> None:
        """Make buffers of these sizes; what was in the old ones is lost."""
        self.forget_graphs()
        buffers = Buffers(self.weights, sizes, self.words, self.scratch)
        pinned = self.pinned(len(buffers.inbox.words), dtype=torch.int64)
        pinned.zero_()
        logits = self.pinned(buffers.units, buffers.labels, dtype=torch.float32)
        exit_layers = self.pinned(buffers.units, dtype=torch.int64)
        self.buffers, self.pinned_inbox, self.inbox = buffers, pinned, Inbox.of(pinned).as_arrays()
        self.outbox = (logits, logits.numpy()), (exit_layers, exit_layers.numpy())

    def forget_graphs(self) -> None:
        """For they hold addresses of memory that is about to be given back."""
        if self.whole is not None:
            self.whole.clear()
        if self.graphs is not None:
            self.graphs.clear()

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
                    _take_context(self.device)
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

    def send(self, packed: Packed, rule: ExitRule, structure: RuleForm, slots: np.ndarray, bucket: Bucket) -> None:
        """Send a batch and its rule to the inbox, in one copy. Nothing of the flight before may be under way."""
        buffers, tokens = self.buffers, len(packed.ids)
        self.write_batch(packed.cu_seqlens)
        self.write_rule(rule, structure, slots)
        ids = buffers.ids(self.inbox, bucket.tokens)
        ids[0, :tokens], ids[1, :tokens], ids[2, :tokens] = packed.ids, packed.positions, packed.types
        self._copy(0, buffers.ids_from + ids.size)
        buffers.begin(len(packed.cu_seqlens) - 1, len(slots))

    def answers(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Logits and exit layers of the first slots, as far as they are there, until the lane's next flight.

        This waits until nothing is under way.
        """
        for (to, _), part in zip(self.outbox, (self.buffers.logits, self.buffers.exit_layers), strict=True):
            to[:count].copy_(part[:count], non_blocking=True)
        self.synchronize()
        (_, logits), (_, exit_layers) = self.outbox
        return logits[:count], exit_layers[:count]

    def write_batch(self, bounds: np.ndarray) -> None:
        """Write counts, a new ticket and the bounds of R rows, int32 [R + 1], to the inbox on the host."""
        counts, to = self.buffers.counts_and_bounds(self.inbox)
        counts[0], counts[1] = len(bounds) - 1, bounds[-1]
        to[: len(bounds)] = bounds
        self.ticket = next(self.tickets) % (1 << 31)
        self.inbox.words[1] = self.ticket

    def write_rule(self, rule: ExitRule, structure: RuleForm, slots: np.ndarray) -> None:
        """Write the numbers of a rule for these slots, int64 [units], to the inbox on the host."""
        if not rule.clauses:
            return
        shared, by_slot = self.buffers.numbers(self.inbox, structure)
        shared[:] = numbers_of(rule)
        fill_by_slot(rule, structure.forms, slots, by_slot)

    def send_rule(self) -> None:
        """Send the numbers of the rule alone."""
        self._copy(self.buffers.numbers_from, self.buffers.ids_from)

    def send_head(self) -> None:
        """Send the inbox, except the ids."""
        self._copy(0, self.buffers.ids_from)

    def _copy(self, start: int, end: int) -> None:
        self.buffers.inbox.words[start:end].copy_(self.pinned_inbox[start:end], non_blocking=True)

    def way(self, *plan: Any) -> Way:
        """The segments that `cuda_segment.segments` plans; plan: its arguments after the first."""
        found = self.ways.get(plan)
        if found is None:
            way = segments(self.weights, *plan)
            numbers = [] if self.graphs is None else [self.graphs.number(segment) for segment in way]
            found = Way(way, numbers, [segment.reports for segment in way])
            if len(self.ways) >= MOST_WAYS:
                self.ways.clear()
            self.ways[plan] = found
        return found

    def advance(self, way: Way, left: Left, longest: int, bucket: Bucket | None) -> Left:
        """Queue segments one after the other. Returns a bound of what is left before the last; no rows: all have left.

        left: what is left now; longest: tokens of the longest row. bucket: of all segments, where rows stay together;
        None: a segment's is that of the rows left after the one before the one before it.
        """
        parts, numbers, slots = way
        stream, i = 0 if self.stream is None else self.stream.cuda_stream, 0
        if self.whole is not None and bucket is not None:
            size = bucket

            def counts(part: Segment) -> Tensor:
                return self.buffers.batch(part.at.batch, size, part.at.turned).counts

            if self.whole.launch(parts, size, counts, stream):
                return left
        while True:
            if self.graphs is not None and self.graphs.loop is not None:
                i, *found = self.graphs.loop.run(numbers, slots, i, *left, bucket, longest, self.ticket, stream)
                left = Left(*found)
            elif 2 <= i < len(parts) and slots[i - 2] >= 0:
                left = self.left_after(slots[i - 2])
            if i == len(parts) or not left.rows:
                return left
            self.run(parts[i], bucket or Bucket.of(left.rows, left.tokens, longest, left.queries))
            i += 1

    def run(self, segment: Segment, bucket: Bucket) -> None:
        """Launch a segment by itself."""

        def launches() -> None:
            run_segment(self.weights, self.buffers, segment, bucket, self.side)

        if self.graphs is None:
            launches()
        else:
            self.graphs.run((segment, bucket), launches)
        if any(each.is_too_small() for each in self.scratch):
            self.synchronize()
            self.forget_graphs()
            for each in self.scratch:
                if each.is_too_small():
                    each.grow()

    def left_after(self, layer: int) -> Left:
        """What the GPU says is left after a layer of this flight; this waits for it to say so."""
        words = self.words[layer, :3].numpy()
        for looks in itertools.count(1):
            found = words.copy()
            if (found >> TICKET == self.ticket).all():
                return Left(*(found & (1 << TICKET) - 1).tolist())
            if looks % LOOKS == 0 or self.stream is None:
                done = self.stream is None or self.stream.query()  # raises where the GPU has failed
                if done and (words >> TICKET != self.ticket).any():
                    raise RuntimeError(
                        f"the GPU has done all that was launched, but has not said how many rows are left after layer "
                        f"{layer}"
                    )
            time.sleep(0)
        raise AssertionError("counting never ends")

    def count(self, batch: int, bucket: Bucket) -> Left:
        """What is left of a batch, by `Position.batch`. This waits until nothing is under way."""
        rows, count = self.buffers.batch(batch, bucket).counts.tolist()
        tokens = self.buffers.tokens
        if tokens is None or batch < 0:
            return Left(rows, count, count)
        return Left(rows, count, int(tokens.lists[batch].query_count))


class _Bound(threading.local):
    def __init__(self) -> None:
        self.devices: set[torch.device] = set()  # whose contexts are this thread's


_bound = _Bound()


def _take_context(device: torch.device) -> None:
    """Make the context of the device, which must be torch's current one, this thread's. torch may not have done so."""
    if device not in _bound.devices:
        torch.cuda.current_stream().query()
        _bound.devices.add(device)


_idle: dict[torch.device, list[int]] = {}  # streams of lanes that are gone


def _own_stream(owner: Lane, device: torch.device) -> torch.cuda.Stream:
    """A stream that nobody else uses as long as `owner` lives. What others launch would end up in our graphs.

    It is never destroyed: torch may record an event on it when a tensor that was used on it is freed, long after.
    """
    idle = _idle.setdefault(device, [])
    try:
        stream = idle.pop()
    except IndexError:
        with torch.cuda.device(device):
            _take_context(device)
            stream = cuda_driver.driver().new_stream()
    weakref.finalize(owner, idle.append, stream).atexit = False
    return torch.cuda.ExternalStream(stream, device)
