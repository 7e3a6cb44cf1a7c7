"""The op set: modules with the same functions. `reference` is plain torch and defines what is right; `cpu` is fast.

T packed tokens, R rows, H hidden size, C labels, n layers. Chosen once, in `load()`.
"""

from __future__ import annotations

from collections.abc import Sequence
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
        self,
        learners: Tensor,
        learner_bias: Tensor,
        activation: Activation,
        projections: Sequence[tuple[Tensor, Tensor]],
        dtype: torch.dtype,
    ) -> Any:
        """Imitation learners of layers 2..n, [n-1, H, H] and [n-1, H], and what `project` does after layers 1..n-1.

        projections: for layer i [C, (n-i) H] and [C]; none where `project` and `imitation` are not called.
        """

    def guesses(self, states: Tensor, weights: Any, layer: int) -> Tensor:
        """activation(L_j s + l_j) for j > layer: [R, H] -> [R, n - layer, H]; layer < n."""

    def project(self, guesses: Tensor, weights: Any, layer: int) -> Tensor:
        """The projection after `layer` of imitated states side by side: [R, (n - layer) H] -> float32 [R, C]."""

    def imitation(self, states: Tensor, weights: Any, layer: int) -> Tensor:
        """project(guesses(states)): [R, H] -> float32 [R, C]; layer < n."""

    def gate_merge(self, past: Tensor, gates: Tensor, future: Tensor | None, gate: Any | None, count: int) -> Tensor:
        """Past and future weighed: float32 [R, C] of float32 past, future [R, C] and gates [R, C or 1].

        gate None:  lambda past + (1 - lambda) future, lambda = sigmoid(gates); future must be given.
        else:       2 lambda past + (2 - 2 lambda) future, lambda = sigmoid(gate(tanh(gates / count))), gate as
                    `prepare_linear` made it; future None for zero.
        """
