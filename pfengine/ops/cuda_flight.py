"""A flight on the GPU. Between two stops the host queues launches and waits for nothing they compute.

It queues a segment, from one tested exit to the next, before the segment in front of it has ended, and reads how many
rows are left after the segment before that. So the GPU never waits for the host, a flight stops one segment after its
last row has left, and launches become as small as the batch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from ..batch import Packed
from ..kernels.answers import answer
from ..kernels.mean import mean
from ..kernels.survivors import MAX_ROWS, Survivors, survivors
from .cuda_buffers import Bucket, Rule, Sizes
from .cuda_joining import Contents, concatenated, joined, without
from .cuda_lanes import Lane
from .cuda_rule import by_slot_shape, forms_of
from .cuda_segment import Position, segments
from .flight import Answers, Exit, Flight
from .rule import ExitRule

OVERLAP_TOKENS = 512  # up to here fewer tokens save no time: rows stay together, and exits run beside layers


class CudaFlight(Flight):
    """A `Flight` with a lane to itself until it is done or dropped."""

    def __init__(
        self, lane: Lane, release: Callable[[Lane], None], packed: Packed, slots: np.ndarray, answers: Answers
    ) -> None:
        self._lane: Lane | None = lane
        self._release, self._answers = release, answers
        self._packed: Packed | None = packed  # until it is sent, with the first rule
        self._rule, self._structure = ExitRule(b""), Rule()
        self._start(slots, packed.cu_seqlens)

    def _start(self, slots: np.ndarray, bounds: np.ndarray, position: Position | None = None) -> None:
        """The rows are those in the inbox, in this order."""
        self._slots, self._rows, self._tokens = slots, len(slots), int(bounds[-1])
        self._longest = int(np.diff(bounds).max(initial=1))
        self._position, self._scored = position or Position(), False
        self._unknown = False  # have rows left since the host last counted them?

    @property
    def layer(self) -> int:
        return self._position.layer

    def __len__(self) -> int:
        return self._rows

    def slots(self) -> np.ndarray:
        if not self._settled():
            return np.empty(0, np.int64)
        with self._working() as lane:
            return self._slots[self._here(lane).slots[: self._rows].numpy(force=True)]

    def advance(self, rule: ExitRule, until: int, scores: bool = True) -> Exit | None:
        if not self._settled():
            return None
        stream = self._callers_stream()
        with self._working() as lane:
            n = len(lane.weights.layers)
            if len(rule.tested) != n or not self.layer < until <= n:
                raise ValueError(
                    f"a flight after layer {self.layer} of {n} cannot advance to layer {until} by a rule for "
                    f"{len(rule.tested)} layers; expected a later layer, and {n}"
                )
            bucket = self._bucket()
            self._use(lane, rule, bucket)
            ends = until == n and scores
            overlap = ends and not self.layer and any(rule.tested[:-1]) and bucket.tokens <= OVERLAP_TOKENS
            if not self._run(lane, rule, until, scores, bucket, overlap) or ends:
                self._finish(lane)
                return None
            exit = self._exit(lane)
            lane.hand_over((exit.logits, exit.slots, exit.learned), stream)
        if not self._rows:
            self._close()
        return exit if self._rows else None

    def _run(self, lane: Lane, rule: ExitRule, until: int, scores: bool, bucket: Bucket, overlap: bool) -> bool:
        """Queue the launches up to `until`; False where no row was left on the way."""
        way = segments(lane.weights, self._position, self._structure, rule.tested, until, scores, overlap)
        events: list[torch.cuda.Event | None] = []
        for i, segment in enumerate(way):
            if i >= 2:
                _wait(events[i - 2])
                self._rows, self._tokens = lane.counts[i - 2].tolist()
                if not self._rows:
                    return False
                bucket = bucket if overlap else self._bucket()
            lane.run(segment, bucket)
            self._position = segment.after(lane.weights)
            events.append(lane.count(i, self._position.batch, bucket) if i < len(way) - 1 else None)
        tested = until < len(lane.weights.layers) and bool(rule.tested[until - 1])
        self._scored = lane.weights.exits[until - 1] is not None and (scores or tested)
        return True

    def _exit(self, lane: Lane) -> Exit:
        """The rows at a stop. This waits for the GPU."""
        self._count(lane)
        self._collect(lane)
        here, rows, parts = self._here(lane), self._rows, lane.weights.exits[self.layer - 1]
        at = here.slots[:rows].numpy(force=True)
        slots = torch.from_numpy(self._slots[at]).to(lane.device)
        if parts is None or not self._scored:
            return Exit(self.layer, None, slots)
        rows_of = (
            here.source_rows[:rows]
            if self._position.past_moved
            else torch.arange(rows, dtype=torch.int64, device=lane.device)
        )
        learned = None if parts[0].learned is None else lane.buffers.learned.index_select(0, rows_of)
        return Exit(self.layer, lane.buffers.scores.index_select(0, rows_of), slots, learned)

    def leave(self, gone: Tensor | np.ndarray, answered: bool = True) -> None:
        if not self._settled():
            return
        stream = self._callers_stream()
        with self._working() as lane:
            given = gone if isinstance(gone, Tensor) else torch.from_numpy(gone)
            lane.take_over(given, stream)
            if given.dtype != torch.bool or given.shape != (self._rows,):
                raise ValueError(
                    f"gone is {given.dtype} {list(given.shape)}; expected bool [{self._rows}], one per row"
                )
            if answered and not self._scored:
                raise ValueError(f"no scores were computed after layer {self.layer}; rows can only be dropped there")
            if self._packed is not None:
                self._packed = without(self._packed, given.numpy(force=True))
                self._start(self._slots[~given.numpy(force=True)], self._packed.cu_seqlens)
                return
            bucket, buffers, position = self._bucket(), lane.buffers, self._position
            here, leave = self._here(lane), buffers.leave[: bucket.rows]
            leave[: self._rows].copy_(given, non_blocking=True)
            rows_of = here.source_rows if position.past_moved else None
            if answered:
                scores = buffers.scores if rows_of is not None else buffers.scores[: bucket.rows]
                answer(
                    leave, scores, here.slots, here.counts[:1], self.layer, buffers.logits, buffers.exit_layers,
                    source_rows=rows_of,
                )  # fmt: skip
            self._position = position._replace(batch=1 - max(position.batch, 0), states_moved=True, past_moved=True)
            survivors(
                here.bounds, here.slots, leave, bucket.longest, here.counts[:1], self._here(lane), earlier_rows=rows_of,
                earlier_firsts=here.source_firsts if position.states_moved else None,
            )  # fmt: skip
            self._unknown = True
        if given.device.type == "cpu" and bool(given.all()):
            self._close()  # at once, for a caller who drops all rows because something has failed

    def join(self, other: Flight) -> None:
        if (
            not isinstance(other, CudaFlight)
            or (other is self or other._release != self._release)
            or (other.layer != self.layer or other._answers is not self._answers)
        ):
            raise ValueError(
                f"flights join where both are of the same carrier, have the same answers and have passed the same "
                f"layer; this one has passed {self.layer}, the other {other.layer}"
            )
        if not other._settled():
            return
        if not self._settled():
            raise ValueError("no row is left in this flight, so other flights cannot join it")
        if self._rows + other._rows > MAX_ROWS:
            raise ValueError(f"{self._rows} and {other._rows} rows are more than the {MAX_ROWS} that a flight may have")
        if self._structure != other._structure and self._position.memory and other._position.memory:
            raise ValueError("the two flights have advanced by different rules, and what their rows carry differs")
        if self._packed is not None and other._packed is not None:
            self._packed = concatenated(self._packed, other._packed)
            self._start(np.concatenate([self._slots, other._slots]), self._packed.cu_seqlens)
            other._close(answered=False)
            return
        with other._working() as lane:
            theirs, memory = other._contents(lane), other._position.memory
            other._collect(lane)
            lane.synchronize()
        other._close(answered=False)
        with self._working() as lane:
            ours = self._contents(lane)
            self._collect(lane)
            lane.synchronize()
            if memory and not self._position.memory:
                self._rule, self._structure = other._rule, other._structure
            memories = joined(ours.memory, theirs.memory, len(ours.slots), len(theirs.slots))
            pasts = joined(ours.past, theirs.past, len(ours.slots), len(theirs.slots))
            bounds = np.concatenate([ours.bounds, ours.bounds[-1] + theirs.bounds[1:]]).astype(np.int32)
            slots = np.concatenate([ours.slots, theirs.slots])
            self._load(lane, Contents(bounds, torch.cat([ours.states, theirs.states]), pasts, memories, slots))

    def states(self) -> Tensor:
        if not self._settled() or not self.layer:
            raise ValueError("there are no states before the first layer, nor where no row is left")
        stream = self._callers_stream()
        with self._working() as lane:
            found = self._read_states(lane)
            lane.hand_over([found], stream)
        return found

    def _read_states(self, lane: Lane) -> Tensor:
        exit, here = lane.weights.exits[self.layer - 1], self._here(lane)
        if exit is None or exit[0].reads == "first":
            firsts = here.source_firsts if self._position.states_moved else here.bounds
            return lane.buffers.states[self.layer % 2].index_select(0, firsts[: self._rows]).float()
        count = torch.full((1,), self._rows, dtype=torch.int32, device=lane.device)
        return mean(self._packed_states(lane), here.bounds[: self._rows + 1].contiguous(), count)

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # at the end of the process torch may be gone already
            self._close()

    def _callers_stream(self) -> torch.cuda.Stream | None:
        return None if self._lane is None else self._lane.callers_stream()

    def _settled(self) -> bool:
        """Is any row left? Counts the rows first, where `leave` has changed them."""
        if self._lane is not None and self._unknown:
            with self._working() as lane:
                self._count(lane)
        if self._lane is not None and not self._rows:
            self._close()
        return self._lane is not None

    @contextlib.contextmanager
    def _working(self) -> Iterator[Lane]:
        """The lane. Where anything but a ValueError is raised, its state is unknown, and the flight gives it back."""
        if self._lane is None:
            raise ValueError("no row is left in this flight")
        lane = self._lane
        try:
            with lane.active():
                yield lane
        except ValueError:
            raise
        except BaseException:
            self._rows = 0
            self._close(answered=False)
            raise

    def _bucket(self) -> Bucket:
        return Bucket.of(self._rows, self._tokens, self._longest)

    def _here(self, lane: Lane) -> Survivors:
        return lane.buffers.batch(self._position.batch, self._bucket())

    def _count(self, lane: Lane) -> None:
        last = len(lane.counts) - 1
        _wait(lane.count(last, self._position.batch, self._bucket()))
        self._rows, self._tokens = lane.counts[last].tolist()
        self._unknown = False

    def _use(self, lane: Lane, rule: ExitRule, bucket: Bucket) -> None:
        """Bring a new batch, or the numbers of a new rule, into the inbox."""
        if rule is self._rule and self._packed is None:
            return
        forms = forms_of(rule)
        structure = Rule(forms, by_slot_shape(rule, forms))
        rows = max(bucket.rows, lane.buffers.sizes.rows)
        numbers = lane.buffers.numbers_of(structure, rows)
        wanted = Sizes(bucket.rows, bucket.tokens, numbers, structure.width(lane.buffers.labels))
        contents = None
        if not lane.has_room(wanted):
            contents = self._contents(lane) if self._packed is None else None
            self._collect(lane)
            lane.synchronize()
            lane.fit(lane.buffers.sizes.largest(wanted))
        if structure != self._structure:
            self._position = self._position._replace(memory=0)  # what rows carry is of another rule
        self._rule, self._structure = rule, structure
        if self._packed is not None:
            lane.send(self._packed, rule, structure, self._slots, bucket)
            self._packed = None
        elif contents is not None:
            memory = contents.memory if self._position.memory else None
            self._load(lane, contents._replace(memory=memory))
        else:
            lane.write_rule(rule, structure, self._slots)
            lo, hi = lane.buffers.numbers_from, lane.buffers.ids_from
            lane.buffers.inbox[lo:hi].copy_(lane.inbox[lo:hi], non_blocking=True)

    def _packed_states(self, lane: Lane) -> Tensor:
        here, x = self._here(lane), lane.buffers.states[self.layer % 2]
        if not self._position.states_moved:
            return x[: self._tokens].clone()
        return x.index_select(0, here.source_tokens[: self._tokens])

    def _contents(self, lane: Lane) -> Contents:
        """Copies of all that the rows carry. The rows must have been counted."""
        here, position, rows = self._here(lane), self._position, self._rows
        before, labels = lane.weights.exit_before(position.layer + 1), lane.buffers.labels
        past = None
        if before and lane.weights.is_kept(before):
            width = len(lane.weights.exit(before)[0].past.weight)
            all_rows = lane.buffers.past(lane.weights.exit_number(before), width, lane.buffers.sizes.rows)
            past = all_rows.index_select(0, here.source_rows[:rows]) if position.past_moved else all_rows[:rows].clone()
        memory = lane.buffers.memory(position.memory, self._structure.width(labels))
        at = here.slots[:rows]
        return Contents(
            here.bounds[: rows + 1].numpy(force=True),
            self._packed_states(lane),
            past,
            None if memory is None else memory.index_select(0, at),
            self._slots[at.numpy(force=True)],
        )

    def _load(self, lane: Lane, contents: Contents) -> None:
        """Replace the rows of this flight by these."""
        layer, rows, tokens = self.layer, len(contents.slots), len(contents.states)
        memory = self._position.memory
        position = Position(layer, memory=1 if contents.memory is not None or memory else 0)
        self._start(contents.slots, contents.bounds, position)
        bucket, labels = self._bucket(), lane.buffers.labels
        structure = self._structure
        numbers = lane.buffers.numbers_of(structure, max(bucket.rows, lane.buffers.sizes.rows))
        wanted = Sizes(bucket.rows, bucket.tokens, numbers, structure.width(labels))
        if not lane.has_room(wanted):
            lane.fit(lane.buffers.sizes.largest(wanted))
        buffers = lane.buffers
        lane.write_batch(contents.bounds)
        if len(self._rule.tested):
            lane.write_rule(self._rule, structure, contents.slots)
        lane.send_head()
        buffers.exit_layers[:rows].zero_()
        buffers.states[layer % 2][:tokens].copy_(contents.states)
        if contents.past is not None:
            before = lane.weights.exit_before(layer + 1)
            buffers.past(lane.weights.exit_number(before), contents.past.shape[1], rows).copy_(contents.past)
        to = buffers.memory(position.memory, structure.width(labels))
        if to is not None and contents.memory is not None:
            to[:rows].copy_(contents.memory)
        lane.synchronize()

    def _collect(self, lane: Lane) -> None:
        """Write the answers of rows that have left to their slots. This waits for the GPU."""
        if self._packed is not None:
            return
        rows = len(self._slots)
        lane.logits[:rows].copy_(lane.buffers.logits[:rows], non_blocking=True)
        lane.exit_layers[:rows].copy_(lane.buffers.exit_layers[:rows], non_blocking=True)
        if lane.stream is not None:
            lane.stream.synchronize()
        layers = lane.exit_layers.numpy()[:rows]
        gone = layers.nonzero()[0]
        self._answers.logits[self._slots[gone]] = lane.logits.numpy()[gone]
        self._answers.exit_layers[self._slots[gone]] = layers[gone]

    def _finish(self, lane: Lane) -> None:
        self._collect(lane)
        self._rows = 0
        self._close(answered=False)

    def _close(self, answered: bool = True) -> None:
        """Release the lane. answered: after delivering the answers that were decided."""
        lane, self._lane = self._lane, None
        if lane is None:
            return
        self._rows = 0
        try:
            with lane.active():
                if answered:
                    self._collect(lane)
                lane.synchronize()  # nothing of this flight is under way when the next one comes
        finally:
            self._release(lane)


def _wait(event: torch.cuda.Event | None) -> None:
    if event is not None:
        event.synchronize()
