"""The engine's own recipe, the default of `pfengine train`; how it was found: docs/results/compare/tried.md."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..heads import Scores
from .losses import disagreement, divergences, losses_of
from .model import ExitModel
from .options import NOT_NEGATIVE, Option
from .system import System

OPTIONS = {
    "distil": Option(
        "Weight of what the exits learn from the last layer's answers, beside the labels.", NOT_NEGATIVE, default=0.0
    ),
    "consistency": Option(
        "Weight of the difference between two answers to a row, each with a dropout of its own; 0: it is read once.",
        NOT_NEGATIVE,
        default=0.0,
    ),
}


class OwnModel(ExitModel):
    """Exits over tokens weighed by queries, all taught alike: mean_i L_i + d mean_{i<n} KL(p_n || p_i) + c mean_i D_i.

    L_i is the loss of the exit after layer i against the labels, p_i its probabilities; p_n, the last exit's, gets no
    gradient (self-distillation as in Zhang et al., ICCV 2019). Where c is above 0 each row is in the batch twice, and
    D_i is the mean of KL(p_i || q_i) and KL(q_i || p_i) of its two answers (R-Drop, Liang et al., NeurIPS 2021). For
    regression the divergences are the squared distance of the scores. d and c are the options `distil` and
    `consistency`.
    """

    @property
    def twice(self) -> bool:
        """Is each row read twice?"""
        return self.training and self.options["consistency"] > 0

    def read_layers(self, inputs: dict[str, Tensor]) -> tuple[list[Tensor], Tensor | None]:
        if self.twice:
            inputs = {name: torch.cat([value, value]) if value.dim() else value for name, value in inputs.items()}
        return super().read_layers(inputs)

    def outputs(
        self, states: Sequence[Tensor], labels: Tensor | None, bounds: Tensor | None = None
    ) -> dict[str, Tensor]:
        if self.twice and labels is not None:
            if len(states[0]) == len(labels):  # of a finished model, whose states are read once
                states = [torch.cat([state, state]) for state in states]
            labels = torch.cat([labels, labels])
        return super().outputs(states, labels, bounds)

    def loss(self, scores: Sequence[Scores], labels: Tensor | None) -> Tensor:
        logits = torch.stack([each.logits for each in scores])
        found = losses_of(scores, labels).mean()
        if self.options["distil"] and len(scores) > 1:
            found = found + self.options["distil"] * divergences(logits).mean()
        if self.twice:
            found = found + self.options["consistency"] * disagreement(*logits.chunk(2, 1)).mean()
        return found


SYSTEMS = (
    System(
        "pfengine",
        "the engine's own: queries weigh the tokens, all exits are taught alike",
        {"type": "linear", "pooler": "per-layer", "combine": "none", "reads": "query"},
        OwnModel,
        options=("pooler", "reads"),
        own=OPTIONS,
        criterion="entropy",
        defaults={"epochs": 3.0, "learning_rate": 8e-5, "averaging": 0.2},
    ),
)
