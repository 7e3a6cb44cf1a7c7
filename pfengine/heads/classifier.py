"""The head of a plain Hugging Face sequence-classification model, which answers after the last layer only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..config import BackboneConfig
from ..families import Shapes
from ..ops import Exit, OpSet
from .base import register
from .prepared import PreparedHead


@register
class Classifier(PreparedHead):
    """logits = W_c f(W_p h[first] + b_p) + b_c, f the model's `pooler_activation`, as in transformers."""

    name = "classifier"

    @staticmethod
    def layers(config: BackboneConfig, head: dict[str, Any]) -> tuple[int, ...]:
        return (config.num_layers,)

    @staticmethod
    def shapes(config: BackboneConfig, head: dict[str, Any]) -> Shapes:
        return config.classifier_shapes()

    def __init__(
        self,
        ops: OpSet,
        config: BackboneConfig,
        head: dict[str, Any],
        tensors: Mapping[str, Tensor],
        dtype: torch.dtype,
    ) -> None:
        pooler, classifier = config.family.pooler, config.family.classifier
        self.ops = ops
        self.pooler = ops.prepare_linear(tensors[f"{pooler}.weight"], tensors[f"{pooler}.bias"], dtype)
        self.classifier = ops.prepare_linear(
            tensors[f"{classifier}.weight"], tensors[f"{classifier}.bias"], torch.float32
        )
        self.pooler_activation = config.pooler_activation
        exit = Exit(config.num_labels, self.classifier, self.pooler, pooler_activation=self.pooler_activation)
        self.exits = [*[None] * (config.num_layers - 1), ops.prepare_exit(exit)]
