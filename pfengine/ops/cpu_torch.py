"""The CPU op set where pfengine._C is missing: weights packed once for oneDNN, attention by torch.

Signatures and shapes: `ops.OpSet`. Three things would make a row's bits depend on its batch. `F.linear` in fp32 sums in
another order for few rows; the packed op does so for one row only, so a single row is doubled. MKL's products depend on
the 64-byte alignment of their operands; so head sizes are multiples of 16, and attention takes what `_attend` gives it.
torch.sigmoid differs between its vector body and its scalar tail; so torch.tanh is used, which does not.
"""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import Activation, AnyQueries, Attentive, Block, Exit, Pooling, Queries, distances, reference
from .distances import Distances, distance_scores
from .reference import (
    PreparedAttentive,
    PreparedBlock,
    embed,
    mean,
    norm,
    output_norm,
    prepare_embedding,
    prepare_exit,
    prepare_model,
    prepare_norm,
    signal,
    unseen,
)

__all__ = [
    "HEAD_ALIGNMENT",
    "OWN_THREADS",
    "attentive",
    "block",
    "block_sums",
    "embed",
    "exit",
    "gate_merge",
    "guesses",
    "keys_values",
    "linear",
    "mean",
    "norm",
    "output_norm",
    "pooled",
    "prepare_attentive",
    "prepare_block",
    "prepare_embedding",
    "prepare_exit",
    "prepare_imitation",
    "prepare_linear",
    "prepare_model",
    "prepare_norm",
    "prepare_queries",
    "project",
    "signal",
]

HEAD_ALIGNMENT = 16
OWN_THREADS = False
BLOCK, TILE = 32, 16  # where oneDNN's packed op is missing: rows of one product, and a divisor of its sizes
_POST_OPS = {  # activation -> oneDNN's name and algorithm; not relu, which turns nan into 0
    "none": ("none", ""),
    "gelu": ("gelu", "none"),
    "gelu_tanh": ("gelu", "tanh"),
    "tanh": ("tanh", ""),
}

log = logging.getLogger("pfengine")


class Linear(NamedTuple):
    weight: Tensor  # oneDNN's opaque packing of [out, in], or [out, in] as it is
    bias: Tensor  # [out], of the dtype that products are made in
    packed: bool
    dtype: torch.dtype  # of inputs and results


class Imitation(NamedTuple):
    learners: list[Linear]  # of layers 2..n
    activation: Activation
    projections: list[Linear]  # entry i - 1: of all layers after i side by side, [C, (n - i) H]


@functools.cache
def has_packed_linear(dtype: torch.dtype) -> bool:
    """Has oneDNN's packed linear op of this torch products of this dtype on this processor?

    The op is private, and for bfloat16 it asks for AVX-512 or avx_ne_convert. So it is tried, once per dtype.
    """
    try:
        one = torch.eye(16, dtype=dtype, device="cpu")
        weight = torch.ops.mkldnn._reorder_linear_weight(one, 2)
        ok = torch.equal(
            torch.ops.mkldnn._linear_pointwise.default(one, weight, one.new_zeros(16), "none", [], ""), one
        )
    except (AttributeError, RuntimeError, NotImplementedError):
        ok = False
    if not ok:
        log.warning(
            "torch has no packed oneDNN linear op for %s on this processor: products run in %s",
            str(dtype).removeprefix("torch."),
            f"blocks of {BLOCK} rows, about half as fast" if dtype == torch.float32 else "float32",
        )
    return ok


def prepare_linear(weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Linear:
    weight, bias, used = weight.to(dtype).contiguous(), bias.to(dtype).contiguous(), dtype
    if not has_packed_linear(dtype):  # plain products in bf16 are several times slower than in fp32 then
        weight, bias, used = weight.float(), bias.float(), torch.float32
    if not has_packed_linear(used):
        return Linear(F.pad(weight, (0, -weight.shape[1] % TILE, 0, -weight.shape[0] % TILE)), bias, False, dtype)
    return Linear(torch.ops.mkldnn._reorder_linear_weight(weight, 64), bias, True, dtype)


def linear(x: Tensor, weights: Linear, activation: Activation, add: Tensor | None = None) -> Tensor:
    y = _linear(x.to(weights.dtype).to(weights.bias.dtype), weights, activation).to(weights.dtype)
    return y if add is None else y + add


def _linear(x: Tensor, weights: Linear, activation: Activation) -> Tensor:
    rows = x.shape[0]
    if not weights.packed:
        return _linear_in_blocks(x, weights, activation)
    post, algorithm = _POST_OPS.get(activation, _POST_OPS["none"])
    y = torch.ops.mkldnn._linear_pointwise.default(
        torch.cat([x, x]) if rows == 1 else x, weights.weight, weights.bias, post, [], algorithm
    )
    return y[:rows] if activation in _POST_OPS else reference.activate(y[:rows], activation)


def _linear_in_blocks(x: Tensor, weights: Linear, activation: Activation) -> Tensor:
    """Products of BLOCK rows with whole tiles, so that the same code computes each row, wherever it stands."""
    rows, outputs = x.shape[0], weights.bias.shape[0]
    padded = F.pad(x, (0, weights.weight.shape[1] - x.shape[1], 0, -rows % BLOCK))
    bias = F.pad(weights.bias, (0, weights.weight.shape[0] - outputs))
    blocks = [reference.activate(F.linear(block, weights.weight, bias), activation) for block in padded.split(BLOCK)]
    return torch.cat([block[:, :outputs] for block in blocks])[:rows] if rows else x.new_empty(0, outputs)


def prepare_block(block: Block, dtype: torch.dtype) -> PreparedBlock:
    def heads(table: Tensor) -> list[Linear]:
        return [prepare_linear(of_head, torch.zeros_like(of_head[:, 0]), dtype) for of_head in table]

    prepared = reference.prepared(block, dtype, prepare_linear)
    return prepared._replace(distances=distances.prepared(block.distances, lambda bias: bias.to(dtype), heads))


def keys_values(x: Tensor, cu_seqlens: Tensor, weights: PreparedBlock) -> Tensor:
    # includes queries, as the weights are packed in one piece
    return reference.projected(x, cu_seqlens, weights, linear)


def block(
    x: Tensor, cu_seqlens: Tensor, weights: PreparedBlock, queries: AnyQueries = "all", kept: Tensor | None = None
) -> Tensor:
    return reference.composed(x, cu_seqlens, weights, queries, kept, linear, attention)[0]


def block_sums(
    x: Tensor, cu_seqlens: Tensor, weights: PreparedBlock, queries: AnyQueries = "all"
) -> tuple[Tensor, Tensor]:
    return reference.composed(x, cu_seqlens, weights, queries, None, linear, attention)


def attention(
    qkv: Tensor,
    cu_seqlens: Tensor,
    num_heads: int,
    scale: float,
    queries: Queries | None = None,
    by_distance: Distances | None = None,
    window: int | None = None,
) -> Tensor:
    """One fused call for each run of rows of equal length. Batches are sorted by length, so runs are long.

    Where the queries are the first tokens, only these are computed. For any other list all tokens are, so that the same
    code computes a query whatever the others are.
    """
    bounds = cu_seqlens.tolist()
    rows, width = len(bounds) - 1, qkv.shape[1] // 3
    first_only = queries is not None and len(queries.tokens) == rows and queries.tokens.equal(cu_seqlens[:-1])
    out = qkv.new_empty(rows if first_only else qkv.shape[0], width)
    start = 0
    while start < rows:
        length = bounds[start + 1] - bounds[start]
        stop = start + 1
        while stop < rows and bounds[stop + 1] - bounds[stop] == length:
            stop += 1
        group = qkv[bounds[start] : bounds[stop]].view(stop - start, length, 3, num_heads, -1)
        count = 1 if first_only else length
        y = _attend(group.permute(2, 0, 3, 1, 4), count, scale, by_distance, window)
        target = out[start:stop] if first_only else out[bounds[start] : bounds[stop]]
        target.view(stop - start, count, num_heads, width // num_heads).copy_(y.transpose(1, 2))
        start = stop
    return out if first_only or queries is None else out.index_select(0, queries.tokens)


def _attend(qkv: Tensor, queries: int, scale: float, by_distance: Distances | None, window: int | None) -> Tensor:
    """Attention of the first `queries` tokens: [3, rows, heads, tokens, d] -> [rows, heads, queries, d].

    torch's kernel gives each thread scratch of queries x (tokens + d + 2) floats, for up to 32 queries at a time. A
    multiple of 16 queries keeps it aligned for every thread. For a single task MKL would use its own threads, so there
    are always two.
    """
    q, k, v = qkv
    rows, heads = q.shape[:2]
    if rows * heads == 1:
        q, k, v = (torch.cat([x, x]) for x in (q, k, v))
    q = F.pad(q[:, :, :queries], (0, 0, 0, -queries % 16 if queries < 32 else 0))
    bias = None
    places = torch.arange(q.shape[2], dtype=torch.int64, device="cpu").clamp(max=queries - 1)  # of padding: any
    if window is not None and window < k.shape[2] - 1:
        bias = q.new_zeros(len(places), k.shape[2]).masked_fill_(unseen(places, k.shape[2], window), -torch.inf)
    if by_distance is not None:
        scores = distance_scores(q, k, places, scale, by_distance, _multiply_heads)
        bias = (scores if bias is None else scores + bias).expand(len(q), -1, -1, -1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)[:rows, :, :queries]


def _multiply_heads(x: Tensor, tables: list[Linear]) -> Tensor:
    """As `distances.multiply`: [rows, heads, n, d] -> [rows, heads, n, buckets], one packed table per head."""
    products = [linear(x[:, head].flatten(0, 1), table, "none") for head, table in enumerate(tables)]
    return torch.stack([product.view(*x[:, 0].shape[:2], -1) for product in products], dim=1)


def prepare_queries(queries: Tensor) -> Linear:
    return prepare_linear(queries, torch.zeros_like(queries[:, 0]), torch.float32)


def query_mean(x: Tensor, cu_seqlens: Tensor, queries: Linear) -> Tensor:
    return reference.composed_query_mean(x, cu_seqlens, queries, linear)


def prepare_attentive(parts: Attentive, dtype: torch.dtype) -> PreparedAttentive:
    return reference.prepared_attentive(parts, dtype, prepare_linear)


def attentive(x: Tensor, cu_seqlens: Tensor, weights: PreparedAttentive) -> Tensor:
    return reference.composed_attentive(x, cu_seqlens, weights, linear, attention)


def prepare_imitation(
    learners: Tensor,
    learner_bias: Tensor,
    activation: Activation,
    projections: Sequence[tuple[Tensor, Tensor]],
    dtype: torch.dtype,
) -> Imitation:
    return Imitation(
        [prepare_linear(w, b, dtype) for w, b in zip(learners, learner_bias, strict=True)],
        activation,
        [prepare_linear(matrix, bias, torch.float32) for matrix, bias in projections],
    )


def guesses(states: Tensor, weights: Imitation, layer: int) -> Tensor:
    imitated = [linear(states, learner, weights.activation) for learner in weights.learners[layer - 1 :]]
    return torch.stack(imitated, dim=1)


def project(guesses: Tensor, weights: Imitation, layer: int) -> Tensor:
    return linear(guesses, weights.projections[layer - 1], "none")


def pooled(states: Tensor, weights: Imitation, layer: int, pooling: Pooling, projection: Linear) -> Tensor:
    return reference.composed_pooled(states, weights, layer, pooling, projection, sys.modules[__name__])


def gate_merge(past: Tensor, gates: Tensor, future: Tensor | None, gate: Linear | None, count: int) -> Tensor:
    if gate is not None:
        gates = linear(torch.tanh(gates / count), gate, "none")
    keep2 = 1 + torch.tanh(gates / 2)  # 2 sigmoid(x) = 1 + tanh(x / 2)
    merged = keep2 * past if future is None else keep2 * past + (2 - keep2) * future
    return merged if gate is not None else merged / 2


def exit(x: Tensor, weights: Exit, add: Tensor | None, answer: bool) -> tuple[Tensor | None, Tensor, Tensor | None]:
    return reference.composed_exit(x, weights, add, answer, sys.modules[__name__])
