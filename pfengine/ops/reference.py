"""Plain torch, on any device and in any float dtype: it defines what is right. Signatures and shapes: `ops.OpSet`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import Activation, AnyQueries, Attentive, Block, Exit, Norm, Pooling, Queries, Tables, TokenPooling, distances
from .decide import signal as signal
from .distances import Distances
from .flight import Carrier
from .plain_attention import attention as attention
from .plain_attention import composed_query_mean as composed_query_mean
from .plain_attention import unseen as unseen
from .quantisation import LEARNER_BITS, fake_quantise_rows, quantise_weight
from .rotary import Rotary, positions_of, turned

HEAD_ALIGNMENT = 1
OWN_THREADS = False


class Linear(NamedTuple):
    weight: Tensor  # [out, in]
    bias: Tensor  # [out]
    int8: bool = False  # weight is rounded to values that int8 can hold, and x is rounded likewise


class Embedding(NamedTuple):
    tables: Tables
    norm: Norm


class PreparedBlock(NamedTuple):
    """`Block`, its linear layers, norms and distances prepared."""

    qkv: Any
    attention_output: Any
    attention_norm: Norm | None
    intermediate: Any
    output: Any
    output_norm: Norm
    num_heads: int
    scale: float
    activation: Activation
    distances: Any | None
    rotary: Rotary | None = None
    window: int | None = None
    norm_first: bool = False
    gated: bool = False


class Imitation(NamedTuple):
    learners: Tensor  # [n - 1, H, H]
    learner_bias: Tensor  # [n - 1, H]
    activation: Activation
    projections: Sequence[tuple[Tensor, Tensor]]  # after layer i: [C, (n - i) H], [C]
    int8: bool


class PreparedAttentive(NamedTuple):
    """`Attentive`, its linear layers prepared."""

    narrow: Any
    qkv: Any
    output: Any
    num_heads: int
    scale: float
    pooling: TokenPooling


def activate(x: Tensor, activation: Activation) -> Tensor:
    match activation:
        case "none":
            return x
        case "gelu":
            return F.gelu(x)
        case "gelu_tanh":
            return F.gelu(x, approximate="tanh")
        case "relu":
            return F.relu(x)
        case "tanh":
            return torch.tanh(x)


def prepare_linear(weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Linear:
    if dtype == torch.int8:
        numbers, scale = quantise_weight(weight)
        return Linear(numbers.float() * scale[:, None], bias.float(), int8=True)
    return Linear(weight.to(dtype), bias.to(dtype))


def linear(x: Tensor, weights: Linear, activation: Activation, add: Tensor | None = None) -> Tensor:
    x = x.to(weights.weight.dtype)
    x = fake_quantise_rows(x) if weights.int8 else x
    y = activate(F.linear(x, weights.weight, weights.bias), activation)
    return y if add is None else y + add


def prepare_norm(norm: Norm, dtype: torch.dtype) -> Norm:
    small = torch.float32 if dtype == torch.int8 else dtype
    return Norm(norm.weight.to(small), norm.bias.to(small), norm.eps)


def prepare_embedding(tables: Tables, norm: Norm, dtype: torch.dtype) -> Embedding:
    dtype = torch.float32 if dtype == torch.int8 else dtype
    word, *others = tables
    position, token_type = (None if table is None else table.to(dtype) for table in others)
    return Embedding((word.to(dtype), position, token_type), prepare_norm(norm, dtype))


def embed(ids: Tensor, positions: Tensor, types: Tensor, weights: Embedding) -> Tensor:
    word, position, token_type = weights.tables
    x = F.embedding(ids, word)
    if token_type is not None:
        x = x + F.embedding(types, token_type)
    if position is not None:
        x = x + F.embedding(positions, position)
    return F.layer_norm(x, x.shape[-1:], *weights.norm)


def prepare_block(block: Block, dtype: torch.dtype) -> PreparedBlock:
    small = torch.float32 if dtype == torch.int8 else dtype
    by_distance = distances.prepared(block.distances, lambda x: x.to(small), lambda x: x.to(small))
    return prepared(block, dtype, prepare_linear)._replace(distances=by_distance)


def prepared(block: Block, dtype: torch.dtype, prepare: Callable[[Tensor, Tensor, torch.dtype], Any]) -> PreparedBlock:
    """Prepare a block, its linear layers by `prepare`; its distances stay as they are."""
    intermediate: Any
    if block.gated:  # values and gates apart: torch computes an activation of part of a row in another way
        halves = zip(*(part.chunk(2) for part in block.intermediate), strict=True)
        intermediate = tuple(prepare(weight, bias, dtype) for weight, bias in halves)
    else:
        intermediate = prepare(*block.intermediate, dtype)
    return PreparedBlock(
        qkv=prepare(*block.qkv, dtype),
        attention_output=prepare(*block.attention_output, dtype),
        attention_norm=None if block.attention_norm is None else prepare_norm(block.attention_norm, dtype),
        intermediate=intermediate,
        output=prepare(*block.output, dtype),
        output_norm=prepare_norm(block.output_norm, dtype),
        num_heads=block.num_heads,
        scale=block.scale,
        activation=block.activation,
        distances=block.distances,
        rotary=block.rotary,
        window=block.window,
        norm_first=block.norm_first,
        gated=block.gated,
    )


def keys_values(x: Tensor, cu_seqlens: Tensor, weights: PreparedBlock) -> Tensor:
    """As `OpSet.keys_values`. The result holds the queries of all tokens too; `block` takes those it needs."""
    return projected(x, cu_seqlens, weights, linear)


def projected(
    x: Tensor, cu_seqlens: Tensor, weights: PreparedBlock, linear: Callable[[Tensor, Any, Activation], Tensor]
) -> Tensor:
    """Queries, keys and values of all tokens, at their positions: [T, 3 heads d]."""
    if weights.norm_first and weights.attention_norm is not None:
        x = norm(x, weights.attention_norm)
    qkv = linear(x, weights.qkv, "none")
    if weights.rotary is None:
        return qkv
    parts = qkv.unflatten(1, (3, weights.num_heads, -1))
    queries_keys = turned(parts[:, :2], positions_of(cu_seqlens, len(x)), weights.rotary)
    return torch.cat([queries_keys, parts[:, 2:]], 1).flatten(1)


def block(
    x: Tensor, cu_seqlens: Tensor, weights: PreparedBlock, queries: AnyQueries = "all", kept: Tensor | None = None
) -> Tensor:
    return composed(x, cu_seqlens, weights, queries, kept, linear, attention)[0]


def block_sums(
    x: Tensor, cu_seqlens: Tensor, weights: PreparedBlock, queries: AnyQueries = "all"
) -> tuple[Tensor, Tensor]:
    return composed(x, cu_seqlens, weights, queries, None, linear, attention)


def output_norm(sums: Tensor, weights: PreparedBlock) -> Tensor:
    return norm(sums, weights.output_norm)


def composed(
    x: Tensor,
    cu_seqlens: Tensor,
    weights: PreparedBlock,
    queries: AnyQueries,
    kept: Tensor | None,
    linear: Callable[[Tensor, Any, Activation], Tensor],
    attention: Callable[[Tensor, Tensor, int, float, Queries | None, Distances | None, int | None], Tensor],
) -> tuple[Tensor, Tensor]:
    """`block_sums` for an op set with this `linear` and `attention`. kept: queries, keys and values of all tokens."""
    if queries == "first":
        rows = torch.arange(len(cu_seqlens), dtype=torch.int32, device=cu_seqlens.device)
        queries = Queries(cu_seqlens[:-1], rows)
    asked = None if queries == "all" else queries
    qkv = projected(x, cu_seqlens, weights, linear) if kept is None else kept
    heads, scale = weights.num_heads, weights.scale
    attended = attention(qkv, cu_seqlens, heads, scale, asked, weights.distances, weights.window)
    x = x if asked is None else x.index_select(0, asked.tokens)
    x = linear(attended, weights.attention_output, "none") + x
    if weights.norm_first:
        sums = linear(feed_forward(norm(x, weights.output_norm), weights, linear), weights.output, "none") + x
        return sums, sums
    assert weights.attention_norm is not None
    x = norm(x, weights.attention_norm)
    sums = linear(feed_forward(x, weights, linear), weights.output, "none") + x
    return norm(sums, weights.output_norm), sums


def feed_forward(x: Tensor, weights: PreparedBlock, linear: Callable[[Tensor, Any, Activation], Tensor]) -> Tensor:
    """What `output` of a block multiplies: [T, H] -> [T, I]."""
    if not weights.gated:
        return linear(x, weights.intermediate, weights.activation)
    values, gates = weights.intermediate
    return linear(x, values, weights.activation) * linear(x, gates, "none")


def norm(x: Tensor, weights: Norm) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weights.weight, weights.bias, weights.eps)


def mean(x: Tensor, cu_seqlens: Tensor) -> Tensor:
    lengths = cu_seqlens.diff()
    row_of = torch.repeat_interleave(torch.arange(len(lengths), dtype=torch.int64, device=x.device), lengths)
    total = torch.zeros(len(lengths), x.shape[1], dtype=torch.float32, device=x.device)
    return total.index_add_(0, row_of, x.float()) / lengths[:, None]


def prepare_queries(queries: Tensor) -> Linear:
    return prepare_linear(queries, torch.zeros_like(queries[:, 0]), torch.float32)


def query_mean(x: Tensor, cu_seqlens: Tensor, queries: Linear) -> Tensor:
    return composed_query_mean(x, cu_seqlens, queries, linear)


def prepare_attentive(parts: Attentive, dtype: torch.dtype) -> PreparedAttentive:
    return prepared_attentive(parts, dtype, prepare_linear)


def prepared_attentive(
    parts: Attentive, dtype: torch.dtype, prepare: Callable[[Tensor, Tensor, torch.dtype], Any]
) -> PreparedAttentive:
    """Prepare the linear layers of narrow self-attention by `prepare`."""
    narrow, qkv, output = (prepare(*pair, dtype) for pair in (parts.narrow, parts.qkv, parts.output))
    return PreparedAttentive(narrow, qkv, output, parts.num_heads, parts.scale, parts.pooling)


def attentive(x: Tensor, cu_seqlens: Tensor, weights: PreparedAttentive) -> Tensor:
    return composed_attentive(x, cu_seqlens, weights, linear, attention)


def composed_attentive(
    x: Tensor,
    cu_seqlens: Tensor,
    weights: PreparedAttentive,
    linear: Callable[[Tensor, Any, Activation], Tensor],
    attention: Callable[..., Tensor],
) -> Tensor:
    """`attentive` for an op set with this `linear` and `attention`."""
    rows = len(cu_seqlens) - 1
    every = torch.arange(rows + 1, dtype=torch.int32, device=cu_seqlens.device)
    asked = Queries(cu_seqlens[:-1], every) if weights.pooling == "first" else None
    qkv = linear(linear(x, weights.narrow, "tanh"), weights.qkv, "none")
    attended = attention(qkv, cu_seqlens, weights.num_heads, weights.scale, asked)
    y = linear(attended, weights.output, "none").float()
    if asked is not None or not rows:
        return y[:rows]
    return torch.stack([row.amax(0) for row in y.split(cu_seqlens.diff().tolist())])


def prepare_imitation(
    learners: Tensor,
    learner_bias: Tensor,
    activation: Activation,
    projections: Sequence[tuple[Tensor, Tensor]],
    dtype: torch.dtype,
) -> Imitation:
    projections = [(matrix.float(), bias.float()) for matrix, bias in projections]
    if dtype == torch.int8:
        numbers, scale = quantise_weight(learners.flatten(0, 1), LEARNER_BITS)
        learners = (numbers.float() * scale[:, None]).view_as(learners)
        return Imitation(learners, learner_bias.float(), activation, projections, int8=True)
    return Imitation(learners.to(dtype), learner_bias.to(dtype), activation, projections, int8=False)


def guesses(states: Tensor, weights: Imitation, layer: int) -> Tensor:
    first = layer - 1  # learners start at layer 2, so entry `layer - 1` imitates layer + 1
    learners = weights.learners[first:]
    states = states.to(learners.dtype)
    states = fake_quantise_rows(states) if weights.int8 else states
    imitated = torch.einsum("rh,joh->rjo", states, learners) + weights.learner_bias[first:]
    return activate(imitated, weights.activation)


def project(guesses: Tensor, weights: Imitation, layer: int) -> Tensor:
    matrix, bias = weights.projections[layer - 1]
    return F.linear(guesses.to(matrix.dtype), matrix, bias)


def pooled(states: Tensor, weights: Imitation, layer: int, pooling: Pooling, projection: Linear) -> Tensor:
    return composed_pooled(states, weights, layer, pooling, projection, sys.modules[__name__])


def composed_pooled(states: Tensor, weights: Any, layer: int, pooling: Pooling, projection: Any, ops: Any) -> Tensor:
    """`pooled`, made of an op set's `linear` and `guesses`."""
    return ops.linear(pool(ops.guesses(states, weights, layer), pooling), projection, "none")


def pool(states: Tensor, pooling: Pooling) -> Tensor:
    """[rows, m, H] -> [rows, H]."""
    match pooling:
        case "max":
            return states.amax(1)
        case "attention":
            return attend(states.float())


def attend(states: Tensor) -> Tensor:
    """sum_j softmax_j(s_j . s_m / sqrt(H)) s_j of states [rows, m, H] -> [rows, H]."""
    scores = (states * states[:, -1:]).sum(-1, keepdim=True) * states.shape[-1] ** -0.5
    return (torch.softmax(scores, 1) * states).sum(1)


def gate_merge(past: Tensor, gates: Tensor, future: Tensor | None, gate: Linear | None, count: int) -> Tensor:
    if gate is None:
        assert future is not None
        keep = torch.sigmoid(gates)
        return keep * past + (1 - keep) * future
    keep = torch.sigmoid(linear(torch.tanh(gates / count), gate, "none"))
    merged = 2 * keep * past
    return merged if future is None else merged + (2 - 2 * keep) * future


def prepare_model(
    embedding: Any,
    projection: Any | None,
    layers: list[list[Any]],
    exits: list[tuple[Any, int] | None],
    renormalises: bool = False,
    final_norm: Norm | None = None,
) -> Carrier | None:
    return None


def prepare_exit(parts: Exit) -> Exit:
    return parts


def exit(x: Tensor, weights: Exit, add: Tensor | None, answer: bool) -> tuple[Tensor | None, Tensor, Tensor | None]:
    return composed_exit(x, weights, add, answer, sys.modules[__name__])


def composed_exit(
    x: Tensor, parts: Exit, add: Tensor | None, answer: bool, ops: Any
) -> tuple[Tensor | None, Tensor, Tensor | None]:
    """`exit`, made of an op set's `linear`, `guesses`, `project` and `gate_merge`."""
    state = x if parts.pooler is None else ops.linear(x, parts.pooler, parts.pooler_activation)
    state = state if parts.pooler_norm is None else ops.norm(state, parts.pooler_norm)
    past = ops.linear(state, parts.past, "none", add)
    if not answer:
        return None, past, None
    logits, gates = past[:, : parts.labels], past[:, parts.labels : parts.labels + parts.width]
    future = None
    if parts.folded is not None:
        future = ops.linear(state, parts.folded, "none")
    if parts.imitation is not None:
        imitation, layer = parts.imitation
        future = ops.project(ops.guesses(state, imitation, layer).flatten(1), imitation, layer)
    if parts.gate_kind != "none":
        logits = ops.gate_merge(logits, gates, future, parts.gate, parts.states)
    elif future is not None:
        logits = logits + future
    learned = None
    if parts.learned is not None:
        # sigmoid by tanh, whose vector body and scalar tail agree to the last bit
        learned = (1 + torch.tanh(ops.linear(state, parts.learned, "none")[:, 0] / 2)) / 2
    return logits.contiguous(), past, learned
