"""ElasticBERT (Liu et al., NAACL 2022): the sum of all exits' losses, balanced on its way back through the layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..convert import elasticbert
from ..heads import Scores
from .losses import losses_of
from .options import COUNT, Option
from .pooled import PooledModel
from .system import System

OPTIONS = {"groups": Option("Groups of exits that take turns, a step each; the last exit is in all.", COUNT, default=1)}


class ElasticBERTModel(PooledModel):
    """sum_i L_i with gradient equilibrium: the hidden states after layer i get the mean over the exits from i on.

    With g_i the gradient with respect to the states after layer i, and k_i the number of exits from i on:
    g_i = (dL_i + k_(i+1) g_(i+1)) / k_i, where poolers and classifiers get theirs unscaled. With the option `groups` G,
    each step trains every G-th exit and the last one (section 3.3, where a model is pre-trained so); i runs over them.
    """

    def trained(self, layer: int) -> bool:
        """Is the exit after this layer trained in the present step?"""
        groups = self.options.get("groups", 1)
        return layer == len(self.exit_layers) or (layer - 1) % groups == self.step % groups

    def pass_on(self, layer: int, hidden: Tensor) -> tuple[Tensor, Tensor]:
        above = sum(self.trained(later) for later in range(layer + 1, len(self.exit_layers) + 1))
        if not self.trained(layer):
            return hidden, hidden
        scaled = Scaled.apply(hidden, 1 / (above + 1))
        return scaled, Scaled.apply(scaled, float(above)) if above else scaled

    def loss(self, scores: Sequence[Scores], labels: Tensor | None) -> Tensor:
        trained = [each for layer, each in enumerate(scores, 1) if self.trained(layer)]
        return losses_of(trained, labels).sum()


class Scaled(torch.autograd.Function):
    """The same numbers, with a gradient that is multiplied by a factor."""

    @staticmethod
    def forward(context: Any, values: Tensor, factor: float) -> Tensor:
        context.factor = factor
        return values.view_as(values)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * context.factor, None


SYSTEMS = (
    System(
        "elasticbert",
        "all exits' losses, balanced on their way back",
        {"type": "linear", "pooler": "per-layer"},
        ElasticBERTModel,
        options=("pooler", "reads"),
        own=OPTIONS,
        criterion="entropy",
        converter=elasticbert,
    ),
)
