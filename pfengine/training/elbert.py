"""ELBERT (Xie et al., 2021): one classifier for all layers, and weights of the layers' losses that are learned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..convert import elbert
from ..heads import Scores
from .losses import losses_of
from .options import Option
from .pooled import PooledModel
from .system import System

OPTIONS = {
    "layer_weights": Option(
        "Weights of the layers' losses: learned or equal.", choices=("learned", "equal"), default="learned"
    )
}
START, RATE = 4.0, 1e-2  # of the weights' logits: what they start at, their learning rate


class ELBERTModel(PooledModel):
    """sum_i w_i L_i with w_i = sigmoid(v_i) for i < n, and w_n = n - sum_{i<n} w_i.

    As in the authors' code the v_i are learned with the model, at a learning rate of their own, and are not stored.
    With the option `layer_weights` "equal" all w_i are 1.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.equal = self.options.get("layer_weights") == "equal" or len(self.exit_layers) == 1
        if not self.equal:
            start = torch.full((len(self.exit_layers) - 1,), START, dtype=torch.float32, device="cpu")
            self.layer_weights = nn.Parameter(start)

    def rates(self) -> dict[str, float]:
        return super().rates() | ({} if self.equal else {"layer_weights": RATE})

    def loss(self, scores: Sequence[Scores], labels: Tensor | None) -> Tensor:
        losses = losses_of(scores, labels)
        if self.equal:
            return losses.sum()
        weights = torch.sigmoid(self.layer_weights)
        return (weights * losses[:-1]).sum() + (len(losses) - weights.sum()) * losses[-1]


SYSTEMS = (
    System(
        "elbert",
        "a confidence window over one shared classifier",
        {"type": "linear", "pooler": "shared", "classifiers": "shared"},
        ELBERTModel,
        options=("pooler", "reads"),
        own=OPTIONS,
        criterion="elbert",
        converter=elbert,
    ),
)
