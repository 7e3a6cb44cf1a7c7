"""Flights of tag heads on the GPU. `token_flight` says what they do."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..batch import Packed
from ..kernels.decide import Decided, ExitTest
from .cuda_buffers import Bucket, TokenBuffers
from .cuda_flight import CudaFlight
from .cuda_joining import Contents, pieces_of, without
from .cuda_lanes import Lane
from .cuda_rows import Units
from .cuda_segment import Position
from .cuda_tokens import let_tokens_go


class CudaTokenFlight(CudaFlight):
    """A `Flight` of rows whose words are scored. In the lane every token has a slot, its number in the inbox.

    A word is its first piece there; a caller sees words alone.
    """

    _dropped = np.empty(0, bool)  # [T]: words that were dropped before the first layer
    _pieces = _places = np.empty(0, np.int32)  # [T] by slot, as in `cuda_buffers.TokenBuffers`

    def _start(self, slots: np.ndarray, bounds: np.ndarray, position: Position | None = None) -> None:
        super()._start(slots, bounds, position)
        if self._packed is not None:
            self._pieces = pieces_of(self._packed)
        first = self._pieces.nonzero()[0]
        counts = np.diff(np.searchsorted(first, bounds))  # words of each row
        number = np.arange(len(first)) - np.repeat(np.cumsum(counts) - counts, counts)  # of each word in its row
        self._slots = np.repeat(slots, np.diff(bounds))
        self._slots[first] += number
        start = np.repeat(bounds[:-1], counts)
        self._places = np.full(self._tokens, -1, np.int32)
        self._places[start + number] = first - start

    def _may_overlap(self, bucket: Bucket) -> bool:
        return False  # the next layer must know which tokens are frozen

    def _unit_count(self, lane: Lane) -> tuple[int, str]:
        return len(self._words(lane)), "word"

    def _token_slots(self, lane: Lane) -> np.ndarray:
        """int64 [T]: the slots of the tokens that are there. This waits for the GPU."""
        if self._packed is not None:
            return np.arange(self._tokens)
        here = self._here(lane)
        bounds, slots = (part.numpy(force=True) for part in (here.bounds[: self._rows + 1], here.slots[: self._rows]))
        return np.repeat(slots - bounds[:-1], np.diff(bounds)) + np.arange(self._tokens)

    def _words(self, lane: Lane) -> np.ndarray:
        """int64 [W]: the numbers of the tokens that words begin with, among those that are there."""
        return self._pieces[self._token_slots(lane)].nonzero()[0]

    def _shown(self, lane: Lane) -> Units:
        units, words = super()._shown(lane), torch.from_numpy(self._words(lane)).to(lane.device)
        return Units(units.slots[words], units.sources[words])

    def _units(self, lane: Lane) -> Units:
        here, tokens = self._here(lane), _of(lane).listed(self._position.batch, self._bucket())
        return Units(tokens.slots[: self._tokens], here.source_tokens[: self._tokens])

    def _note(self, rows: int, tokens: int, queries: int) -> None:
        self._rows, self._tokens, self._queries = rows, tokens, queries

    def _read_states(self, lane: Lane) -> Tensor:
        return lane.weights.seen(self._packed_states(lane)).float()[torch.from_numpy(self._words(lane)).to(lane.device)]

    def _leave_unsent(self, packed: Packed, gone: np.ndarray) -> None:
        dropped, words = self._dropped_of(packed).copy(), self._pieces > 0
        dropped[words] |= gone
        left = np.add.reduceat(words & ~dropped, packed.cu_seqlens[:-1]) > 0
        self._packed = without(packed, ~left)
        self._dropped = dropped[np.repeat(left, np.diff(packed.cu_seqlens))]
        self._start(self._row_slots[left], self._packed.cu_seqlens)

    def _dropped_of(self, packed: Packed) -> np.ndarray:
        return self._dropped if len(self._dropped) else np.zeros(len(packed.ids), bool)

    def _join_unsent(self, other: CudaFlight, packed: Packed) -> None:
        assert isinstance(other, CudaTokenFlight)
        assert self._packed is not None
        assert other._packed is not None
        dropped = [self._dropped_of(self._packed), other._dropped_of(other._packed)]
        super()._join_unsent(other, packed)
        self._dropped = np.concatenate(dropped)

    def _let_go(self, lane: Lane, given: Tensor | None, answered: bool) -> None:
        bucket, buffers, position, here = self._bucket(), lane.buffers, self._position, self._here(lane)
        to: dict[str, Any] = {"slots": here.slots, "to_logits": buffers.logits, "to_layers": buffers.exit_layers}
        leave = buffers.leave[: bucket.tokens]
        if given is not None:
            words = torch.from_numpy(self._words(lane)).to(lane.device)
            leave[: self._tokens].zero_()
            leave[words] = given.to(lane.device)
        moved = position.past_moved
        self._position = position._replace(
            batch=1 - max(position.batch, 0), states_moved=True, past_moved=True, frozen=True
        )
        let_tokens_go(
            buffers, bucket, here, self._position.batch, ExitTest(self.layer, **to), None,
            Decided(buffers.scores if moved else buffers.scores[: bucket.tokens], None, leave),
            given=None if given is None else leave, answers=answered,
            source_tokens=here.source_tokens if moved else None, earlier_rows=here.source_rows if moved else None,
            earlier_firsts=here.source_firsts if position.states_moved else None,
        )  # fmt: skip

    def _contents(self, lane: Lane) -> Contents:
        tokens, units = _of(lane), self._units(lane)
        contents = super()._contents(lane)
        sums = tokens.sums[self.layer % 2] if tokens.sums and self.layer else None
        if sums is not None:
            moved = self._position.states_moved
            sums = sums.index_select(0, units.sources) if moved else sums[: self._tokens].clone()
        gone = lane.buffers.exit_layers.index_select(0, units.slots) != 0
        frozen, pieces = tokens.frozen.index_select(0, units.slots), self._pieces[self._token_slots(lane)]
        return contents._replace(gone=gone, frozen=frozen, sums=sums, pieces=pieces)

    def _load(self, lane: Lane, contents: Contents) -> None:
        assert contents.pieces is not None
        self._pieces = contents.pieces
        super()._load(lane, contents)

    def _sent(self, lane: Lane, contents: Contents | None = None) -> None:
        """Say where words are, and mark those that have left."""
        tokens, gone, frozen = _of(lane), None, None
        tokens.places[: self._tokens].copy_(torch.from_numpy(self._places))
        tokens.pieces[: self._tokens].copy_(torch.from_numpy(self._pieces))
        if contents is not None:
            gone, frozen = contents.gone, contents.frozen
            if contents.sums is not None:
                tokens.sums[self.layer % 2][: self._tokens].copy_(contents.sums)
        elif self._dropped.any() or not self._pieces.all():
            dropped = self._dropped if len(self._dropped) else np.zeros(self._tokens, bool)
            cold = np.zeros(self._tokens, np.uint8)
            for token in dropped.nonzero()[0]:
                cold[token : token + self._pieces[token]] = 1
            gone, frozen = (torch.from_numpy(part).to(lane.device) for part in (dropped | (self._pieces == 0), cold))
        if gone is None or frozen is None:
            return
        lane.buffers.exit_layers[: self._tokens].copy_(-gone.to(torch.int64))
        tokens.frozen[: self._tokens].copy_(frozen)
        if bool(frozen.any()):
            self._let_go(lane, None, answered=False)  # nobody else leaves; it lists who is there


def _of(lane: Lane) -> TokenBuffers:
    tokens = lane.buffers.tokens
    assert tokens is not None
    return tokens
