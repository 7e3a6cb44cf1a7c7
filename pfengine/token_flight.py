"""Flights of tag heads, which score words: words leave one by one (TOKEE), or rows with all their words (SENTEE).

A word is scored by its first piece, and leaves with all its pieces. A row in which no words are marked has a word for
each token. Tokens of no word, as [CLS] and [SEP] are where words are marked, stay for as long as their row.

The pieces of a word that has left are frozen: the others still see them as keys and values, but they cost no query and
no feed-forward network. They keep their states. Where the head renormalises, the state of a frozen token after a later
layer is that layer's output norm of the token's last sum, which is what the output norm of the layer that it left after
was applied to. As long as one word of a row is left, all of them are scored, frozen ones too, because windows read
them.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from . import encoder
from .batch import Packed
from .ops import Queries
from .ops.flight import Answers, Exit
from .ops.rule import ExitRule
from .torch_flight import TorchCarrier, TorchFlight, bounds_of, joined, ranges


class TokenFlight(TorchFlight):
    """`ops.flight.Flight` for tag heads."""

    def __init__(self, carrier: TorchCarrier, packed: Packed, slots: np.ndarray, answers: Answers) -> None:
        words = packed.words()
        super().__init__(carrier, packed, slots, answers)
        to = self.x.device
        # W words: [W] first token and number of pieces; [R + 1] bounds of the rows' words; [W] slots
        self.first, self.pieces = torch.from_numpy(words.first).to(to), torch.from_numpy(words.pieces).to(to)
        self.word_bounds = torch.from_numpy(words.bounds).to(to)
        self.word_slots = ranges(self.row_slots, self.word_bounds.diff()).long()
        self.gone = torch.zeros(len(self.first), dtype=torch.bool, device=to)  # [W]: answered or dropped
        self.frozen = torch.zeros(len(self.x), dtype=torch.bool, device=to)  # [T]
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
        leave = self._leaving(rule, self.row_slots if by_row else self.word_slots, self.word_bounds)
        gone = leave.repeat_interleave(self.word_bounds.diff()) if by_row else leave
        self._leave(gone, answered=True, freezes=rule.tokens.freezes)

    def _read(self) -> Tensor:
        x = self.x if len(self.first) == len(self.x) else self.x.index_select(0, self.first)
        return encoder.seen(self.carrier.encoder, x)

    def _bounds(self) -> Tensor:
        return self.word_bounds

    def _gone_before(self) -> Tensor:
        return self.gone

    def _exit(self) -> Exit:
        return super()._exit()._replace(slots=self.word_slots.clone())

    def _leave(self, gone: Tensor, answered: bool, freezes: bool = True) -> None:
        gone = gone & ~self.gone
        where = gone.nonzero().squeeze(1).numpy(force=True)
        if not len(where):
            return
        if answered:
            self._answer(self.word_slots, where)
        self.gone = self.gone | gone
        if freezes:
            self.frozen = self.frozen.clone()
            self.frozen[ranges(self.first[gone], self.pieces[gone])] = True
        left = torch.cat([gone.new_zeros(1, dtype=torch.int64), torch.cumsum(~self.gone, 0)])[self.word_bounds].diff()
        rows = (left > 0).nonzero().squeeze(1)
        if len(rows) < len(self):
            self._keep_rows(rows)

    def _keep_rows(self, rows: Tensor) -> None:
        counts = self.word_bounds.diff()[rows]
        words = ranges(self.word_bounds[rows], counts).long()
        tokens = ranges(self.cu_seqlens[rows], self.cu_seqlens.diff()[rows]).long()
        within = self.first[words] - self.cu_seqlens[rows].repeat_interleave(counts)
        state, by_word = self.rule_state, self.rule_state is not None and not self.rule_layout[0]
        for name in ("pieces", "word_slots", "gone"):
            setattr(self, name, getattr(self, name)[words])
        self.frozen, self.sums = self.frozen[tokens], None if self.sums is None else self.sums[tokens]
        scores, self.scores = self.scores, None
        self.rule_state = None if by_word else state
        super()._keep_rows(rows)
        self.word_bounds = bounds_of(counts)
        self.first = within + self.cu_seqlens[:-1].repeat_interleave(counts)
        if len(rows):
            self.rule_state = state[words] if by_word and state is not None else self.rule_state
            self.scores = None if scores is None else scores._replace(logits=scores.logits[words])

    def _absorb(self, other: TorchFlight) -> None:
        assert isinstance(other, TokenFlight)
        tokens, words = len(self.x), len(self.gone)
        super()._absorb(other)
        self.first = torch.cat([self.first, other.first + tokens])
        self.word_bounds = torch.cat([self.word_bounds, other.word_bounds[1:] + words])
        for name in ("pieces", "word_slots", "gone", "frozen", "sums"):
            setattr(self, name, joined(getattr(self, name), getattr(other, name)))

    def _drop(self) -> None:
        super()._drop()
        self.word_bounds = self.word_bounds[:1]
        for name in ("first", "pieces", "word_slots", "gone", "frozen"):
            setattr(self, name, getattr(self, name)[:0])
        self.sums = None if self.sums is None else self.sums[:0]
