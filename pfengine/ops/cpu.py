"""The CPU op set: our own kernels in pfengine._C, a whole block in one call, hidden states in float32.

Signatures and shapes: `ops.OpSet`. A row's results have the same bits in every batch and on any number of threads.
Weights are packed once, in one copy, into panels of output columns. Within a panel the inner dimension is cut into
32-bit words of 1 fp32, 2 bf16, 4 int8 or 8 int4 numbers, and the words of all columns lie side by side.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import extension
from ..extension import address, in_rows, new_output
from . import Activation, Block, Norm, Pooling, Queries, Tables
from .cpu_exit import attentive as attentive
from .cpu_exit import contiguous
from .cpu_exit import exit as exit
from .cpu_exit import gate_merge as gate_merge
from .cpu_exit import mean as mean
from .cpu_exit import prepare_attentive as prepare_attentive
from .cpu_exit import prepare_exit as prepare_exit
from .cpu_exit import prepare_queries as prepare_queries
from .cpu_exit import query_mean as query_mean
from .cpu_model import prepare_model as prepare_model
from .packing import (
    Embedding,
    Imitation,
    Linear,
    PreparedBlock,
    PreparedNorm,
    pack_distances,
    pack_gated,
    pack_linear,
    pack_rotary,
)
from .packing import fast_precisions as fast_precisions
from .packing import kernels as kernels
from .packing import prepare_linear as prepare_linear
from .packing import prepare_norm as prepare_norm
from .quantisation import LEARNER_BITS
from .reference import composed_pooled
from .rule import Signal

HEAD_ALIGNMENT = 2  # bf16 numbers come in pairs
OWN_THREADS = True


def _rows(x: Tensor) -> Tensor:
    """x as float32 [rows, columns], between whose rows there may be gaps."""
    x = x if x.dtype is torch.float32 else x.float()
    return x if x.is_contiguous() or in_rows(x) else x.contiguous()


def linear(x: Tensor, weights: Linear, activation: Activation, add: Tensor | None = None) -> Tensor:
    return _linear(x, weights, activation, 0, weights.outputs, add)


def _linear(
    x: Tensor, weights: Linear, activation: Activation, first: int, columns: int, add: Tensor | None = None
) -> Tensor:
    """`linear` for `columns` output columns, from column `first` on. A panel of weights must begin at `first`."""
    x = _rows(x)
    rows = x.shape[0]
    add = add if add is None else _rows(add)
    C, (out, to) = extension._C, new_output((rows, columns), torch.float32)
    C.run_linear(
        kernels=kernels(),
        precision=weights.precision,
        linear=weights.native,
        first_column=first,
        columns=columns,
        activation=getattr(C.Activation, activation),
        x=address("x", x, torch.float32, (rows, weights.inputs), apart=True),
        stride=x.stride(0),
        rows=rows,
        add=address("add", add, torch.float32, (rows, columns), apart=True),
        add_stride=0 if add is None else add.stride(0),
        out=to,
        threads=extension.threads(),
    )
    return out


def norm(x: Tensor, weights: PreparedNorm) -> Tensor:
    x, rows = contiguous(x), x.shape[0]
    out, to = new_output((rows, weights.size), torch.float32)
    extension._C.run_norm(
        kernels=kernels(),
        norm=weights.native,
        x=address("x", x, torch.float32, (rows, weights.size)),
        rows=rows,
        size=weights.size,
        out=to,
        threads=extension.threads(),
    )
    return out


def prepare_embedding(tables: Tables, norm: Norm, dtype: torch.dtype) -> Embedding:
    dtype = torch.float32 if dtype == torch.float32 else torch.bfloat16
    word, position, token_type = (None if table is None else table.to(dtype).contiguous() for table in tables)
    assert word is not None
    size = word.shape[1]
    positions, types = (0 if table is None else len(table) for table in (position, token_type))
    prepared_norm = prepare_norm(norm)
    native = extension._C.Embedding(
        word=address("word", word, dtype, (len(word), size)),
        position=address("position", position, dtype, (positions, size)),
        token_type=address("token_type", token_type, dtype, (types, size)),
        words=len(word),
        positions=positions,
        token_types=types,
        size=size,
        bf16=dtype == torch.bfloat16,
        norm=prepared_norm.native,
    )
    tensors = tuple(table for table in (word, position, token_type) if table is not None)
    return Embedding(native, size, (*tensors, *prepared_norm.tensors))


def embed(ids: Tensor, positions: Tensor, types: Tensor, weights: Embedding) -> Tensor:
    ids, positions, types = (x.contiguous() for x in (ids, positions, types))
    tokens = len(ids)
    out, to = new_output((tokens, weights.size), torch.float32)
    extension._C.run_embed(
        kernels=kernels(),
        embedding=weights.native,
        ids=address("ids", ids, torch.int64, (tokens,)),
        positions=address("positions", positions, torch.int64, (tokens,)),
        types=address("types", types, torch.int64, (tokens,)),
        tokens=tokens,
        out=to,
        threads=extension.threads(),
    )
    return out


def prepare_block(block: Block, dtype: torch.dtype) -> PreparedBlock:
    C = extension._C
    parts: dict[str, Linear] = {}
    for name in ("qkv", "attention_output", "intermediate", "output"):
        weight, bias = getattr(block, name)
        pack = pack_gated if name == "intermediate" and block.gated else pack_linear
        parts[name] = pack(weight, bias, dtype)
    attention_norm = None if block.attention_norm is None else prepare_norm(block.attention_norm)
    output_norm = prepare_norm(block.output_norm)
    distances, distance_tensors = pack_distances(block, dtype)
    rotary, rotary_tensors = pack_rotary(block.rotary)
    native = C.Block(
        precision=parts["qkv"].precision,
        activation=getattr(C.Activation, block.activation),
        heads=block.num_heads,
        head_size=parts["qkv"].outputs // (3 * block.num_heads),
        scale=block.scale,
        attention_norm=None if attention_norm is None else attention_norm.native,
        output_norm=output_norm.native,
        norm_first=block.norm_first,
        gated=block.gated,
        distances=distances,
        rotary=rotary,
        window=block.window,
        **{name: part.native for name, part in parts.items()},
    )
    norms = [norm for norm in (attention_norm, output_norm) if norm is not None]
    tensors = [t for norm in norms for t in norm.tensors] + [t for part in parts.values() for t in part.tensors]
    hidden, kept_stride = parts["output"].outputs, C.kept_stride(native)
    return PreparedBlock(native, hidden, kept_stride, output_norm, (*tensors, *distance_tensors, *rotary_tensors))


def keys_values(x: Tensor, cu_seqlens: Tensor, weights: PreparedBlock) -> Tensor:
    tokens, rows = x.shape[0], cu_seqlens.shape[0] - 1
    kept, to = new_output((tokens * weights.kept_stride,), torch.uint8)  # _C's own layout
    extension._C.keys_values(
        kernels=kernels(),
        block=weights.native,
        x=address("x", x, torch.float32, (tokens, weights.hidden)),
        tokens=tokens,
        cu_seqlens=address("cu_seqlens", cu_seqlens, torch.int32, (rows + 1,)),
        rows=rows,
        kept=to,
        threads=extension.threads(),
    )
    return kept


def block(
    x: Tensor,
    cu_seqlens: Tensor,
    weights: PreparedBlock,
    queries: Literal["all", "first"] | Queries = "all",
    kept: Tensor | None = None,
) -> Tensor:
    return _block(x, cu_seqlens, weights, queries, kept, sums=False)[0]


def block_sums(
    x: Tensor, cu_seqlens: Tensor, weights: PreparedBlock, queries: Literal["all"] | Queries = "all"
) -> tuple[Tensor, Tensor]:
    out, sums = _block(x, cu_seqlens, weights, queries, None, sums=True)
    assert sums is not None
    return out, sums


def _block(
    x: Tensor,
    cu_seqlens: Tensor,
    weights: PreparedBlock,
    queries: Literal["all", "first"] | Queries,
    kept: Tensor | None,
    sums: bool,
) -> tuple[Tensor, Tensor | None]:
    C, tokens, rows, hidden = extension._C, x.shape[0], cu_seqlens.shape[0] - 1, weights.hidden
    query_tokens = query_bounds = 0
    if isinstance(queries, Queries):
        kind, count = C.Queries.list, queries.tokens.shape[0]
        query_tokens = address("queries.tokens", queries.tokens, torch.int32, (count,))
        query_bounds = address("queries.bounds", queries.bounds, torch.int32, (rows + 1,))
    else:
        kind, count = (C.Queries.all, tokens) if queries == "all" else (C.Queries.firsts, rows)
    out, to = new_output((count, hidden), torch.float32)
    sum_rows, sums_to = new_output((count, hidden), torch.float32) if sums else (None, 0)
    C.run_block(
        kernels(),
        weights.native,
        address("x", x, torch.float32, (tokens, hidden)),
        tokens,
        address("cu_seqlens", cu_seqlens, torch.int32, (rows + 1,)),
        rows,
        kind,
        count,
        query_tokens,
        query_bounds,
        0,  # query i is row i of out
        address("kept", kept, torch.uint8, (tokens * weights.kept_stride,)),
        to,
        count,
        sums_to,
        extension.threads(),
    )
    return out, sum_rows


def output_norm(sums: Tensor, weights: PreparedBlock) -> Tensor:
    return norm(sums, weights.output_norm)


def prepare_imitation(
    learners: Tensor,
    learner_bias: Tensor,
    activation: Activation,
    projections: Sequence[tuple[Tensor, Tensor]],
    dtype: torch.dtype,
) -> Imitation:
    hidden = learners.shape[1]
    pad = -hidden % kernels().panel
    return Imitation(
        pack_linear(
            F.pad(learners, (0, 0, 0, pad)).flatten(0, 1),
            F.pad(learner_bias, (0, pad)).flatten(),
            dtype,
            bits=LEARNER_BITS,
        ),
        hidden,
        hidden + pad,
        activation,
        [
            pack_linear(
                F.pad(matrix.unflatten(1, (-1, hidden)), (0, pad)).flatten(1), bias, torch.float32, row_major=True
            )
            for matrix, bias in projections
        ],
    )


def guesses(states: Tensor, weights: Imitation, layer: int) -> Tensor:
    first = (layer - 1) * weights.width  # learners start at layer 2, so the first imitates layer + 1
    imitated = _linear(states, weights.learners, weights.activation, first, weights.learners.outputs - first)
    return imitated.unflatten(1, (-1, weights.width))[:, :, : weights.hidden]


def project(guesses: Tensor, weights: Imitation, layer: int) -> Tensor:
    side_by_side = guesses.unflatten(1, (-1, weights.hidden))
    return linear(
        F.pad(side_by_side, (0, weights.width - weights.hidden)).flatten(1), weights.projections[layer - 1], "none"
    )


def pooled(states: Tensor, weights: Imitation, layer: int, pooling: Pooling, projection: Linear) -> Tensor:
    return composed_pooled(states, weights, layer, pooling, projection, sys.modules[__name__])


def signal(name: Signal, logits: Tensor, temperature: float) -> Tensor:
    return extension.signal(name, logits, temperature)
