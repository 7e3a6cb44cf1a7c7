"""Recipes without a future: a classifier after every layer trained jointly, and the full model (BERT-kL)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..heads import Classifier, Linear
from ..ops import reference
from .model import ExitModel, depth_weighted, exit_loss


class LinearModel(ExitModel):
    """Plain classifiers at every layer, loss sum_i i L_i / sum_i i (as PABEE and, in one stage, DeeBERT's heads).

    With `combine` the loss is still that of each layer's own logits: the naive strategies have nothing to train.
    """

    def outputs(self, first: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        own = {**self.head_config, "combine": "none"}
        head = Linear(reference, self.backbone_config, own, self.head_tensors(), torch.float32)
        rows = torch.arange(first.shape[1] + 1, dtype=torch.int32, device=first.device)
        answers = [head.step(i, self.drop(states), rows, (), True)[0] for i, states in enumerate(first, 1)]
        logits = torch.stack([answer.logits for answer in answers if answer is not None])
        out = {"logits": logits.transpose(0, 1)}
        if labels is not None:
            out["loss"] = depth_weighted(exit_loss(logits, labels))
        return out


class FullModel(ExitModel):
    """One classifier after the last layer: an ordinary fine-tuned model; with k layers, BERT-kL."""

    def outputs(self, first: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        head = Classifier(reference, self.backbone_config, self.head_config, self.head_tensors(), torch.float32)
        pooled = reference.linear(first[-1], head.pooler, head.pooler_activation)
        logits = reference.linear(self.drop(pooled), head.classifier, "none").unsqueeze(0)
        out = {"logits": logits.transpose(0, 1)}
        if labels is not None:
            out["loss"] = exit_loss(logits, labels)[0]
        return out
