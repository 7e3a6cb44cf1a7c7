"""Flights layer by layer, over any op set and for any head: the carrier that defines what the others do.

A layer whose tested exit reads first tokens is computed in two halves. Before the exit come the keys and values of all
tokens and the output of the first tokens. After it comes the output of the other tokens, for the rows that stay. A row
that leaves has paid for a sixth of the layer and one token.
"""

from __future__ import annotations

import contextlib
import functools
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from . import encoder
from .batch import Packed, compacted
from .encoder import Encoder
from .heads import ExitHead
from .heads.base import HeadState, Scores
from .ops import Queries, Reads
from .ops.decide import decide
from .ops.flight import MIN_ROWS_TO_HALVE, Answers, Carrier, Exit, Flight, Joining, check_mask
from .ops.rule import ExitRule
from .torch_state import isolated, on_one_thread


def _computing(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method of a carrier or flight that computes in torch between functions of the op set."""

    @functools.wraps(method)
    def isolated_method(self: TorchCarrier | TorchFlight, *arguments: Any, **options: Any) -> Any:
        carrier = self if isinstance(self, TorchCarrier) else self.carrier
        with isolated(), on_one_thread() if carrier.encoder.ops.OWN_THREADS else contextlib.nullcontext():
            return method(self, *arguments, **options)

    return isolated_method


@dataclass(frozen=True)
class TorchCarrier(Carrier):
    """A head of any kind over an encoder, prepared for one op set."""

    flight: type[TorchFlight]  # TokenFlight where the head scores tokens
    encoder: Encoder
    head: ExitHead
    exit_layers: tuple[int, ...]  # layers that have an exit; the last one is always among them
    labels: int
    device: torch.device
    learned: bool = False  # does the head add a score of its own?
    worker_threads: int = 1
    max_flights: int = sys.maxsize
    may_join: bool = False  # it is not made for speed
    joining: Joining | None = None
    max_rows: int = sys.maxsize

    @property
    def num_layers(self) -> int:
        return len(self.encoder.layers)

    @_computing
    def start(self, packed: Packed, slots: np.ndarray, answers: Answers) -> Flight:
        return self.flight(self, packed, slots, answers)

    def warmup(self, packed: Packed, rule: ExitRule) -> None:
        rows = len(packed.row_ids)
        answers = Answers(0, rows, self.labels)
        self.start(packed, np.arange(rows), answers).advance(rule, self.num_layers)


class HalfDone(NamedTuple):
    """A half-done layer: its first tokens are computed, and some of its rows have left since."""

    x: Tensor  # the input of the layer's last block, [T, H]
    cu_seqlens: Tensor  # int32 [R + 1]
    block: Any
    kept: Any  # the block's keys and values, as `OpSet.keys_values` made them
    first: Tensor  # [R, H]: its output of first tokens
    rows: Tensor  # int64, rising: the rows that are left


class TorchFlight(Flight):
    """`ops.flight.Flight` for heads that score rows."""

    layer: int = 0

    def __init__(self, carrier: TorchCarrier, packed: Packed, slots: np.ndarray, answers: Answers) -> None:
        inputs = packed.to(carrier.device)
        self.carrier, self.answers = carrier, answers
        self.x, self.cu_seqlens = encoder.embed(carrier.encoder, inputs), inputs.cu_seqlens
        self.row_slots = torch.from_numpy(slots).to(carrier.device)  # the slot of each row that is left
        self.half_done: HalfDone | None = None  # while the present layer is half done, and x is not its output yet
        self.head_state: HeadState | None = None
        self.rule_state: Tensor | None = None  # what the rule carries from exit to exit; None: nothing yet
        self.rule_layout: tuple[Any, ...] = ()  # what its numbers stand for
        self.scores: Scores | None = None  # after the present layer

    def __len__(self) -> int:
        return len(self.row_slots)

    @property
    def _reads(self) -> Reads:
        return self.carrier.head.reads(self.layer)

    def slots(self) -> np.ndarray:
        slots: np.ndarray = self.row_slots.numpy(force=True).copy()
        return slots

    @_computing
    def advance(self, rule: ExitRule, until: int, scores: bool = True) -> Exit | None:
        carrier, head = self.carrier, self.carrier.head
        if not len(self):
            return None
        if until <= self.layer:
            raise ValueError(f"until is {until}, expected a layer after {self.layer}")
        rule.check(carrier.num_layers, len(self.answers.exit_layers), head.tags, carrier.learned)
        if self.rule_state is not None and rule.width(carrier.labels) and rule.layout != self.rule_layout:
            raise ValueError("the rule carries other numbers from exit to exit than the rule before it did")
        while len(self) and self.layer < min(until, carrier.num_layers):
            self._finish_layer()
            self.layer += 1
            last, has_exit = self.layer == carrier.num_layers, self.layer in carrier.exit_layers
            tested = has_exit and not last and bool(rule.tested[self.layer - 1])
            stops = self.layer == until
            answer = tested or (has_exit and (scores if stops else last))
            self._run_layer(half_done=answer and not last and len(self) >= MIN_ROWS_TO_HALVE, last=last)
            self.scores, self.head_state = carrier.head.step(
                self.layer, self._read(), self._bounds(), self.head_state, answer
            )
            if last and answer:
                self._leave(torch.ones_like(self._gone_before()), answered=True)
            elif tested:
                self._decide(rule)
        return self._exit() if len(self) else None

    @_computing
    def leave(self, gone: Tensor | np.ndarray, answered: bool = True) -> None:
        check_mask(gone, len(self._gone_before()))
        gone = gone if isinstance(gone, Tensor) else torch.from_numpy(gone)
        self._leave(gone.to(self.row_slots.device), answered)

    @_computing
    def join(self, other: Flight) -> None:
        if other is self:
            raise ValueError("a flight cannot join itself")
        if not isinstance(other, TorchFlight) or other.carrier is not self.carrier:
            raise ValueError("the other flight is not one of the same carrier")
        if other.answers is not self.answers:
            raise ValueError("the other flight has other answers; flights that join must write to the same Answers")
        if not len(other):
            return
        if len(self) and other.layer != self.layer:
            raise ValueError(f"the other flight is at layer {other.layer}, this one at layer {self.layer}")
        carry = self.rule_state is not None and other.rule_state is not None
        if len(self) and carry and self.rule_layout != other.rule_layout:
            raise ValueError("the flights' rules carry different numbers from exit to exit")
        self._finish_layer()
        other._finish_layer()
        if len(self):
            self._absorb(other)
        else:
            self.__dict__.update(other.__dict__)
        other._drop()

    @_computing
    def states(self) -> Tensor:
        if self._reads == "query":
            return encoder.seen(self.carrier.encoder, self.x).float().clone()
        return self._read().float().clone()

    def _gone_before(self) -> Tensor:
        """Rows that have left and are still carried, bool [R]: none. For tag heads, words, bool [W]."""
        return torch.zeros(len(self), dtype=torch.bool, device=self.row_slots.device)

    def _exit(self) -> Exit:
        logits, learned = self.scores or (None, None)
        return Exit(self.layer, copied(logits), self.row_slots.clone(), copied(learned))

    def _decide(self, rule: ExitRule) -> None:
        self._leave(self._leaving(rule, self.row_slots), answered=True)

    def _leaving(self, rule: ExitRule, slots: Tensor, bounds: Tensor | None = None) -> Tensor:
        """Who leaves, by the rule. A rule that carries nothing keeps what the rule before it carried."""
        scores, signal, carries = self._scores(), self.carrier.encoder.ops.signal, rule.width(self.carrier.labels)
        state = self.rule_state if carries else None
        leave, state = decide(rule, self.layer, scores.logits, scores.learned, state, slots, signal, bounds)
        if carries:
            self.rule_state, self.rule_layout = state, rule.layout
        return leave

    def _scores(self) -> Scores:
        if self.scores is None:
            raise ValueError(f"no row can answer after layer {self.layer}, where no scores were asked for")
        return self.scores

    def _absorb(self, other: TorchFlight) -> None:
        """Append the rows of `other`."""
        self._join_rule_states(other)
        self.cu_seqlens = torch.cat([self.cu_seqlens, other.cu_seqlens[1:] + len(self.x)])
        self.x, self.row_slots = torch.cat([self.x, other.x]), torch.cat([self.row_slots, other.row_slots])
        self.head_state = joined(self.head_state, other.head_state)
        self.scores = None if self.scores is None or other.scores is None else joined(self.scores, other.scores)

    def _join_rule_states(self, other: TorchFlight) -> None:
        """A flight that carries nothing for a rule yet is filled up with nan, which means "no exit so far"."""
        if self.rule_state is None and other.rule_state is None:
            return
        layout = self.rule_layout if other.rule_state is None else other.rule_layout
        by_row = layout[0] or not self.carrier.head.tags
        states = []
        for flight in (self, other):
            state = flight.rule_state
            if state is None:
                some = self.rule_state if other.rule_state is None else other.rule_state
                assert some is not None
                state = some.new_full((len(flight) if by_row else len(flight._gone_before()), some.shape[1]), math.nan)
            states.append(state)
        self.rule_state, self.rule_layout = torch.cat(states), layout

    def _run_layer(self, half_done: bool, last: bool) -> None:
        """Compute the next layer. half_done: only its first half, where the head reads first tokens."""
        weights, reads = self.carrier.encoder, self._reads
        x, block = encoder.enter(weights, self.layer, self.x, self.cu_seqlens)
        if last and reads == "first":
            self.x = weights.ops.block(x, self.cu_seqlens, block, "first")
            self.cu_seqlens = torch.arange(len(self) + 1, dtype=torch.int32, device=x.device)
        elif half_done and reads == "first":
            kept = weights.ops.keys_values(x, self.cu_seqlens, block)
            first = weights.ops.block(x, self.cu_seqlens, block, "first", kept)
            self.half_done = HalfDone(
                x, self.cu_seqlens, block, kept, first, torch.arange(len(self), dtype=torch.int64, device=x.device)
            )
        else:
            self.x = weights.ops.block(x, self.cu_seqlens, block)

    def _finish_layer(self) -> None:
        """Compute the second half for the rows that are left, moved together."""
        if self.half_done is None:
            return
        x, bounds, block, kept, first, rows = self.half_done
        self.half_done = None
        stays = torch.zeros(len(first), dtype=torch.bool, device=x.device)
        stays[rows] = True
        lengths = bounds.diff()
        others = torch.where(stays, lengths - 1, 0)
        tokens = ranges(bounds[:-1] + 1, others)
        out = self.carrier.encoder.ops.block(x, bounds, block, Queries(tokens, bounds_of(others)), kept)
        self.cu_seqlens = bounds_of(lengths[rows])
        self.x = out.new_empty(int(self.cu_seqlens[-1]), out.shape[1])
        self.x[self.cu_seqlens[:-1]] = first[rows].to(out.dtype)
        self.x[ranges(self.cu_seqlens[:-1] + 1, others[rows])] = out

    def _read(self) -> Tensor:
        """What the head reads of the present layer: [R, H], or all tokens [T, H]."""
        weights = self.carrier.encoder
        match self._reads:
            case "first" if self.half_done is not None:
                return encoder.seen(weights, self.half_done.first.index_select(0, self.half_done.rows))
            case "first":
                first = self.x if len(self.x) == len(self) else self.x.index_select(0, self.cu_seqlens[:-1])
                return encoder.seen(weights, first)
            case _:
                x = encoder.seen(weights, self.x)
                return self.carrier.head.read(weights.ops, self.layer, x, self.cu_seqlens)

    def _bounds(self) -> Tensor:
        """The bounds of rows in what `_read` gives: int32 [R + 1]."""
        if self._reads == "all":
            return self.cu_seqlens
        return torch.arange(len(self) + 1, dtype=torch.int32, device=self.row_slots.device)

    def _leave(self, gone: Tensor, answered: bool) -> None:
        """Rows where `gone`, bool [R], is true leave, with an answer where `answered`. The others move together."""
        where = np.flatnonzero(gone.numpy(force=True))
        if not len(where):
            return
        if answered:
            self._answer(self.row_slots, where)
        self._keep_rows((~gone).nonzero().squeeze(1))

    def _answer(self, slots: Tensor, where: np.ndarray) -> None:
        """Write the scores of these units to their slots. where: int64, the numbers of the units."""
        to = slots.numpy(force=True)[where]
        self.answers.logits[to] = self._scores().logits.numpy(force=True)[where]
        self.answers.exit_layers[to] = self.layer

    def _keep_rows(self, rows: Tensor) -> None:
        """Keep only these rows: int64, rising."""
        if not len(rows):
            self._drop()
            return
        self.head_state, self.rule_state = select_rows(self.head_state, rows), select_rows(self.rule_state, rows)
        self.scores = select_rows(self.scores, rows)
        if self.half_done is not None:
            self.half_done = self.half_done._replace(rows=self.half_done.rows[rows])
            self.row_slots = self.row_slots[rows]
            return
        stay = torch.zeros(len(self), dtype=torch.bool, device=self.row_slots.device)
        stay[rows] = True
        self.x, self.cu_seqlens, self.row_slots = compacted(self.x, self.cu_seqlens, self.row_slots, stay)

    def _drop(self) -> None:
        """No row is left: free what was carried."""
        self.row_slots, self.x, self.cu_seqlens = self.row_slots[:0], self.x[:0], self.cu_seqlens[:1]
        self.half_done = self.head_state = self.rule_state = self.scores = None


def bounds_of(lengths: Tensor) -> Tensor:
    """Row bounds, int32 [R + 1], from row lengths [R]."""
    bounds = torch.zeros(len(lengths) + 1, dtype=torch.int32, device=lengths.device)
    torch.cumsum(lengths, 0, dtype=torch.int32, out=bounds[1:])
    return bounds


def ranges(starts: Tensor, lengths: Tensor) -> Tensor:
    """int32: lengths[0] numbers from starts[0] on, then lengths[1] numbers from starts[1] on, and so on."""
    ends = torch.cumsum(lengths, 0)
    numbers = torch.arange(int(ends[-1]) if len(ends) else 0, dtype=torch.int32, device=starts.device)
    return numbers + torch.repeat_interleave(starts - (ends - lengths).to(torch.int32), lengths)


def copied(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.clone()


def select_rows(state: Any, rows: Tensor) -> Any:
    """These rows, by number, of every tensor in the state of a head or criterion."""
    return mapped(lambda x: x.index_select(0, rows), state)


def joined(state: Any, other: Any) -> Any:
    """The states of two flights joined, rows of `state` first."""
    return mapped(lambda x, y: torch.cat([x, y]), state, other)


def mapped(function: Callable[..., Tensor], state: Any, *others: Any) -> Any:
    """`function` of every tensor in a state and of those in the same place of others; the state's tuples are kept."""
    if not isinstance(state, tuple):
        return None if state is None else function(state, *others)
    parts = [mapped(function, *each) for each in zip(state, *others, strict=True)]
    return type(state)(*parts) if hasattr(state, "_fields") else type(state)(parts)
