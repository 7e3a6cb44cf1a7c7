"""The functions of the CUDA op set, over Triton kernels. Signatures and shapes: `ops.OpSet`.

These compute all rows of a tensor. The functions `run_` take counts that only the device knows, for `cuda_segment`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels.attention import attention
from ..kernels.embedding import embed as embed_kernel
from ..kernels.imitation_pooled import imitation_pooled
from ..kernels.launch import power_of_two
from ..kernels.layer_norm import add_layer_norm
from ..kernels.mean import maximum as maximum_kernel
from ..kernels.mean import mean as mean_kernel
from ..kernels.query_mean import query_mean as query_mean_kernel
from ..kernels.rotate import rotate
from ..kernels.signals import signals
from . import Activation, Attentive, Block, Exit, Norm, Pooling, Queries, Tables, reference
from .cuda_block import Listed, before_attention, run_block
from .cuda_linear import Linear, float_of, parts_of, prepare_large, prepare_linear, run_linear
from .distances import Distances
from .reference import PreparedAttentive, PreparedBlock
from .rule import Signal

HEAD_ALIGNMENT = 8  # in 16-bit numbers 16 bytes, which a thread loads at once
OWN_THREADS = False
LEAST_COUNTS = 4096


class Embedding(NamedTuple):
    tables: Tables
    norm: Norm


class Imitation(NamedTuple):
    learners: Tensor  # [(n - 1) H, H]: those of layers 2..n, concatenated
    bias: Tensor  # fp32 [(n - 1) H]
    activation: Activation
    projections: list[Linear]  # after layer i: fp32 [C, (n - i) H]

    def after(self, layer: int) -> Linear:
        """The learners of the layers after `layer`."""
        first = (layer - 1) * self.learners.shape[1]
        return Linear(self.learners[first:], self.bias[first:])


@functools.lru_cache(maxsize=1024)
def full(number: int, device: torch.device) -> Tensor:
    """A count on the device, int32 [1], which any stream may read."""
    return _counts(power_of_two(number + 1, LEAST_COUNTS), device)[number, :1]


@functools.cache
def _counts(most: int, device: torch.device) -> Tensor:
    """All counts below `most`, int32 [most, 4], each at the start of 16 bytes. They are never freed."""
    with torch.inference_mode(False):
        counts = torch.arange(most, dtype=torch.int32, device=device)[:, None].repeat(1, 4)
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()  # they are there for every stream
    return counts


def prepare_norm(norm: Norm, dtype: torch.dtype = torch.float32) -> Norm:
    """As `OpSet.prepare_norm`; norms are computed in float32, whatever dtype is."""
    return Norm(norm.weight.float().contiguous(), norm.bias.float().contiguous(), norm.eps)


def norm(x: Tensor, weights: Norm) -> Tensor:
    return add_layer_norm(x.contiguous(), None, *weights, full(len(x), x.device))


def linear(x: Tensor, weights: Linear, activation: Activation, add: Tensor | None = None) -> Tensor:
    x = x.to(weights.weight.dtype).contiguous()
    add = None if add is None else add.contiguous()
    return run_linear(x, weights, activation, full(len(x), x.device), add=add)


def prepare_embedding(tables: Tables, norm: Norm, dtype: torch.dtype) -> Embedding:
    dtype, (word, *others) = float_of(dtype), tables
    position, token_type = (None if table is None else table.to(dtype).contiguous() for table in others)
    word = word.to(dtype).contiguous()
    return Embedding((word, position, token_type), prepare_norm(norm))


def embed(ids: Tensor, positions: Tensor, types: Tensor, weights: Embedding) -> Tensor:
    return run_embed(ids, positions, types, weights, full(len(ids), ids.device))


def run_embed(
    ids: Tensor, positions: Tensor, types: Tensor, weights: Embedding, count: Tensor, out: Tensor | None = None
) -> Tensor:
    """`embed` of the first tokens, as many as `count`, int32 [1] on the device, says."""
    return embed_kernel(ids, positions, types, weights.tables, *weights.norm, count, out=out)


def prepare_block(block: Block, dtype: torch.dtype) -> PreparedBlock:
    prepared = reference.prepared(block, dtype, prepare_large)
    distances = None
    if block.distances is not None:
        dtypes = (torch.float32, torch.int32, float_of(dtype), float_of(dtype))
        parts = zip(block.distances, dtypes, strict=True)
        distances = Distances(*(None if part is None else part.to(kind).contiguous() for part, kind in parts))
    if block.gated:
        weight, bias = (part.unflatten(0, (2, -1)).transpose(0, 1).flatten(0, 1) for part in block.intermediate)
        prepared = prepared._replace(intermediate=prepare_large(weight, bias, dtype))
    attention_norm = None if block.attention_norm is None else prepare_norm(block.attention_norm)
    return prepared._replace(
        attention_norm=attention_norm, output_norm=prepare_norm(block.output_norm), distances=distances
    )


def keys_values(x: Tensor, cu_seqlens: Tensor, weights: PreparedBlock) -> Tensor:
    """As `OpSet.keys_values`: [T, 2 heads d]."""
    count = full(len(x), x.device)
    read, _ = before_attention(x.contiguous(), weights, count, None)
    kept = run_linear(read, parts_of(weights.qkv, 1, 3), "none", count, out_dtype=x.dtype)
    if weights.rotary is None or not len(x):
        return kept
    heads, longest, rows = weights.num_heads, int(cu_seqlens.diff().max()), full(len(cu_seqlens) - 1, x.device)
    return rotate(kept, cu_seqlens, weights.rotary.angles, heads, kept.shape[1] // (2 * heads), longest, rows)


def block(
    x: Tensor,
    cu_seqlens: Tensor,
    weights: PreparedBlock,
    queries: Literal["all", "first"] | Queries = "all",
    kept: Tensor | None = None,
) -> Tensor:
    return _block(x, cu_seqlens, weights, queries, kept)[0]


def block_sums(
    x: Tensor, cu_seqlens: Tensor, weights: PreparedBlock, queries: Literal["all"] | Queries = "all"
) -> tuple[Tensor, Tensor]:
    return _block(x, cu_seqlens, weights, queries, None)


def _block(
    x: Tensor,
    cu_seqlens: Tensor,
    weights: PreparedBlock,
    queries: Literal["all", "first"] | Queries,
    kept: Tensor | None,
) -> tuple[Tensor, Tensor]:
    rows, device = len(cu_seqlens) - 1, x.device
    longest = int(cu_seqlens.diff().max()) if rows else 1  # waits for the GPU; `cuda_segment` knows it already
    counts = full(rows, device), full(len(x), device)
    asked: Literal["all", "first"] | Listed
    if isinstance(queries, Queries):
        asked = Listed(queries.tokens, queries.bounds, full(len(queries.tokens), device), queries.tokens)
    elif queries == "first" and kept is not None:
        one_each = torch.arange(rows + 1, dtype=torch.int32, device=device)
        firsts = cu_seqlens[:-1].contiguous()
        asked = Listed(firsts, one_each, counts[0], firsts)
    else:
        asked = queries
    return run_block(x, cu_seqlens, weights, asked, longest, counts, kept=kept)


def output_norm(sums: Tensor, weights: PreparedBlock) -> Tensor:
    return norm(sums, weights.output_norm)


def prepare_imitation(
    learners: Tensor,
    learner_bias: Tensor,
    activation: Activation,
    projections: Sequence[tuple[Tensor, Tensor]],
    dtype: torch.dtype,
) -> Imitation:
    return Imitation(
        learners.to(float_of(dtype)).flatten(0, 1).contiguous(),
        learner_bias.float().flatten().contiguous(),
        activation,
        [prepare_linear(*projection, torch.float32) for projection in projections],
    )


def guesses(states: Tensor, weights: Imitation, layer: int) -> Tensor:
    return linear(states, weights.after(layer), weights.activation).unflatten(1, (-1, states.shape[1]))


def project(guesses: Tensor, weights: Imitation, layer: int) -> Tensor:
    return F.linear(guesses.float(), *weights.projections[layer - 1])


def pooled(states: Tensor, weights: Imitation, layer: int, pooling: Pooling, projection: Linear) -> Tensor:
    learners, bias = weights.after(layer)
    count = full(len(states), states.device)
    states = states.to(learners.dtype).contiguous()
    shares = imitation_pooled(states, learners, bias, projection.weight, weights.activation, pooling, count)
    return functools.reduce(torch.add, shares) + projection.bias  # in order, however many rows there are


def gate_merge(past: Tensor, gates: Tensor, future: Tensor | None, gate: Linear | None, count: int) -> Tensor:
    plain = None if gate is None else reference.Linear(*gate)
    return reference.gate_merge(past, gates, future, plain, count)


def prepare_exit(parts: Exit) -> Exit:
    return parts


def exit(x: Tensor, weights: Exit, add: Tensor | None, answer: bool) -> tuple[Tensor | None, Tensor, Tensor | None]:
    state = x
    if weights.pooler is not None:
        state = x.to(weights.pooler.weight.dtype).contiguous()
        count, activation = full(len(x), x.device), weights.pooler_activation
        state = run_linear(state, weights.pooler, activation, count, out_dtype=torch.float32)
    state = state if weights.pooler_norm is None else norm(state, weights.pooler_norm)
    past = linear(state, weights.past, "none", add)
    if not answer:
        return None, past, None
    logits, gates = past[:, : weights.labels], past[:, weights.labels : weights.labels + weights.width]
    future = None
    if weights.folded is not None:
        future = linear(state, weights.folded, "none")
    if weights.imitation is not None:
        imitation, layer = weights.imitation
        future = project(guesses(state, imitation, layer).flatten(1), imitation, layer)
    if weights.gate_kind != "none":
        logits = gate_merge(logits, gates, future, weights.gate, weights.states)
    elif future is not None:
        logits = logits + future
    learned = None if weights.learned is None else torch.sigmoid(linear(state, weights.learned, "none")).squeeze(1)
    return logits.contiguous(), past, learned


def mean(x: Tensor, cu_seqlens: Tensor) -> Tensor:
    return mean_kernel(x, cu_seqlens, full(len(cu_seqlens) - 1, x.device))


def prepare_queries(queries: Tensor) -> Tensor:
    return queries.float().contiguous()


def query_mean(x: Tensor, cu_seqlens: Tensor, queries: Tensor) -> Tensor:
    return query_mean_kernel(x.contiguous(), cu_seqlens, queries, full(len(cu_seqlens) - 1, x.device))


def prepare_attentive(parts: Attentive, dtype: torch.dtype) -> PreparedAttentive:
    return reference.prepared_attentive(parts, dtype, prepare_linear)


def attentive(x: Tensor, cu_seqlens: Tensor, weights: PreparedAttentive) -> Tensor:
    rows = len(cu_seqlens) - 1
    longest = int(cu_seqlens.diff().max()) if rows else 1  # waits for the GPU; `cuda_segment` knows it already
    counts = full(rows, x.device), full(len(x), x.device)
    return run_attentive(x.to(weights.narrow.weight.dtype).contiguous(), cu_seqlens, weights, longest, counts)


def run_attentive(
    x: Tensor,
    bounds: Tensor,
    weights: PreparedAttentive,
    longest: int,
    counts: tuple[Tensor, Tensor],
    out_dtype: torch.dtype = torch.float32,
) -> Tensor:
    """`attentive` of the first rows and tokens, as many as `counts`, int32 [1] each on the device, say."""
    rows, tokens = counts
    narrow = run_linear(x, weights.narrow, "tanh", tokens)
    qkv = run_linear(narrow, weights.qkv, "none", tokens)
    if weights.pooling == "first":
        attended = attention(qkv, bounds, weights.num_heads, weights.scale, longest, rows, "first")
        return run_linear(attended, weights.output, "none", rows, out_dtype=out_dtype)
    attended = attention(qkv, bounds, weights.num_heads, weights.scale, longest, rows)
    return maximum_kernel(run_linear(attended, weights.output, "none", tokens), bounds, rows, out_dtype)


def signal(name: Signal, logits: Tensor, temperature: float) -> Tensor:
    return signals(name, logits.float().contiguous(), temperature)
