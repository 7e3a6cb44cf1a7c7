"""Exits of past and future for tests, and what they are in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pfengine.kernels.decide import Decided, ExitTest
from pfengine.kernels.past_future import Folded, Imitated, arrivals_of, past_future
from pfengine.ops import reference


class Parts(NamedTuple):
    """The arguments of `past_future` that are weights."""

    past: tuple[Tensor, Tensor]
    labels: int
    gates: int
    form: Any
    future: Imitated | Folded | None
    gate: tuple[Tensor, Tensor] | None
    states: int = 3

    def run(self, x: Tensor, count: Tensor, arrived: Tensor | None = None, test: ExitTest | None = None,
            **options: Any) -> Decided:  # fmt: skip
        if arrived is None:
            arrived = torch.zeros(arrivals_of(len(options.get("source_rows", x))), dtype=torch.int32, device=x.device)
        return past_future(
            x, self.past, self.labels, self.gates, self.form, ExitTest(1) if test is None else test, count, arrived,
            future=self.future, gate=self.gate, states=self.states, **options,
        )  # fmt: skip

    def exact(self, x: Tensor, add: Tensor | float = 0.0) -> tuple[Tensor, Tensor]:
        """Past and scores in float64, on the CPU."""
        wide = x.cpu().double()
        past = F.linear(wide, *(part.cpu().double() for part in self.past)) + add
        logits, gates = past[:, : self.labels], past[:, self.labels : self.labels + self.gates]
        future = self.exact_future(x)
        if not self.gates:
            return past, logits if future is None else logits + future
        gate = self.gate and reference.prepare_linear(*(part.cpu().double() for part in self.gate), torch.float64)
        return past, reference.gate_merge(logits, gates, future, gate, self.states)

    def exact_future(self, x: Tensor) -> Tensor | None:
        if self.future is None:
            return None
        if isinstance(self.future, Folded):
            return F.linear(x.cpu().double(), *(part.cpu().double() for part in self.future))
        learners, bias, activation, projection, offset = self.future
        rounded = x.to(learners.dtype).cpu().double()
        guesses = F.linear(rounded, learners.cpu().double(), bias.cpu().double())
        guesses = {"tanh": torch.tanh, "relu": torch.relu}.get(activation, lambda y: y)(guesses)
        return F.linear(guesses, projection.cpu().double(), None if offset is None else offset.cpu().double())


def parts_of(
    draw: Callable[..., Tensor], form: str, per_label: bool, labels: int, future: str, *, hidden: int = 32,
    learners: int = 3, dtype: torch.dtype = torch.float32, more: int = 2, offset: bool = True,
) -> Parts:  # fmt: skip
    """future: "" for none, "folded", or an activation. more: outputs of the past after scores and gates."""
    gates = 0 if form == "none" else labels if per_label else 1
    width, guessed = labels + gates + more, learners * hidden
    ahead: Imitated | Folded | None = None
    if future == "folded":
        ahead = Folded(draw(labels, hidden, scale=hidden**-0.5), draw(labels))
    elif future:
        ahead = Imitated(
            draw(guessed, hidden, dtype=dtype, scale=hidden**-0.5), draw(guessed), future,
            draw(labels, guessed, scale=hidden**-0.5), draw(labels) if offset else None,
        )  # fmt: skip
    gate = (draw(gates, gates), draw(gates)) if form == "authors" else None
    return Parts((draw(width, hidden, scale=hidden**-0.5), draw(width)), labels, gates, form, ahead, gate)
