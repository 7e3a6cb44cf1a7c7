"""ElasticBERT (Liu et al., NAACL 2022): the sum of all exits' losses, balanced on its way back through the layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..heads import Scores
from .losses import exit_loss
from .pooled import PooledModel


class ElasticBERTModel(PooledModel):
    """sum_i L_i with gradient equilibrium: the hidden states after layer i get the mean over the exits from i on.

    With g_i the gradient with respect to the states after layer i: g_i = (dL_i + (n - i) g_(i+1)) / (n - i + 1), where
    the classifiers and poolers of the exits get theirs unscaled.
    """

    def pass_on(self, layer: int, hidden: Tensor) -> tuple[Tensor, Tensor]:
        above = len(self.exit_layers) - layer  # this recipe's head has an exit after every layer
        scaled = Scaled.apply(hidden, 1 / (above + 1))
        return scaled, Scaled.apply(scaled, float(above)) if above else scaled

    def loss(self, scores: Sequence[Scores], labels: Tensor | None) -> Tensor:
        assert labels is not None
        return exit_loss(torch.stack([each.logits for each in scores]), labels).sum()


class Scaled(torch.autograd.Function):
    """The same numbers, with a gradient that is multiplied by a factor."""

    @staticmethod
    def forward(context: Any, values: Tensor, factor: float) -> Tensor:
        context.factor = factor
        return values.view_as(values)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * context.factor, None
