"""The interface of an op set, a module with these functions. `reference` is plain torch and defines what is right.

T: packed tokens, R: rows, H: hidden size, C: labels, n: layers. `load` chooses an op set once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from .distances import Distances as Distances
from .flight import Carrier
from .rotary import Rotary as Rotary
from .rule import Signal

Activation = Literal["none", "gelu", "gelu_tanh", "relu", "tanh"]
Pooling = Literal["max", "attention"]
TokenPooling = Literal["first", "max"]

Tables = tuple[Tensor, Tensor | None, Tensor | None]
"""Embeddings of words, positions and token types, [rows, H] each; a model may lack the second and the third."""


class Norm(NamedTuple):
    """LayerNorm parameters: weight and bias [H]."""

    weight: Tensor
    bias: Tensor
    eps: float


class Block(NamedTuple):
    """An attention and a feed-forward network as float32 tensors, not prepared. d: head size, I: inner size.

    Norms come after attention and after the feed-forward network, each after its residual. norm_first: they come
    before, `output_norm` before the feed-forward network; attention may have none. What goes on is the sum alone.
    gated: `intermediate` is [2 I, H], and its second half multiplies the activation of its first.
    """

    qkv: tuple[Tensor, Tensor]  # [3 heads d, H] and [3 heads d]: queries, keys and values side by side
    attention_output: tuple[Tensor, Tensor]  # [H, heads d], [H]
    attention_norm: Norm | None
    intermediate: tuple[Tensor, Tensor]  # [I, H], [I]
    output: tuple[Tensor, Tensor]  # [H, I], [H]
    output_norm: Norm
    num_heads: int
    scale: float  # of the attention scores
    activation: Activation
    distances: Distances | None = None
    rotary: Rotary | None = None
    window: int | None = None  # queries see keys at most so many tokens away; None: all of their row
    norm_first: bool = False
    gated: bool = False


class Queries(NamedTuple):
    """The tokens of a layer whose output is computed, in a context of T tokens."""

    tokens: Tensor  # int32 [Q]: which tokens of the context, rising
    bounds: Tensor  # int32 [R + 1]: row r has queries bounds[r] to bounds[r + 1]; a row may have none


AnyQueries = Literal["all", "first"] | Queries

Reads = Literal["first", "mean", "query", "all"]
"""What a head reads of a layer: each row's first token, the mean of its tokens, that weighed by queries, or all."""


class Attentive(NamedTuple):
    """Narrow self-attention over all tokens of a row, pooled, as float32 tensors, not prepared. w: its width.

    For the tokens x of a row: h = tanh(narrow(x)), then attention of `num_heads` heads, h' = output(attention(qkv(h))).
    The result is h' of the first token, or of each number the greatest that h' has among the row's tokens.
    """

    narrow: tuple[Tensor, Tensor]  # [w, H], [w]
    qkv: tuple[Tensor, Tensor]  # [3 heads d, w] and [3 heads d]: queries, keys and values side by side
    output: tuple[Tensor, Tensor]  # [w, heads d], [w]
    num_heads: int
    scale: float  # of the attention scores
    pooling: TokenPooling


class Exit(NamedTuple):
    """One exit, made of parts that an op set prepared: how what it reads of a layer becomes logits.

    x: the first token of a row, the mean of its tokens, or each token, as `reads` says. With "query" it is what
    `queries` make of a row's tokens; with `attentive`, which reads all tokens, it is what that gives for a row.
    State: s = pooler_norm(pooler_activation(pooler(x))), or x where there is no pooler; most have no pooler_norm.
    Past: `past` applied to s, plus the sum that earlier exits pass on. Its first `labels` numbers are scores, the next
    `width` numbers are gates.
    Future: `folded` applied to s, or the projection of the states that `imitation` guesses from s, or none.
    Logits: the merge of past and future that `OpSet.gate_merge` defines for gate_kind "paper" and "authors". With
    "none" they are the sum.
    Learned score: the sigmoid of `learned` applied to s, where there is one.
    """

    labels: int
    past: Any
    pooler: Any | None = None
    pooler_activation: Activation = "tanh"
    pooler_norm: Any | None = None  # what prepare_norm returned
    folded: Any | None = None
    imitation: tuple[Any, int] | None = None  # what prepare_imitation returned, and the layer
    gate_kind: Literal["none", "paper", "authors"] = "none"
    width: int = 0
    gate: Any | None = None
    states: int = 1  # how many states the gates are summed over
    reads: Reads = "first"
    learned: Any | None = None  # what prepare_linear made of a [1, H] matrix in float32
    attentive: Any | None = None  # what prepare_attentive returned; then the exit scores rows
    queries: Any | None = None  # what prepare_queries returned, where reads is "query"

    @property
    def scores_tokens(self) -> bool:
        """Does it score each token, rather than each row?"""
        return self.reads == "all" and self.attentive is None


class OpSet(Protocol):
    """What every op set offers. Functions `prepare_*` run once at load, and their results are opaque to callers.

    dtype: of the large products. int8: weights are quantised per output channel, activations per row; an op set may
    take 16 bits for products outside of blocks.
    """

    HEAD_ALIGNMENT: int
    """Head sizes are padded with zeros to a multiple of this when the weights are prepared."""

    OWN_THREADS: bool
    """Do its functions compute on threads of their own, for which torch's must not take the processors?"""

    def prepare_linear(self, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Any:
        """float32 weight [out, in] and bias [out] for `linear` in `dtype`."""

    def linear(self, x: Tensor, weights: Any, activation: Activation, add: Tensor | None = None) -> Tensor:
        """activation(x W^T + b) + add: [rows, in], [rows, out] -> [rows, out], float32 or the dtype of the weights."""

    def prepare_norm(self, norm: Norm, dtype: torch.dtype) -> Any:
        """Prepare a LayerNorm for `norm`. dtype: of the large products."""

    def norm(self, x: Tensor, weights: Any) -> Tensor:
        """LayerNorm of each row: [rows, H] -> the same."""

    def prepare_embedding(self, tables: Tables, norm: Norm, dtype: torch.dtype) -> Any:
        """Word, position and token type tables for `embed`."""

    def embed(self, ids: Tensor, positions: Tensor, types: Tensor, weights: Any) -> Tensor:
        """LayerNorm(word[ids] + position[positions] + type[types]): three int64 [T] -> [T, H].

        Without a table of positions or of token types these ids are not read.
        """

    def prepare_block(self, block: Block, dtype: torch.dtype) -> Any:
        """Prepare a block for `block`."""

    def keys_values(self, x: Tensor, cu_seqlens: Tensor, weights: Any) -> Any:
        """Keys and values of all tokens, for any number of calls of `block` on the same x."""

    def block(
        self,
        x: Tensor,
        cu_seqlens: Tensor,
        weights: Any,
        queries: AnyQueries = "all",
        kept: Any | None = None,
    ) -> Tensor:
        """The output of the queries: attention within each row, then feed-forward, as `Block` says.

        [T, H] -> [T, H] for all tokens, [R, H] for each row's first token, [Q, H] for a list, in its order. The context
        is all tokens. kept: what `keys_values` returned, or None to compute it here. A token's output has the same bits
        whatever the other queries are.
        """

    def block_sums(
        self, x: Tensor, cu_seqlens: Tensor, weights: Any, queries: Literal["all"] | Queries = "all"
    ) -> tuple[Tensor, Tensor]:
        """`block`, and the sums that its output norm was applied to, both [T or Q, H]; the same with norms first."""

    def output_norm(self, sums: Tensor, weights: Any) -> Tensor:
        """The block's output norm, applied to such sums: [Q, H] -> [Q, H]."""

    def prepare_imitation(
        self,
        learners: Tensor,
        learner_bias: Tensor,
        activation: Activation,
        projections: Sequence[tuple[Tensor, Tensor]],
        dtype: torch.dtype,
    ) -> Any:
        """Prepare the imitation learners of layers 2..n for `guesses`, `project` and `pooled`.

        learners: float32 [n-1, H, H]; learner_bias: float32 [n-1, H]. projections: for `project` after layer i =
        1..n-1, float32 [C, (n-i) H] and [C]; empty where `project` is not called.
        """

    def guesses(self, states: Tensor, weights: Any, layer: int) -> Tensor:
        """activation(L_j s + l_j) for j > layer: [R, H] -> [R, n - layer, H]; layer < n."""

    def project(self, guesses: Tensor, weights: Any, layer: int) -> Tensor:
        """The projection after `layer` of concatenated imitated states: [R, (n - layer) H] -> float32 [R, C]."""

    def pooled(self, states: Tensor, weights: Any, layer: int, pooling: Pooling, projection: Any) -> Tensor:
        """`guesses`, pooled over j and projected: [R, H] -> float32 [R, C]; layer < n.

        max:        P max_j s~_j + p
        attention:  P sum_j softmax_j(s~_j . s~_n / sqrt(H)) s~_j + p

        projection: P [C, H] and p [C] as `prepare_linear` made them in float32.
        """

    def gate_merge(self, past: Tensor, gates: Tensor, future: Tensor | None, gate: Any | None, count: int) -> Tensor:
        """Past and future, weighed by the gates: float32 [R, C] of float32 past, future [R, C] and gates [R, C or 1].

        gate None:  lambda past + (1 - lambda) future, lambda = sigmoid(gates); future must be given.
        else:       2 lambda past + (2 - 2 lambda) future, lambda = sigmoid(gate(tanh(gates / count))), where
                    `prepare_linear` made gate; a future of None is zero.
        """

    def prepare_model(
        self,
        embedding: Any,
        projection: Any | None,
        layers: list[list[Any]],
        exits: list[tuple[Any, int] | None],
        renormalises: bool = False,
        final_norm: Any | None = None,
    ) -> Carrier | None:
        """A carrier of flights through what this op set prepared; None where it has none of its own.

        projection: from the embedding's size to the hidden size, or None. layers: the blocks of each layer. exits: for
        each layer None, or the exit after it and a column: this exit's past is added to the columns of the previous
        exit's past from that one on, or to nothing where it is -1. The last layer has an exit. renormalises: of a tag
        head. True: the state of a token that has left becomes each later layer's output norm, applied to the sum
        before the last output norm that the token took part in. False: its state stays as it is. final_norm: what
        `prepare_norm` returned; exits read the states of tokens through it.
        """

    def prepare_exit(self, parts: Exit) -> Any:
        """Prepare an exit for `exit`."""

    def exit(
        self, x: Tensor, weights: Any, add: Tensor | None, answer: bool
    ) -> tuple[Tensor | None, Tensor, Tensor | None]:
        """Each row's logits, past and learned score, from what the exit reads.

        x: [R, H] -> float32 [R, C] (None unless `answer`), float32 [R, W], and float32 [R] (None unless `answer`, or
        where the exit has no learned score). add: float32 [R, W], what earlier exits left; None for zero.
        """

    def mean(self, x: Tensor, cu_seqlens: Tensor) -> Tensor:
        """The mean of each row's tokens: [T, H] -> float32 [R, H]. Summed in order, so the same bits in every batch."""

    def prepare_queries(self, queries: Tensor) -> Any:
        """Prepare queries, float32 [K, H], for `query_mean`; K divides H."""

    def query_mean(self, x: Tensor, cu_seqlens: Tensor, queries: Any) -> Tensor:
        """The mean of each row's tokens, weighed by queries: [T, H] -> float32 [R, H].

        The H channels are K groups of H / K. In group k the weight of token t is softmax_t(q_k . x_t) over the tokens
        of the row. A row has the same bits in every batch.
        """

    def prepare_attentive(self, parts: Attentive, dtype: torch.dtype) -> Any:
        """Prepare narrow self-attention for `attentive`."""

    def attentive(self, x: Tensor, cu_seqlens: Tensor, weights: Any) -> Tensor:
        """What `Attentive` gives for each row: [T, H] -> float32 [R, w]. A row has the same bits in every batch."""

    def signal(self, name: Signal, logits: Tensor, temperature: float) -> Tensor:
        """`decide.signal`: float32 [R, C] -> float32 [R], with the same bits as in the carrier's own loop."""
