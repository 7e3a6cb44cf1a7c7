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
from .cuda_joining import Contents, without
from .cuda_lanes import Lane
from .cuda_rows import Units
from .cuda_segment import Position
from .cuda_tokens import let_tokens_go


class CudaTokenFlight(CudaFlight):
    """A `Flight` of rows whose tokens are scored. In the lane the slot of a token is its number in the inbox."""

    _dropped = np.empty(0, bool)  # [T]: tokens that were dropped before the first layer

    def _start(self, slots: np.ndarray, bounds: np.ndarray, position: Position | None = None) -> None:
        super()._start(slots, bounds, position)
        self._slots = np.repeat(slots - bounds[:-1], np.diff(bounds)) + np.arange(self._tokens)

    def _may_overlap(self, bucket: Bucket) -> bool:
        return False  # the next layer must know which tokens are frozen

    def _unit_count(self) -> tuple[int, str]:
        return self._tokens, "token"

    def _units(self, lane: Lane) -> Units:
        here, tokens = self._here(lane), _of(lane).listed(self._position.batch, self._bucket())
        return Units(tokens.slots[: self._tokens], here.source_tokens[: self._tokens])

    def _note(self, rows: int, tokens: int, queries: int) -> None:
        self._rows, self._tokens, self._queries = rows, tokens, queries

    def _read_states(self, lane: Lane) -> Tensor:
        return self._packed_states(lane).float()

    def _leave_unsent(self, packed: Packed, gone: np.ndarray) -> None:
        gone = gone | self._dropped_of(packed)
        left = np.add.reduceat(~gone, packed.cu_seqlens[:-1]) > 0
        self._packed = without(packed, ~left)
        self._dropped = gone[np.repeat(left, np.diff(packed.cu_seqlens))]
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
            leave[: self._tokens].copy_(given, non_blocking=True)
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
        return contents._replace(gone=gone, frozen=tokens.frozen.index_select(0, units.slots), sums=sums)

    def _sent(self, lane: Lane, contents: Contents | None = None) -> None:
        """Mark the tokens that have left."""
        tokens, gone, frozen = _of(lane), None, None
        if contents is not None:
            gone, frozen = contents.gone, contents.frozen
            if contents.sums is not None:
                tokens.sums[self.layer % 2][: self._tokens].copy_(contents.sums)
        elif self._dropped.any():
            gone = torch.from_numpy(self._dropped).to(lane.device)
            frozen = gone.to(torch.uint8)
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
