"""The engine's own recipe, the default of `pfengine train`; how it was found: docs/results/compare/tried.md."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..heads import Scores
from .losses import divergences, given_or_not, losses_of
from .model import ExitModel
from .options import NOT_NEGATIVE, Option
from .system import System

OPTIONS = {
    "distil": Option(
        "Weight of what the exits learn from the last layer's answers, beside the labels.", NOT_NEGATIVE, default=0.0
    ),
}


class OwnModel(ExitModel):
    """Exits over tokens weighed by queries, all taught alike: mean_i L_i + d mean_{i<n} KL(p_n || p_i).

    L_i is the loss of the exit after layer i against the labels, p_i its probabilities; p_n, the last exit's, gets no
    gradient (self-distillation as in Zhang et al., ICCV 2019). For regression the divergence is the squared distance
    of the scores. d is the option `distil`.
    """

    def loss(self, scores: Sequence[Scores], labels: Tensor | None) -> Tensor:
        found = losses_of(scores, labels).mean()
        if not self.options["distil"] or len(scores) == 1:
            return found
        if labels is not None and labels.dim() == 3:  # labels that are given or not each by itself
            wanted = given_or_not(scores[-1].logits.detach())
            return found + self.options["distil"] * losses_of(scores[:-1], wanted).mean()
        return found + self.options["distil"] * divergences(torch.stack([each.logits for each in scores])).mean()


SYSTEMS = (
    System(
        "pfengine",
        "the engine's own: queries weigh the tokens, all exits are taught alike",
        {"type": "linear", "pooler": "per-layer", "combine": "none", "reads": "query"},
        OwnModel,
        options=("pooler", "reads"),
        own=OPTIONS,
        criterion="entropy",
        label_sets=True,
        defaults={"epochs": 3.0, "learning_rate": 8e-5, "averaging": 0.2},
    ),
)
