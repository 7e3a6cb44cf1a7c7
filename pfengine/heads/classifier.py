"""The head of a plain Hugging Face sequence-classification model, which answers after the last layer only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..config import BackboneConfig
from ..encoder import linear_of, norm_of
from ..families import Shapes
from ..ops import Exit, OpSet
from .base import register
from .prepared import PreparedHead
from .reading import Reading


@register
class Classifier(PreparedHead):
    """logits = W_c f(W_p h + b_p) + b_c, f the model's `pooler_activation`, as in transformers.

    h is the first token's, or the mean of the row's tokens. ModernBERT has a LayerNorm after f.
    """

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
        classifier = config.family.classifier
        self.ops = ops
        self.reading = Reading(None, {"reads": "first" if config.modern is None else config.modern.pooling}, {})
        self.parts = Exit(
            config.num_labels,
            ops.prepare_linear(*linear_of(tensors, classifier), torch.float32),
            reads=self.reading.kind,
            **pooler_of(ops, config, tensors, dtype),
        )
        self.exits = [*[None] * (config.num_layers - 1), ops.prepare_exit(self.parts)]

    def pooled(self, x: Tensor) -> Tensor:
        """What the classifier is applied to: [R, H] -> [R, H]."""
        parts = self.parts
        state = self.ops.linear(x, parts.pooler, parts.pooler_activation)
        return state if parts.pooler_norm is None else self.ops.norm(state, parts.pooler_norm)


def pooler_of(ops: OpSet, config: BackboneConfig, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Any]:
    """The fields of `Exit` that are the pooler of a plain Hugging Face model."""
    norm = config.family.pooler_norm
    return {
        "pooler": ops.prepare_linear(*linear_of(tensors, config.family.pooler), dtype),
        "pooler_activation": config.pooler_activation,
        "pooler_norm": norm and ops.prepare_norm(norm_of(tensors, norm, config.layer_norm_eps), dtype),
    }
