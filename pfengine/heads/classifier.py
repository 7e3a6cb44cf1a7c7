"""The head of a plain Hugging Face sequence-classification model, which answers after the last layer only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..config import BackboneConfig
from ..families import Shapes
from ..ops import Exit, OpSet
from .base import ExitHead, HeadState, Scores


class Classifier(ExitHead):
    """logits = W_c f(W_p h[first] + b_p) + b_c, f the family's `pooler_activation`, as in transformers."""

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
        self.ops, self.num_layers = ops, config.num_layers
        self.pooler = ops.prepare_linear(tensors[f"{pooler}.weight"], tensors[f"{pooler}.bias"], dtype)
        self.classifier = ops.prepare_linear(
            tensors[f"{classifier}.weight"], tensors[f"{classifier}.bias"], torch.float32
        )
        self.pooler_activation = config.family.pooler_activation
        self.exit = ops.prepare_exit(
            Exit(config.num_labels, self.classifier, self.pooler, pooler_activation=self.pooler_activation)
        )

    def prepared_exits(self) -> list[tuple[Any, int] | None] | None:
        return [*[None] * (self.num_layers - 1), (self.exit, -1)]

    def step(
        self, layer: int, x: Tensor, cu_seqlens: Tensor, state: HeadState | None, answer: bool
    ) -> tuple[Scores | None, HeadState]:
        if not answer:
            return None, ()
        if layer != self.num_layers:
            raise ValueError(f"a plain classifier answers after layer {self.num_layers} only, not after layer {layer}")
        _, logits, _ = self.ops.exit(x, self.exit, None, answer=False)
        return Scores(logits), ()
