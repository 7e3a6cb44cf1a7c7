"""The CPU op set: kernels of our own in pfengine._C, a whole block in one call, hidden states in float32.

Signatures and shapes: `ops.OpSet`. A row's results are the same bit for bit in every batch and on any number of
threads. Weights are packed once, in one copy: panels of output columns, in each of them the inner dimension as 32-bit
words of 1 fp32, 2 bf16, 4 int8 or 8 int4 numbers, so that a word of every column lies side by side.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import extension
from . import Activation, Block, Exit, Norm, Pooling
from .model import prepare_model as prepare_model
from .packing import Linear, address, pack_linear
from .packing import fast_precisions as fast_precisions
from .packing import kernels as kernels
from .packing import prepare_linear as prepare_linear
from .quantisation import LEARNER_BITS
from .reference import composed_pooled

HEAD_ALIGNMENT = 2  # bf16 comes in pairs


class Embedding(NamedTuple):
    native: Any  # _C.Embedding
    size: int
    tensors: tuple[Tensor, ...]


class PreparedBlock(NamedTuple):
    native: Any  # _C.Layer
    hidden: int
    qkv_stride: int  # bytes a token
    tensors: tuple[Tensor, ...]


class OpenedBlock(NamedTuple):
    x: Tensor
    cu_seqlens: Tensor
    weights: PreparedBlock
    qkv: Tensor  # uint8: _C's own layout
    first: Tensor


class Imitation(NamedTuple):
    learners: Linear  # of layers 2..n side by side, each from a panel's first column on
    hidden: int
    width: int  # columns from learner to learner
    activation: Activation
    projections: list[Linear]  # entry i - 1: of all layers after i side by side, [C, (n - i) H]


class PreparedExit(NamedTuple):
    native: Any  # _C.Exit: addresses of the parts below
    hidden: int
    width: int  # of the past
    labels: int
    parts: tuple[Any, ...]


def _rows(name: str, x: Tensor, columns: int, rows: int | None = None) -> Tensor:
    """x as float32 [rows, columns] whose rows may lie apart; ValueError where its shape is another."""
    if x.dim() != 2 or x.shape[1] != columns or (rows is not None and x.shape[0] != rows):
        raise ValueError(f"{name} is {list(x.shape)}, expected [{'rows' if rows is None else rows}, {columns}]")
    x = x.float()
    apart = x.stride(0) >= columns or len(x) < 2  # rows of an expanded tensor lie on each other
    return x if apart and (x.stride(1) == 1 or columns == 1) else x.contiguous()


def linear(x: Tensor, weights: Linear, activation: Activation, add: Tensor | None = None) -> Tensor:
    return _linear(x, weights, activation, 0, weights.outputs, add)


def _linear(
    x: Tensor, weights: Linear, activation: Activation, first: int, columns: int, add: Tensor | None = None
) -> Tensor:
    """`columns` output columns from `first` on, which begins a panel."""
    x = _rows("x", x, weights.inputs)
    add = add if add is None else _rows("add", add, columns, len(x))
    C, out = extension.native(), torch.empty(x.shape[0], columns)
    C.run_linear(
        kernels=kernels(),
        precision=weights.precision,
        linear=weights.native,
        first_column=first,
        columns=columns,
        activation=getattr(C.Activation, activation),
        x=x.data_ptr(),
        stride=x.stride(0),
        rows=x.shape[0],
        add=address(add),
        add_stride=0 if add is None else add.stride(0),
        out=out.data_ptr(),
        threads=extension.threads(),
    )
    return out


def _norm(norm: Norm) -> tuple[Any, tuple[Tensor, Tensor]]:
    weight, bias = norm.weight.float().contiguous(), norm.bias.float().contiguous()
    return extension.native().Norm(weight=weight.data_ptr(), bias=bias.data_ptr(), eps=norm.eps), (weight, bias)


def prepare_embedding(tables: tuple[Tensor, Tensor, Tensor], norm: Norm, dtype: torch.dtype) -> Embedding:
    dtype = torch.float32 if dtype == torch.float32 else torch.bfloat16
    word, position, token_type = (table.to(dtype).contiguous() for table in tables)
    native_norm, parts = _norm(norm)
    native = extension.native().Embedding(
        word=word.data_ptr(),
        position=position.data_ptr(),
        token_type=token_type.data_ptr(),
        words=len(word),
        positions=len(position),
        token_types=len(token_type),
        size=word.shape[1],
        bf16=dtype == torch.bfloat16,
        norm=native_norm,
    )
    return Embedding(native, word.shape[1], (word, position, token_type, *parts))


def embed(ids: Tensor, positions: Tensor, types: Tensor, weights: Embedding) -> Tensor:
    ids, positions, types = (x.contiguous() for x in (ids, positions, types))
    for name, x in (("ids", ids), ("positions", positions), ("types", types)):
        if x.dtype != torch.int64 or x.shape != (len(ids),):
            raise ValueError(f"{name} is {x.dtype} {list(x.shape)}, expected torch.int64 [{len(ids)}]")
    out = torch.empty(len(ids), weights.size)
    extension.native().run_embed(
        kernels=kernels(),
        embedding=weights.native,
        ids=ids.data_ptr(),
        positions=positions.data_ptr(),
        types=types.data_ptr(),
        tokens=len(ids),
        out=out.data_ptr(),
        threads=extension.threads(),
    )
    return out


def prepare_block(block: Block, dtype: torch.dtype) -> PreparedBlock:
    C = extension.native()
    parts = {}
    for name in ("qkv", "attention_output", "intermediate", "output"):
        weight, bias = getattr(block, name)
        parts[name] = pack_linear(weight, bias, dtype)
    attention_norm, attention_tensors = _norm(block.attention_norm)
    output_norm, output_tensors = _norm(block.output_norm)
    native = C.Layer(
        precision=parts["qkv"].precision,
        activation=getattr(C.Activation, block.activation),
        heads=block.num_heads,
        head_size=parts["qkv"].outputs // (3 * block.num_heads),
        scale=block.scale,
        attention_norm=attention_norm,
        output_norm=output_norm,
        **{name: part.native for name, part in parts.items()},
    )
    tensors = [*attention_tensors, *output_tensors, *(t for part in parts.values() for t in part.tensors)]
    return PreparedBlock(native, parts["output"].outputs, C.qkv_stride(native), tuple(tensors))


def _check_tokens(x: Tensor, hidden: int) -> None:
    if x.dtype != torch.float32 or x.dim() != 2 or x.shape[1] != hidden or not x.is_contiguous():
        raise ValueError(f"x is {x.dtype} {list(x.shape)}, expected contiguous torch.float32 [tokens, {hidden}]")


def _check_ragged(x: Tensor, cu_seqlens: Tensor, hidden: int) -> None:
    _check_tokens(x, hidden)
    if cu_seqlens.dtype != torch.int32 or not cu_seqlens.is_contiguous() or cu_seqlens.dim() != 1:
        raise ValueError(
            f"cu_seqlens is {cu_seqlens.dtype} {list(cu_seqlens.shape)}, expected contiguous torch.int32 [rows + 1]"
        )


def block(x: Tensor, cu_seqlens: Tensor, weights: PreparedBlock, first_only: bool) -> Tensor:
    rows = cu_seqlens.shape[0] - 1
    _check_ragged(x, cu_seqlens, weights.hidden)
    out = torch.empty(rows if first_only else x.shape[0], weights.hidden)
    extension.native().run_layer(
        kernels(),
        weights.native,
        x.data_ptr(),
        x.shape[0],
        cu_seqlens.data_ptr(),
        rows,
        first_only,
        out.data_ptr(),
        extension.threads(),
    )
    return out


def open_block(x: Tensor, cu_seqlens: Tensor, weights: PreparedBlock) -> tuple[Tensor, OpenedBlock]:
    _check_ragged(x, cu_seqlens, weights.hidden)
    C, tokens, rows = extension.native(), x.shape[0], cu_seqlens.shape[0] - 1
    qkv = torch.empty(tokens * weights.qkv_stride, dtype=torch.uint8)
    first = torch.empty(rows, weights.hidden)
    C.open_layer(
        kernels=kernels(),
        layer=weights.native,
        x=x.data_ptr(),
        tokens=tokens,
        cu_seqlens=cu_seqlens.data_ptr(),
        rows=rows,
        qkv=qkv.data_ptr(),
        first=first.data_ptr(),
        threads=extension.threads(),
    )
    return first, OpenedBlock(x, cu_seqlens, weights, qkv, first)


def close_block(opened: OpenedBlock, stay: Tensor) -> tuple[Tensor, Tensor]:
    x, cu_seqlens, weights, qkv, first = opened
    tokens, rows, stay = x.shape[0], cu_seqlens.shape[0] - 1, stay.contiguous()
    if stay.dtype != torch.bool or stay.shape != (rows,):
        raise ValueError(f"stay is {stay.dtype} {list(stay.shape)}, expected torch.bool [{rows}]")
    C = extension.native()
    kept_rows, kept_tokens = C.count_kept(cu_seqlens.data_ptr(), stay.data_ptr(), rows, tokens)
    out, bounds = torch.empty(kept_tokens, weights.hidden), torch.empty(kept_rows + 1, dtype=torch.int32)
    C.close_layer(
        kernels=kernels(),
        layer=weights.native,
        x=x.data_ptr(),
        tokens=tokens,
        cu_seqlens=cu_seqlens.data_ptr(),
        rows=rows,
        qkv=qkv.data_ptr(),
        first=first.data_ptr(),
        stay=stay.data_ptr(),
        out=out.data_ptr(),
        new_cu_seqlens=bounds.data_ptr(),
        threads=extension.threads(),
    )
    return out, bounds


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
            pack_linear(F.pad(matrix.unflatten(1, (-1, hidden)), (0, pad)).flatten(1), bias, torch.float32, thin=True)
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


def gate_merge(past: Tensor, gates: Tensor, future: Tensor | None, gate: Linear | None, count: int) -> Tensor:
    rows, labels = past.shape
    past, gates = _rows("past", past, labels), _rows("gates", gates, gates.shape[1], rows)
    if gates.shape[1] not in (1, labels) or (gate is None and future is None):
        raise ValueError(f"gates is {list(gates.shape)}, expected [{rows}, 1 or {labels}], and without gate a future")
    past, gates = past.contiguous(), gates.contiguous()
    future = future if future is None else _rows("future", future, labels, rows).contiguous()
    out = torch.empty(rows, labels)
    extension.native().run_merge(
        kernels=kernels(),
        merge=_merge("paper" if gate is None else "authors", labels, gates.shape[1], gate, count),
        past=past.data_ptr(),
        gates=gates.data_ptr(),
        future=address(future),
        rows=rows,
        out=out.data_ptr(),
    )
    return out


def _merge(kind: str, labels: int, width: int, gate: Linear | None, count: int) -> Any:
    C, native = extension.native(), None if gate is None else gate.native
    return C.Merge(kind=getattr(C.Gate, kind), labels=labels, width=width, gate=native, count=count)


def prepare_exit(parts: Exit) -> PreparedExit:
    C = extension.native()
    merge = _merge(parts.gate_kind, parts.labels, parts.width, parts.gate, parts.states)
    learners = projection = None
    activation, precision, learner_precision = C.Activation.none, C.Precision.fp32, C.Precision.fp32
    if parts.pooler is not None:
        precision = parts.pooler.precision
    if parts.imitation is not None:
        imitation, layer = parts.imitation
        activation, learner_precision = getattr(C.Activation, imitation.activation), imitation.learners.precision
        first = (layer - 1) * imitation.width
        learners = C.columns_of(kernels(), imitation.learners.native, learner_precision, first)
        projection = imitation.projections[layer - 1].native
    native = C.Exit(
        precision=precision,
        learner_precision=learner_precision,
        pooler=None if parts.pooler is None else parts.pooler.native,
        past=parts.past.native,
        folded=None if parts.folded is None else parts.folded.native,
        learners=learners,
        activation=activation,
        projection=projection,
        merge=merge,
    )
    return PreparedExit(native, parts.past.inputs, parts.past.outputs, parts.labels, (parts, learners))


def exit(
    x: Tensor, cu_seqlens: Tensor, weights: PreparedExit, add: Tensor | None, answer: bool
) -> tuple[Tensor | None, Tensor]:
    x, rows = x.float(), len(cu_seqlens) - 1
    _check_ragged(x, cu_seqlens, weights.hidden)
    if add is not None:
        add = _rows("add", add, weights.width, rows).contiguous()
    past = torch.empty(rows, weights.width)
    logits = torch.empty(rows, weights.labels) if answer else None
    extension.native().run_exit(
        kernels(),
        weights.native,
        x.data_ptr(),
        x.shape[0],
        cu_seqlens.data_ptr(),
        rows,
        address(add),
        past.data_ptr(),
        address(logits),
        extension.threads(),
    )
    return logits, past
