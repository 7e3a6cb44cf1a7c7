"""The state of a layer: what an exit head reads of each row's first token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from ..families import Shapes
from ..ops import OpSet
from .base import PREFIX

PoolerKind = Literal["per-layer", "shared", "none"]


def pooler_shapes(kind: PoolerKind, layers: int, hidden: int) -> Shapes:
    """Tensors of the poolers with their shapes: weights [layers or 1, H, H], biases [layers or 1, H]."""
    if kind == "none":
        return {}
    count = 1 if kind == "shared" else layers
    return {f"{PREFIX}poolers.weight": (count, hidden, hidden), f"{PREFIX}poolers.bias": (count, hidden)}


class Pooler:
    """tanh(W_i h[first] + b_i), with one W and b for all layers where shared; h[first] itself without poolers."""

    def __init__(
        self, ops: OpSet, kind: PoolerKind, layers: int, tensors: Mapping[str, Tensor], dtype: torch.dtype
    ) -> None:
        self.ops = ops
        self.weights = []
        if kind != "none":
            weight, bias = tensors["poolers.weight"], tensors["poolers.bias"]
            self.weights = [ops.prepare_linear(w, b, dtype) for w, b in zip(weight, bias, strict=True)]
            self.weights *= layers // len(self.weights)

    def __call__(self, layer: int, first: Tensor) -> Tensor:
        """The state of layer `layer`: [rows, H] -> [rows, H]."""
        return self.ops.linear(first, self.weights[layer - 1], "tanh") if self.weights else first
