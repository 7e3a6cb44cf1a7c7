"""What recipes with poolers and linear classifiers have in common."""

from __future__ import annotations

import torch
from torch import Tensor

from ..heads import PREFIX
from .model import ExitModel
from .plain import LinearModel


def copy_pooler(model: ExitModel, pooler: tuple[Tensor, Tensor]) -> None:
    """Make the poolers of a model's head copies of the encoder's, as `initialise` gets it; a shared one of the last."""
    tensors = model.head_tensors()
    with torch.no_grad():
        for kind, value in zip(("weight", "bias"), pooler, strict=True):
            if f"{PREFIX}poolers.{kind}" in tensors:
                own = tensors[f"{PREFIX}poolers.{kind}"]
                own.copy_(value[-len(own) :])


class PooledModel(LinearModel):
    """As `ExitModel`, with poolers that start as copies of the pretrained encoder's own (PABEE and others)."""

    def initialise(self, pooler: tuple[Tensor, Tensor]) -> None:
        copy_pooler(self, pooler)
