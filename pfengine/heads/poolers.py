"""The state of a layer, of what an exit head reads: each row's first token, or the mean of its tokens."""

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
    """Shapes of the poolers' tensors, by key: weights [layers or 1, H, H], biases [layers or 1, H]."""
    if kind == "none":
        return {}
    count = 1 if kind == "shared" else layers
    return {f"{PREFIX}poolers.weight": (count, hidden, hidden), f"{PREFIX}poolers.bias": (count, hidden)}


class Pooler:
    """s_i = tanh(W_i h + b_i), with one W and b for all layers where shared. Without poolers s_i = h."""

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
        """The state after layer `layer`: [rows, H] -> [rows, H]."""
        return self.ops.linear(first, self.weights[layer - 1], "tanh") if self.weights else first
