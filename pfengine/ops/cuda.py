"""The CUDA op set: Triton kernels over ragged batches. Signatures and shapes: `ops.OpSet`.

Here every row of a tensor counts; `cuda_model` runs a batch through all layers with the counts on the device.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels.attention import attention
from ..kernels.embedding import embed as embed_kernel
from ..kernels.imitation_pooled import imitation_pooled
from ..kernels.layer_norm import add_layer_norm
from ..kernels.linear import linear as linear_kernel
from . import Activation, Block, Exit, Norm, Pooling, Queries, reference
from .reference import PreparedBlock
from .reference import prepare_exit as prepare_exit

HEAD_ALIGNMENT = 8  # 16 bytes in 16-bit numbers: what a thread loads at once


class Linear(NamedTuple):
    weight: Tensor  # [out, in]
    bias: Tensor  # fp32 [out]


class Embedding(NamedTuple):
    tables: tuple[Tensor, Tensor, Tensor]
    norm: Norm


class Imitation(NamedTuple):
    learners: Tensor  # [(n - 1) H, H], of layers 2..n one below the other
    bias: Tensor  # fp32 [(n - 1) H]
    activation: Activation
    projections: list[Linear]  # after layer i: fp32 [C, (n - i) H]

    def after(self, layer: int) -> Linear:
        """Those of the layers behind it."""
        first = (layer - 1) * self.learners.shape[1]
        return Linear(self.learners[first:], self.bias[first:])


@functools.lru_cache(maxsize=1024)
def full(number: int, device: torch.device) -> Tensor:
    """A count, int32 [1]: all rows."""
    with torch.inference_mode(False):
        return torch.full((1,), number, dtype=torch.int32, device=device)


def _norm(norm: Norm) -> Norm:
    return Norm(norm.weight.float().contiguous(), norm.bias.float().contiguous(), norm.eps)


def prepare_linear(weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Linear:
    return Linear(weight.to(dtype).contiguous(), bias.float().contiguous())


def linear(x: Tensor, weights: Linear, activation: Activation, add: Tensor | None = None) -> Tensor:
    x = x.to(weights.weight.dtype).contiguous()
    add = None if add is None else add.contiguous()
    return run_linear(x, weights, activation, full(len(x), x.device), add=add)


def run_linear(x: Tensor, weights: Linear, activation: Activation, count: Tensor, **options: Any) -> Tensor:
    """`linear` of as many rows as `count`, int32 [1] on the device, says; options: of kernels.linear."""
    return linear_kernel(x, weights.weight, weights.bias, activation, count, **options)


def prepare_embedding(tables: tuple[Tensor, Tensor, Tensor], norm: Norm, dtype: torch.dtype) -> Embedding:
    word, position, token_type = (table.to(dtype).contiguous() for table in tables)
    return Embedding((word, position, token_type), _norm(norm))


def embed(ids: Tensor, positions: Tensor, types: Tensor, weights: Embedding) -> Tensor:
    return run_embed(ids, positions, types, weights, full(len(ids), ids.device))


def run_embed(
    ids: Tensor, positions: Tensor, types: Tensor, weights: Embedding, count: Tensor, out: Tensor | None = None
) -> Tensor:
    """`embed` of as many tokens as `count`, int32 [1] on the device, says."""
    return embed_kernel(ids, positions, types, weights.tables, *weights.norm, count, out=out)


def prepare_block(block: Block, dtype: torch.dtype) -> PreparedBlock:
    prepared = reference.prepared(block, dtype, prepare_linear)
    return prepared._replace(attention_norm=_norm(block.attention_norm), output_norm=_norm(block.output_norm))


def keys_values(x: Tensor, cu_seqlens: Tensor, weights: PreparedBlock) -> None:
    return None


def block(
    x: Tensor,
    cu_seqlens: Tensor,
    weights: PreparedBlock,
    queries: Literal["all", "first"] | Queries = "all",
    kept: None = None,
) -> Tensor:
    rows, device = len(cu_seqlens) - 1, x.device
    longest = int(cu_seqlens.diff().max()) if rows else 1  # waits for the GPU; `cuda_model` knows it beforehand
    counts = (full(rows, device), full(len(x), device))
    if isinstance(queries, Queries):
        return run_block(x, cu_seqlens, weights, False, longest, counts).index_select(0, queries.tokens)
    return run_block(x, cu_seqlens, weights, queries == "first", longest, counts)


def run_block(
    x: Tensor,
    bounds: Tensor,
    weights: PreparedBlock,
    first_only: bool,
    longest: int,
    counts: tuple[Tensor, Tensor],
    places: tuple[Tensor, Tensor] | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """`block` of the first rows and tokens, as many as `counts`, int32 [1] each, say on the device.

    places: which token of x each token, int32 [T], and each row's first token, int32 [R], is; None: tokens in order.
    Fills `out` where it is given.
    """
    rows, tokens = counts
    token_places, first_places = places or (None, None)
    qkv = run_linear(x, weights.qkv, "none", tokens, places=token_places)
    attended = attention(qkv, bounds, weights.num_heads, weights.scale, longest, rows, first_only)
    if first_only:
        tokens, token_places = rows, bounds[:-1] if first_places is None else first_places
    total = run_linear(attended, weights.attention_output, "none", tokens, add=x, add_places=token_places)
    x = add_layer_norm(total, None, *weights.attention_norm, tokens)
    inner = run_linear(x, weights.intermediate, weights.activation, tokens)
    total = run_linear(inner, weights.output, "none", tokens, add=x)
    return add_layer_norm(total, None, *weights.output_norm, tokens, out=out)


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
    return functools.reduce(torch.add, shares) + projection.bias  # one after the other, however many rows there are


def gate_merge(past: Tensor, gates: Tensor, future: Tensor | None, gate: Linear | None, count: int) -> Tensor:
    plain = None if gate is None else reference.Linear(*gate)
    return reference.gate_merge(past, gates, future, plain, count)


def prepare_model(
    embedding: Embedding,
    widen: Linear | None,
    layers: list[list[PreparedBlock]],
    exits: list[tuple[Exit, int] | None],
) -> Callable[..., None]:
    from .cuda_lanes import CudaModel  # which is made of what stands here
    from .cuda_model import PreparedModel

    return CudaModel(PreparedModel(embedding, widen, layers, exits))


def exit(x: Tensor, weights: Exit, add: Tensor | None, answer: bool) -> tuple[Tensor | None, Tensor, Tensor | None]:
    return reference.composed_exit(x, weights, add, answer, sys.modules[__name__])
