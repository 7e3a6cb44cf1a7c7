"""Flights of tag heads, which score every token: tokens leave one by one (TOKEE), or rows with all tokens (SENTEE).

A token that has left is frozen: the others still see it as a key and a value, but it costs no query and no feed-forward
network. It keeps its state. Where the head renormalises, its state after a later layer is that layer's output norm of
the token's last sum, which is what the output norm of the layer that it left after was applied to. As long as one token
of a row is left, all of them are scored, frozen ones too, because windows read them.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .batch import Packed
from .ops import Queries
from .ops.flight import Answers, Exit
from .ops.rule import ExitRule
from .torch_flight import TorchCarrier, TorchFlight, joined, ranges


class TokenFlight(TorchFlight):
    """`ops.flight.Flight` for tag heads."""

    def __init__(self, carrier: TorchCarrier, packed: Packed, slots: np.ndarray, answers: Answers) -> None:
        super().__init__(carrier, packed, slots, answers)
        tokens = len(self.x)
        self.token_slots = ranges(self.row_slots, self.cu_seqlens.diff()).long()
        self.gone = torch.zeros(tokens, dtype=torch.bool, device=self.x.device)  # answered or dropped
        self.frozen = self.gone.clone()
        # before the last output norm, of all tokens, where they are renormalised; embeddings, before there was one
        self.sums = self.x if carrier.head.renormalises else None

    def _run_layer(self, half_done: bool, last: bool) -> None:
        ops = self.carrier.encoder.ops
        active = (~self.frozen).nonzero().squeeze(1)
        for block in self.carrier.encoder.layers[self.layer - 1]:
            if len(active) == len(self.x):
                if self.carrier.head.renormalises:
                    self.x, self.sums = ops.block_sums(self.x, self.cu_seqlens, block)
                else:
                    self.x = ops.block(self.x, self.cu_seqlens, block)
                continue
            before = torch.cumsum(~self.frozen, 0, dtype=torch.int32)
            bounds = torch.cat([before.new_zeros(1), before])[self.cu_seqlens]
            queries = Queries(active.to(torch.int32), bounds)
            if self.sums is None:
                out, x = ops.block(self.x, self.cu_seqlens, block, queries), self.x.clone()
            else:
                out, sums = ops.block_sums(self.x, self.cu_seqlens, block, queries)
                self.sums = self.sums.index_copy(0, active, sums)
                x = ops.output_norm(self.sums, block)
            x[active] = out
            self.x = x

    def _decide(self, rule: ExitRule) -> None:
        if rule.tokens is None:  # it has no clauses
            return
        by_row = rule.tokens.unit == "row"
        leave = self._leaving(rule, self.row_slots if by_row else self.token_slots, self.cu_seqlens)
        gone = leave.repeat_interleave(self.cu_seqlens.diff()) if by_row else leave
        self._leave(gone, answered=True, freezes=rule.tokens.freezes)

    def _gone_before(self) -> Tensor:
        return self.gone

    def _exit(self) -> Exit:
        return super()._exit()._replace(slots=self.token_slots.clone())

    def _leave(self, gone: Tensor, answered: bool, freezes: bool = True) -> None:
        gone = gone & ~self.gone
        where = gone.nonzero().squeeze(1).numpy(force=True)
        if not len(where):
            return
        if answered:
            self._answer(self.token_slots, where)
        self.gone = self.gone | gone
        self.frozen = self.frozen | gone if freezes else self.frozen
        left = torch.cat([gone.new_zeros(1, dtype=torch.int64), torch.cumsum(~self.gone, 0)])[self.cu_seqlens].diff()
        rows = (left > 0).nonzero().squeeze(1)
        if len(rows) < len(self):
            self._keep_rows(rows)

    def _keep_rows(self, rows: Tensor) -> None:
        tokens = ranges(self.cu_seqlens[rows], self.cu_seqlens.diff()[rows]).long()
        state, by_token = self.rule_state, self.rule_state is not None and not self.rule_layout[0]
        self.token_slots, self.gone, self.frozen = self.token_slots[tokens], self.gone[tokens], self.frozen[tokens]
        self.sums = None if self.sums is None else self.sums[tokens]
        scores, self.scores = self.scores, None
        self.rule_state = None if by_token else state
        super()._keep_rows(rows)
        if len(rows):
            self.rule_state = state[tokens] if by_token and state is not None else self.rule_state
            self.scores = None if scores is None else scores._replace(logits=scores.logits[tokens])

    def _absorb(self, other: TorchFlight) -> None:
        assert isinstance(other, TokenFlight)
        for name in ("token_slots", "gone", "frozen", "sums"):
            setattr(self, name, joined(getattr(self, name), getattr(other, name)))
        super()._absorb(other)
