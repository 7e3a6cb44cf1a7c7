"""The rows of a flight in its lane: where they are, who is left, what they carry, and how they come and go."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..batch import Packed
from ..kernels.survivors import Survivors
from .cuda_buffers import Bucket, RuleForm
from .cuda_joining import Contents
from .cuda_lanes import Lane
from .cuda_segment import Position
from .flight import Answers
from .rule import ExitRule


class Units(NamedTuple):
    """What is scored of a flight: its rows, or its tokens."""

    slots: Tensor  # int64 [U], in the lane
    sources: Tensor  # int32 [U]: the number that each had before others left


class Carried(NamedTuple):
    """What the numbers in the memory stand for, and how they are laid out there: by the last rule that carries any."""

    layout: tuple[Any, ...] = ()  # of `ops.rule.ExitRule`
    rule: RuleForm = RuleForm()


class CudaRows:
    """The part of a `Flight` that holds its rows. The lane is theirs alone until the flight is done or dropped."""

    def __init__(
        self, lane: Lane, release: Callable[[Lane], None], packed: Packed, slots: np.ndarray, answers: Answers
    ) -> None:
        self._lane: Lane | None = lane
        self._release, self._answers = release, answers
        self._packed: Packed | None = packed  # until it is sent, with the first rule
        self._rule, self._structure = ExitRule(b""), RuleForm()
        self._carried = Carried()
        self._start(slots, packed.cu_seqlens)

    def _start(self, slots: np.ndarray, bounds: np.ndarray, position: Position | None = None) -> None:
        """The rows are those in the inbox, in this order."""
        self._row_slots = self._slots = slots  # of rows, and of all that is scored
        self._rows, self._tokens, self._queries = len(slots), int(bounds[-1]), int(bounds[-1])
        self._longest = int(np.diff(bounds).max(initial=1))
        self._position, self._scored = position or Position(), False
        self._unknown = False  # have rows left since the host last counted them?

    @property
    def layer(self) -> int:
        return self._position.layer

    def __len__(self) -> int:
        return self._rows

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
        return Bucket.of(self._rows, self._tokens, self._longest, self._queries)

    def _here(self, lane: Lane) -> Survivors:
        return lane.buffers.batch(self._position.batch, self._bucket())

    def _unit_count(self, lane: Lane) -> tuple[int, str]:
        """How many are scored, and what one of them is."""
        return self._rows, "row"

    def _units(self, lane: Lane) -> Units:
        here = self._here(lane)
        return Units(here.slots[: self._rows], here.source_rows[: self._rows])

    def _note(self, rows: int, tokens: int, _: int) -> None:
        """So many are left."""
        self._rows, self._tokens, self._queries = rows, tokens, tokens

    def _count(self, lane: Lane) -> None:
        self._note(*lane.count(self._position.batch, self._bucket()))
        self._unknown = False

    def _packed_states(self, lane: Lane) -> Tensor:
        here, x = self._here(lane), lane.buffers.states[self.layer % 2]
        if not self._position.states_moved:
            return x[: self._tokens].clone()
        return x.index_select(0, here.source_tokens[: self._tokens])

    def _contents(self, lane: Lane) -> Contents:
        """Copies of all that the rows carry. The rows must have been counted."""
        here, position, rows, units = self._here(lane), self._position, self._rows, self._units(lane)
        before, past = lane.weights.exit_before(position.layer + 1), None
        if before and lane.weights.is_kept(before):
            width = len(lane.weights.exit(before)[0].past.weight)
            every = lane.buffers.past(lane.weights.exit_number(before), width, lane.buffers.units)
            past = every.index_select(0, units.sources) if position.past_moved else every[: len(units.slots)].clone()
        memories = [part for part in lane.buffers.memory(position.memory, self._carried.rule) if part is not None]
        return Contents(
            here.bounds[: rows + 1].numpy(force=True),
            self._packed_states(lane),
            past,
            torch.cat([part.index_select(0, units.slots) for part in memories], 1) if memories else None,
            self._slots[here.slots[:rows].numpy(force=True)],
        )

    def _load(self, lane: Lane, contents: Contents) -> None:
        """Replace the rows of this flight by these."""
        layer = self.layer
        position = Position(layer, memory=0 if contents.memory is None else 1)
        self._start(contents.slots, contents.bounds, position)
        structure, carried, bucket = self._structure, self._carried.rule, self._bucket()
        wanted = lane.buffers.sizes_for(structure, bucket).largest(lane.buffers.sizes_for(carried, bucket))
        if not lane.has_room(wanted):
            lane.fit(lane.buffers.sizes.largest(wanted))
        buffers = lane.buffers
        lane.write_batch(contents.bounds)
        if len(self._rule.tested):
            lane.write_rule(self._rule, structure, self._slots)
        lane.send_head()
        buffers.begin(len(contents.slots), len(self._slots))
        buffers.put_states(layer, contents.states)
        if contents.past is not None:
            before = lane.weights.exit_before(layer + 1)
            buffers.past(lane.weights.exit_number(before), *contents.past.shape[::-1]).copy_(contents.past)
        if contents.memory is not None:
            parts = contents.memory.split(carried.widths(buffers.labels), 1)
            for to, part in zip(buffers.memory(position.memory, carried), parts, strict=True):
                if to is not None:
                    to[: len(part)].copy_(part)
        self._sent(lane, contents)
        lane.synchronize()

    def _sent(self, lane: Lane, contents: Contents | None = None) -> None:
        """Rows have come into the inbox, the first time or with what they carry."""

    def _collect(self, lane: Lane) -> None:
        """Write the answers of rows that have left to their slots. This waits for the GPU."""
        if self._packed is not None:
            return
        logits, layers = lane.answers(len(self._slots))
        gone = slice(None) if layers.min() > 0 else (layers > 0).nonzero()[0]
        slots = self._slots[gone]
        self._answers.logits[slots] = logits[gone]
        self._answers.exit_layers[slots] = layers[gone]

    def _finish(self, lane: Lane) -> None:
        self._collect(lane)
        self._lane, self._rows = None, 0
        self._release(lane)  # nothing is under way any more

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
