"""The op set: modules with the same functions. `reference` is plain torch and defines what is right; `cpu` is fast.

T packed tokens, R rows, H hidden size, C labels, n layers. Chosen once, in `load()`.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

Activation = Literal["none", "gelu", "gelu_tanh", "relu", "tanh"]


class Norm(NamedTuple):
    """LayerNorm parameters: weight and bias [H]."""

    weight: Tensor
    bias: Tensor
    eps: float


class OpSet(Protocol):
    """What every op-set module offers; `prepare_*` run once at load, their results are opaque to callers."""

    HEAD_ALIGNMENT: int
    """Head sizes are padded with zeros to a multiple of this when the weights are prepared."""

    def prepare_linear(self, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Any:
        """weight [out, in] and bias [out] for `linear` in `dtype`."""

    def linear(self, x: Tensor, weights: Any, activation: Activation) -> Tensor:
        """activation(x W^T + b): [rows, in] -> [rows, out] in the dtype of the weights."""

    def embed(
        self, ids: Tensor, positions: Tensor, types: Tensor, tables: tuple[Tensor, Tensor, Tensor], norm: Norm
    ) -> Tensor:
        """LayerNorm(word[ids] + position[positions] + type[types]): three int64 [T] -> [T, H]."""

    def add_layer_norm(self, x: Tensor, residual: Tensor, norm: Norm) -> Tensor:
        """LayerNorm(x + residual): [T, H] -> [T, H]."""

    def attention(self, qkv: Tensor, cu_seqlens: Tensor, num_heads: int, scale: float, first_only: bool) -> Tensor:
        """Bidirectional softmax(scale Q K^T) V within each row: [T, 3 heads d] -> [T, heads d].

        first_only: of each row's first token only, [R, heads d].
        """

    def prepare_imitation(
        self, learners: Tensor, learner_bias: Tensor, projections: Tensor, projection_bias: Tensor, dtype: torch.dtype
    ) -> Any:
        """Imitation learners of layers 2..n, [n-1, H, H] and [n-1, H], and their projections, [n-1, C, H], [n-1, C]."""

    def imitation(self, pooled: Tensor, weights: Any, layer: int) -> Tensor:
        """sum_{j > layer} P_j tanh(L_j p + l_j) + q_j: [R, H] -> float32 [R, C]; layer < n."""

    def gate_merge(self, past: Tensor, future: Tensor | None, gate: Any, layer: int) -> Tensor:
        """2 lambda a + (2 - 2 lambda) future with [a, g] = past and lambda = sigmoid(gate(tanh(g / layer))).

        past: float32 [R, 2C], summed over the layers up to `layer`; future: float32 [R, C], None for zero.
        """
