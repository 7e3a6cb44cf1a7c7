"""The functions of the CUDA op set, over Triton kernels. Signatures and shapes: `ops.OpSet`.

These compute all rows of a tensor. The functions `run_` take counts that only the device knows, for `cuda_segment`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels.attention import attention
from ..kernels.embedding import embed as embed_kernel
from ..kernels.imitation_pooled import imitation_pooled
from ..kernels.layer_norm import Others, add_layer_norm
from ..kernels.linear import linear as linear_kernel
from ..kernels.mean import maximum as maximum_kernel
from ..kernels.mean import mean as mean_kernel
from ..kernels.query_mean import query_mean as query_mean_kernel
from ..kernels.rotate import rotate
from ..kernels.scratch import empty
from ..kernels.signals import signals
from . import Activation, Attentive, Block, Exit, Norm, Pooling, Queries, Tables, reference
from .distances import Distances
from .reference import PreparedAttentive, PreparedBlock
from .rule import Signal

HEAD_ALIGNMENT = 8  # in 16-bit numbers 16 bytes, which a thread loads at once
OWN_THREADS = False


class Linear(NamedTuple):
    weight: Tensor  # [out, in]
    bias: Tensor  # fp32 [out]


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
    """A count on the device, int32 [1]; it is made once."""
    with torch.inference_mode(False):
        return torch.full((1,), number, dtype=torch.int32, device=device)


def prepare_norm(norm: Norm, dtype: torch.dtype = torch.float32) -> Norm:
    """As `OpSet.prepare_norm`; norms are computed in float32, whatever dtype is."""
    return Norm(norm.weight.float().contiguous(), norm.bias.float().contiguous(), norm.eps)


def norm(x: Tensor, weights: Norm) -> Tensor:
    return add_layer_norm(x.contiguous(), None, *weights, full(len(x), x.device))


def prepare_linear(weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Linear:
    return Linear(weight.to(dtype).contiguous(), bias.float().contiguous())


def linear(x: Tensor, weights: Linear, activation: Activation, add: Tensor | None = None) -> Tensor:
    x = x.to(weights.weight.dtype).contiguous()
    add = None if add is None else add.contiguous()
    return run_linear(x, weights, activation, full(len(x), x.device), add=add)


def run_linear(x: Tensor, weights: Linear, activation: Activation, count: Tensor, **options: Any) -> Tensor:
    """`linear` of the first rows, as many as `count`, int32 [1] on the device, says. options: of `kernels.linear`."""
    return linear_kernel(x, weights.weight, weights.bias, activation, count, **options)


def prepare_embedding(tables: Tables, norm: Norm, dtype: torch.dtype) -> Embedding:
    word, *others = tables
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
    prepared = reference.prepared(block, dtype, prepare_linear)
    distances = None
    if block.distances is not None:
        dtypes = (torch.float32, torch.int32, dtype, dtype)
        parts = zip(block.distances, dtypes, strict=True)
        distances = Distances(*(None if part is None else part.to(kind).contiguous() for part, kind in parts))
    if block.gated:
        weight, bias = (part.unflatten(0, (2, -1)).transpose(0, 1).flatten(0, 1) for part in block.intermediate)
        prepared = prepared._replace(intermediate=prepare_linear(weight, bias, dtype))
    attention_norm = None if block.attention_norm is None else prepare_norm(block.attention_norm)
    return prepared._replace(
        attention_norm=attention_norm, output_norm=prepare_norm(block.output_norm), distances=distances
    )


class Listed(NamedTuple):
    """`Queries` whose number only the device knows."""

    tokens: Tensor  # int32 [Q]: which token of x each is
    bounds: Tensor  # int32 [R + 1]
    query_count: Tensor  # int32 [1]
    places: Tensor  # int32 [Q]: which token of the context each is; another one than in x where x was not compacted


class Frozen(NamedTuple):
    """The tokens of a context that are no queries."""

    numbers: Tensor  # int32 [T]: the number of each token among the queries, -1 where it is none
    others: Others  # their states, or, where they are renormalised, the sums that an output norm was applied to last


def keys_values(x: Tensor, cu_seqlens: Tensor, weights: PreparedBlock) -> Tensor:
    """As `OpSet.keys_values`: [T, 2 heads d]."""
    count = full(len(x), x.device)
    x, _ = _before_attention(x.contiguous(), weights, count, None)
    kept = run_linear(x, _parts(weights, 1, 3), "none", count)
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


def run_block(
    x: Tensor,
    bounds: Tensor,
    weights: PreparedBlock,
    queries: Literal["all", "first"] | Listed,
    longest: int,
    counts: tuple[Tensor, Tensor],
    sources: tuple[Tensor, Tensor] | None = None,
    kept: Tensor | None = None,
    out: Tensor | None = None,
    frozen: Frozen | None = None,
    sums: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`block_sums` of the first rows and tokens, as many as `counts`, int32 [1] each on the device, say.

    sources: the token of x that each token is, int32 [T], and that each row's first token is, int32 [R]; None: tokens
    are in order. kept: what `keys_values` returned; not with "all", nor with sources. frozen: the result is of all
    tokens, and those that are no queries are as this says. Fills `out` and `sums` where they are given.
    """
    (rows, tokens), (token_sources, first_sources) = counts, sources or (None, None)
    heads, scale = weights.num_heads, weights.scale
    options: dict[str, Any] = {"distances": weights.distances, "window": weights.window}

    def turned(x: Tensor, parts: int, **queries: Tensor | None) -> Tensor:
        """Queries and keys (2 parts), or one of them (1), at their positions."""
        if weights.rotary is None:
            return x
        size, angles = len(weights.qkv.bias) // (3 * heads), weights.rotary.angles
        return rotate(x, bounds, angles, parts * heads, size, longest, rows, **queries)

    if isinstance(queries, Listed) or kept is not None:
        assert isinstance(queries, Listed) or queries == "all"
        if kept is None:
            read, read_sources = _before_attention(x, weights, tokens, token_sources)
            kept = turned(run_linear(read, _parts(weights, 1, 3), "none", tokens, source_rows=read_sources), 1)
        of_queries = token_sources
        query_bounds, places = bounds, None
        if isinstance(queries, Listed):
            of_queries, query_bounds, tokens, places = queries
        read, read_sources = _before_attention(x, weights, tokens, of_queries)
        asked = run_linear(read, _parts(weights, 0, 1), "none", tokens, source_rows=read_sources)
        asked = turned(asked, 1, bounds=None if places is None else query_bounds, tokens=places)
        attended = attention(
            kept, bounds, heads, scale, longest, rows, (asked, query_bounds), query_tokens=places, **options
        )
        token_sources = of_queries
    else:
        read, read_sources = _before_attention(x, weights, tokens, token_sources)
        qkv = turned(run_linear(read, weights.qkv, "none", tokens, source_rows=read_sources), 2)
        attended = attention(qkv, bounds, heads, scale, longest, rows, queries, **options)
        if queries == "first":
            tokens, token_sources = rows, bounds[:-1] if first_sources is None else first_sources
    total = run_linear(attended, weights.attention_output, "none", tokens, add=x, add_source_rows=token_sources)
    if weights.norm_first:
        return _feed_forward_first(total, weights, tokens, counts[1], out, frozen)
    assert weights.attention_norm is not None
    x = add_layer_norm(total, None, *weights.attention_norm, tokens)
    inner = run_linear(x, weights.intermediate, weights.activation, tokens, gated=weights.gated)
    if frozen is None:
        total = run_linear(inner, weights.output, "none", tokens, add=x, out=sums)
        return add_layer_norm(total, None, *weights.output_norm, tokens, out=out), total
    total = run_linear(inner, weights.output, "none", tokens, add=x)
    sums = empty(len(frozen.numbers), total.shape[1], dtype=total.dtype, device=x.device) if sums is None else sums
    out = add_layer_norm(
        total, None, *weights.output_norm, counts[1], out=out, source_rows=frozen.numbers, others=frozen.others,
        sums=sums if frozen.others.renormalises else None,
    )  # fmt: skip
    return out, sums


def _before_attention(
    x: Tensor, weights: PreparedBlock, count: Tensor, sources: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """What queries, keys and values are made of, and which of its rows to read, where norms come first; else x."""
    if not weights.norm_first or weights.attention_norm is None:
        return x, sources
    return add_layer_norm(x, None, *weights.attention_norm, count, source_rows=sources), None


def _feed_forward_first(
    x: Tensor, weights: PreparedBlock, count: Tensor, tokens: Tensor, out: Tensor | None, frozen: Frozen | None
) -> tuple[Tensor, Tensor]:
    """The rest of `run_block` where norms come first. x: the sum after attention; count: of its rows."""
    read = add_layer_norm(x, None, *weights.output_norm, count)
    inner = run_linear(read, weights.intermediate, weights.activation, count, gated=weights.gated)
    total = run_linear(inner, weights.output, "none", count, add=x, out=out if frozen is None else None)
    if frozen is not None:
        total = add_layer_norm(
            total, None, None, None, 0.0, tokens, out=out, source_rows=frozen.numbers, others=frozen.others
        )
    return total, total


def output_norm(sums: Tensor, weights: PreparedBlock) -> Tensor:
    return norm(sums, weights.output_norm)


def _parts(weights: PreparedBlock, first: int, last: int) -> Linear:
    """Of queries (0), keys (1) and values (2) those from `first` to before `last`."""
    width = len(weights.qkv.weight) // 3
    return Linear(weights.qkv.weight[first * width : last * width], weights.qkv.bias[first * width : last * width])


def prepare_imitation(
    learners: Tensor,
    learner_bias: Tensor,
    activation: Activation,
    projections: Sequence[tuple[Tensor, Tensor]],
    dtype: torch.dtype,
) -> Imitation:
    return Imitation(
        learners.to(dtype).flatten(0, 1).contiguous(),
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
