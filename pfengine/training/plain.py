"""Recipes without a future: a classifier after every layer trained jointly, and the full model (BERT-kL)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..heads import Classifier, ExitHead, Linear, Scores
from ..ops import reference
from .model import ExitModel
from .options import given
from .system import System


class LinearModel(ExitModel):
    """Plain classifiers at every layer, loss sum_i i L_i / sum_i i (as PABEE and, in one stage, DeeBERT's heads).

    With `combine` the loss is still that of each layer's own logits: the naive strategies have nothing to train.
    """

    def head(self) -> ExitHead:
        own = {**self.head_config, "combine": "none"}
        return Linear(reference, self.backbone_config, own, self.head_tensors(), torch.float32)


class FullModel(ExitModel):
    """One classifier after the last layer: an ordinary fine-tuned model; with k layers, BERT-kL."""

    def scores(self, states: Sequence[Tensor], bounds: Tensor | None) -> list[Scores]:
        """Dropout comes after the pooler, as in transformers."""
        head = Classifier(reference, self.backbone_config, self.head_config, self.head_tensors(), torch.float32)
        pooled = head.pooled(states[-1])
        return [Scores(reference.linear(self.drop(pooled), head.parts.past, "none"))]


def linear_head(options: Mapping[str, Any], shared_pooler: bool) -> dict[str, Any]:
    """The `head` object of plain classifiers. shared_pooler: one pooler for all layers, unless the options say."""
    pooler = options.get("pooler") or ("shared" if shared_pooler else "per-layer")
    head = {"type": "linear", "pooler": pooler, "combine": "none"}
    return head | given(options, "reads")


SYSTEMS = (
    System(
        "linear",
        "a classifier after every layer",
        linear_head,
        LinearModel,
        options=("pooler", "reads"),
        criterion="entropy",
        label_sets=True,
    ),
    System("full-model", "one after the last layer", {"type": "classifier"}, FullModel),
)
