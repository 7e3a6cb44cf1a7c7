"""A flight on the GPU. Between two stops the host queues launches and waits for nothing they compute.

It queues a segment, from one tested exit to the next, before the segment in front of it has ended, and reads how many
rows are left after the segment before that. So the GPU never waits for the host, a flight stops one segment after its
last row has left, and launches become as small as the batch.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..batch import Packed
from ..kernels.answers import answer
from ..kernels.mean import mean
from ..kernels.survivors import MAX_ROWS, survivors
from .cuda_buffers import Bucket, PreparedModel
from .cuda_graphs import Left
from .cuda_joining import concatenated, without
from .cuda_lanes import Lane
from .cuda_ops import full
from .cuda_rows import Carried, CudaRows, Units
from .cuda_rule import form_of
from .flight import Exit, Flight
from .rule import ExitRule

OVERLAP_TOKENS = 512  # up to here fewer tokens save no time: rows stay together, and exits run beside layers


class CudaFlight(CudaRows, Flight):
    """A `Flight` with a lane to itself until it is done or dropped."""

    def slots(self) -> np.ndarray:
        if not self._settled():
            return np.empty(0, np.int64)
        if self._packed is not None:
            return self._row_slots.copy()
        with self._working() as lane:
            return self._slots[self._here(lane).slots[: self._rows].numpy(force=True)]

    def advance(self, rule: ExitRule, until: int, scores: bool = True) -> Exit | None:
        if not self._settled():
            return None
        ends = scores and self._lane is not None and until >= len(self._lane.weights.layers)
        stream = None if ends else self._callers_stream()  # nothing is handed over at the end
        with self._working() as lane:
            n = len(lane.weights.layers)
            self._check(lane.weights, rule, until)
            until, bucket = min(until, n), self._bucket()
            self._use(lane, rule, bucket)
            overlap = ends and not self.layer and any(rule.tested[:-1]) and self._may_overlap(bucket)
            if not self._run(lane, rule, until, scores, bucket, overlap) or ends:
                self._finish(lane)
                return None
            exit = self._exit(lane)
            lane.hand_over((exit.logits, exit.slots, exit.learned), stream)
        if not self._rows:
            self._close()
        return exit if self._rows else None

    def _check(self, weights: PreparedModel, rule: ExitRule, until: int) -> None:
        """Raise ValueError where the flight cannot advance to this layer, or not by this rule."""
        if until <= self.layer:
            raise ValueError(f"until is {until}, expected a layer after {self.layer}")
        if rule is not self._rule:
            rule.check(len(weights.layers), len(self._answers.exit_layers), weights.tags, weights.learned)
        if self._position.memory and rule.width(weights.labels) and rule.layout != self._carried.layout:
            raise ValueError("the rule carries other numbers from exit to exit than the rule before it did")

    def _run(self, lane: Lane, rule: ExitRule, until: int, scores: bool, bucket: Bucket, overlap: bool) -> bool:
        """Queue the launches up to `until`; False where no row was left on the way."""
        way = lane.way(self._position, self._structure, rule.tested, until, scores, overlap)
        before = Left(self._rows, self._tokens, self._queries)
        self._note(*lane.advance(way, before, self._longest, bucket if overlap else None))
        if not self._rows:
            return False
        self._position = way.parts[-1].after(lane.weights)
        tested = until < len(lane.weights.layers) and bool(rule.tested[until - 1])
        self._scored = lane.weights.exits[until - 1] is not None and (scores or tested)
        return True

    def _exit(self, lane: Lane) -> Exit:
        """The rows at a stop. This waits for the GPU."""
        self._count(lane)
        self._collect(lane)
        units, parts = self._shown(lane), lane.weights.exits[self.layer - 1]
        slots = torch.from_numpy(self._slots[units.slots.numpy(force=True)]).to(lane.device)
        if parts is None or not self._scored:
            return Exit(self.layer, None, slots)
        learned = None if parts[0].learned is None else lane.buffers.learned.index_select(0, units.sources)
        return Exit(self.layer, lane.buffers.scores.index_select(0, units.sources), slots, learned)

    def _shown(self, lane: Lane) -> Units:
        """What a caller sees of a stop; sources: the rows of the scores."""
        units = self._units(lane)
        if self._position.past_moved:
            return units
        return units._replace(sources=torch.arange(len(units.slots), dtype=torch.int64, device=lane.device))

    def leave(self, gone: Tensor | np.ndarray, answered: bool = True) -> None:
        if not self._settled():
            return
        stream = self._callers_stream()
        with self._working() as lane:
            given = gone if isinstance(gone, Tensor) else torch.from_numpy(gone)
            lane.take_over(given, stream)
            units, one = self._unit_count(lane)
            if given.dtype != torch.bool or given.shape != (units,):
                raise ValueError(f"gone is {given.dtype} {list(given.shape)}; expected bool [{units}], one per {one}")
            if answered and not self._scored:
                raise ValueError(f"no scores were computed after layer {self.layer}; rows can only be dropped there")
            if self._packed is not None:
                self._leave_unsent(self._packed, given.numpy(force=True))
                return
            self._let_go(lane, given, answered)
            self._unknown = True
        if given.device.type == "cpu" and bool(given.all()):
            self._close()  # at once, for a caller who drops all rows because something has failed

    def _leave_unsent(self, packed: Packed, gone: np.ndarray) -> None:
        self._packed = without(packed, gone)
        self._start(self._row_slots[~gone], self._packed.cu_seqlens)

    def _let_go(self, lane: Lane, given: Tensor, answered: bool) -> None:
        """Launch what lets rows leave at a stop."""
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
            here.bounds, here.slots, leave, here.counts[:1], self._here(lane), earlier_rows=rows_of,
            earlier_firsts=here.source_firsts if position.states_moved else None,
        )  # fmt: skip

    def join(self, other: Flight) -> None:
        if other is self:
            raise ValueError("a flight cannot join itself")
        if not isinstance(other, CudaFlight) or other._release != self._release:
            raise ValueError("the other flight is not one of the same carrier")
        if other._answers is not self._answers:
            raise ValueError("the other flight answers elsewhere; flights that are joined have the same Answers")
        if not other._settled():
            return
        if not self._settled():
            self._take_over(other)
            return
        if other.layer != self.layer:
            raise ValueError(f"the other flight is at layer {other.layer}, this one at layer {self.layer}")
        if self._rows + other._rows > MAX_ROWS:
            raise ValueError(f"{self._rows} and {other._rows} rows are more than the {MAX_ROWS} that a flight may have")
        both_carry = self._position.memory and other._position.memory
        if both_carry and self._carried.layout != other._carried.layout:
            raise ValueError("the flights' rules carry different numbers from exit to exit")
        if self._packed is not None and other._packed is not None:
            self._join_unsent(other, concatenated(self._packed, other._packed))
            other._close(answered=False)
            return
        with other._working() as lane:
            theirs = other._contents(lane)
            other._collect(lane)
            lane.synchronize()
        other._close(answered=False)
        with self._working() as lane:
            ours = self._contents(lane)
            self._collect(lane)
            lane.synchronize()
            if theirs.memory is not None:
                self._carried = other._carried
            self._load(lane, ours.with_those_of(theirs))

    def _take_over(self, other: CudaFlight) -> None:
        """Become the other flight, lane and all. It is empty afterwards."""
        vars(self).clear()
        vars(self).update(vars(other))
        other._lane, other._rows = None, 0

    def _join_unsent(self, other: CudaFlight, packed: Packed) -> None:
        """Take in the rows of the other flight, before the first layer of both. packed: the rows of both."""
        self._packed = packed
        self._start(np.concatenate([self._row_slots, other._row_slots]), packed.cu_seqlens)

    def states(self) -> Tensor:
        if not self._settled() or not self.layer:
            raise ValueError("there are no states before the first layer, nor where no row is left")
        stream = self._callers_stream()
        with self._working() as lane:
            found = self._read_states(lane)
            lane.hand_over([found], stream)
        return found

    def _read_states(self, lane: Lane) -> Tensor:
        reads, here = lane.weights.reads(self.layer), self._here(lane)
        if reads == "first":
            firsts = here.source_firsts if self._position.states_moved else here.bounds
            states = lane.buffers.states[self.layer % 2].index_select(0, firsts[: self._rows])
            return lane.weights.seen(states).float()
        tokens = lane.weights.seen(self._packed_states(lane))
        if reads in ("query", "all"):
            return tokens.float()
        return mean(tokens, here.bounds[: self._rows + 1].contiguous(), full(self._rows, lane.device))

    def _may_overlap(self, bucket: Bucket) -> bool:
        return bucket.tokens <= OVERLAP_TOKENS

    def _use(self, lane: Lane, rule: ExitRule, bucket: Bucket) -> None:
        """Bring a new batch, or the numbers of a new rule, into the inbox."""
        if rule is self._rule and self._packed is None:
            return
        structure = form_of(rule)
        wanted = lane.buffers.sizes_for(structure, bucket)
        contents = None
        if not lane.has_room(wanted):
            contents = self._contents(lane) if self._packed is None else None
            self._collect(lane)
            lane.synchronize()
            lane.fit(lane.buffers.sizes.largest(wanted))
        self._rule, self._structure = rule, structure
        if structure.carries:
            self._carried = Carried(rule.layout, structure)
        if self._packed is not None:
            lane.send(self._packed, rule, structure, self._slots, bucket)
            self._packed = None
            self._sent(lane)
        elif contents is not None:
            self._load(lane, contents)
        else:
            lane.write_rule(rule, structure, self._slots)
            lane.send_rule()
