"""The op set: modules with the same functions. `reference` is plain torch and defines what is right; `cpu` is fast.

T packed tokens, R rows, H hidden size, C labels, n layers. Chosen once, in `load()`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

Activation = Literal["none", "gelu", "gelu_tanh", "relu", "tanh"]
Pooling = Literal["max", "attention"]


class Norm(NamedTuple):
    """LayerNorm parameters: weight and bias [H]."""

    weight: Tensor
    bias: Tensor
    eps: float


class Block(NamedTuple):
    """One attention and one feed-forward network as float32 tensors, not prepared. d: head size, I: inner size."""

    qkv: tuple[Tensor, Tensor]  # [3 heads d, H] and [3 heads d]: queries, keys and values side by side
    attention_output: tuple[Tensor, Tensor]  # [H, heads d], [H]
    attention_norm: Norm
    intermediate: tuple[Tensor, Tensor]  # [I, H], [I]
    output: tuple[Tensor, Tensor]  # [H, I], [H]
    output_norm: Norm
    num_heads: int
    scale: float  # of the attention scores
    activation: Activation


class Exit(NamedTuple):
    """One exit, of parts that an op set prepared: how the first tokens of a layer become logits.

    state = tanh(pooler(first token)), or the first token itself; past = past(state) + what earlier exits left;
    future = folded(state), or the projection of `imitation`'s guesses, or none. What the past's first numbers, `labels`
    for the past proper and then `width` for its gates, and the future make together is said at `OpSet.gate_merge`, for
    gate_kind "paper" and "authors"; "none" adds them.
    """

    labels: int
    past: Any
    pooler: Any | None = None
    folded: Any | None = None
    imitation: tuple[Any, int] | None = None  # what prepare_imitation made, and the layer
    gate_kind: Literal["none", "paper", "authors"] = "none"
    width: int = 0
    gate: Any | None = None
    states: int = 1  # how many the gates are summed over


class OpSet(Protocol):
    """What every op-set module offers; `prepare_*` run once at load, their results are opaque to callers.

    dtype: of the large products; int8 stands for weights quantised per output channel, x per row.
    """

    HEAD_ALIGNMENT: int
    """Head sizes are padded with zeros to a multiple of this when the weights are prepared."""

    def prepare_linear(self, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Any:
        """float32 weight [out, in] and bias [out] for `linear` in `dtype`."""

    def linear(self, x: Tensor, weights: Any, activation: Activation, add: Tensor | None = None) -> Tensor:
        """activation(x W^T + b) + add: [rows, in], [rows, out] -> [rows, out], float32 or the dtype of the weights."""

    def prepare_embedding(self, tables: tuple[Tensor, Tensor, Tensor], norm: Norm, dtype: torch.dtype) -> Any:
        """Word, position and token type tables for `embed`."""

    def embed(self, ids: Tensor, positions: Tensor, types: Tensor, weights: Any) -> Tensor:
        """LayerNorm(word[ids] + position[positions] + type[types]): three int64 [T] -> [T, H]."""

    def prepare_block(self, block: Block, dtype: torch.dtype) -> Any:
        """A block for `block`."""

    def block(self, x: Tensor, cu_seqlens: Tensor, weights: Any, first_only: bool) -> Tensor:
        """Attention within each row and feed-forward network, each with residual and LayerNorm: [T, H] -> [T, H].

        first_only: of each row's first token only, [R, H].
        """

    def open_block(self, x: Tensor, cu_seqlens: Tensor, weights: Any) -> tuple[Tensor, Any]:
        """`block` of each row's first token only, [R, H], and what `close_block` needs to go on."""

    def close_block(self, opened: Any, stay: Tensor) -> tuple[Tensor, Tensor]:
        """`block` of the rows where `stay`, bool [R], is true, moved together: [T', H], and their cu_seqlens.

        The other rows have cost their first token, and keys and values of the rest.
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

        projections: for layer i [C, (n-i) H] and [C]; none where `project` is not called.
        """

    def guesses(self, states: Tensor, weights: Any, layer: int) -> Tensor:
        """activation(L_j s + l_j) for j > layer: [R, H] -> [R, n - layer, H]; layer < n."""

    def project(self, guesses: Tensor, weights: Any, layer: int) -> Tensor:
        """The projection after `layer` of imitated states side by side: [R, (n - layer) H] -> float32 [R, C]."""

    def pooled(self, states: Tensor, weights: Any, layer: int, pooling: Pooling, projection: Any) -> Tensor:
        """`guesses`, pooled over j and projected: [R, H] -> float32 [R, C]; layer < n.

        max:        P max_j s~_j + p
        attention:  P sum_j softmax_j(s~_j . s~_n / sqrt(H)) s~_j + p

        projection: P [C, H] and p [C] as `prepare_linear` made them in float32.
        """

    def gate_merge(self, past: Tensor, gates: Tensor, future: Tensor | None, gate: Any | None, count: int) -> Tensor:
        """Past and future weighed: float32 [R, C] of float32 past, future [R, C] and gates [R, C or 1].

        gate None:  lambda past + (1 - lambda) future, lambda = sigmoid(gates); future must be given.
        else:       2 lambda past + (2 - 2 lambda) future, lambda = sigmoid(gate(tanh(gates / count))), gate as
                    `prepare_linear` made it; future None for zero.
        """

    def prepare_model(
        self, embedding: Any, widen: Any | None, layers: list[list[Any]], exits: list[tuple[Any, int] | None]
    ) -> Callable[..., None] | None:
        """`model.run_model` of what this op set prepared, all layers in one call; None where it cannot do that.

        layers: the blocks of each; exits: the exit behind each layer, if any, and the place in the past of the exit
        before from which on it adds (-1: it adds nothing). The last layer has one.
        """

    def prepare_exit(self, parts: Exit) -> Any:
        """An exit for `exit`."""

    def exit(
        self, x: Tensor, cu_seqlens: Tensor, weights: Any, add: Tensor | None, answer: bool
    ) -> tuple[Tensor | None, Tensor]:
        """Logits of each row, and its past: [T, H] -> float32 [R, C] (None unless `answer`) and float32 [R, W].

        add: float32 [R, W], what earlier exits left, or None for zero.
        """
