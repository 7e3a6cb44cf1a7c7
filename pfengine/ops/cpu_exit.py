"""The exits of the CPU op set, over pfengine._C. Signatures and shapes: `ops.OpSet`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import extension
from ..extension import address, new_output
from . import Attentive, Exit
from .packing import Linear, PreparedAttentive, PreparedExit, PreparedQueries, kernels, pack_linear

if TYPE_CHECKING:
    from .. import _C

QUERY_BLOCK = 16  # queries come in blocks of so many: kQueryBlock of csrc/cpu/kernels.h


def contiguous(x: Tensor) -> Tensor:
    """x as contiguous float32. Asking first is faster than converting."""
    x = x if x.dtype is torch.float32 else x.float()
    return x if x.is_contiguous() else x.contiguous()


def gate_merge(past: Tensor, gates: Tensor, future: Tensor | None, gate: Linear | None, count: int) -> Tensor:
    rows, labels = past.shape
    if gates.shape[1] not in (1, labels) or (gate is None and future is None):
        raise ValueError(f"gates is {list(gates.shape)}, expected [{rows}, 1 or {labels}], and without gate a future")
    past, gates = contiguous(past), contiguous(gates)
    future = future if future is None else contiguous(future)
    out, to = new_output(shape := (rows, labels), torch.float32)
    extension._C.run_merge(
        kernels=kernels(),
        merge=_merge("paper" if gate is None else "authors", labels, gates.shape[1], gate, count),
        past=address("past", past, torch.float32, shape),
        gates=address("gates", gates, torch.float32, (rows, gates.shape[1])),
        future=address("future", future, torch.float32, shape),
        rows=rows,
        out=to,
    )
    return out


def _merge(kind: str, labels: int, width: int, gate: Linear | None, gate_states: int) -> _C.Merge:
    C, native = extension._C, None if gate is None else gate.native
    return C.Merge(kind=getattr(C.Gate, kind), labels=labels, width=width, gate=native, gate_states=gate_states)


def prepare_exit(parts: Exit) -> PreparedExit:
    C = extension._C
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
        reads=getattr(C.Reads, parts.reads),
        precision=precision,
        learner_precision=learner_precision,
        pooler=None if parts.pooler is None else parts.pooler.native,
        pooler_activation=getattr(C.Activation, parts.pooler_activation),
        pooler_norm=None if parts.pooler_norm is None else parts.pooler_norm.native,
        past=parts.past.native,
        folded=None if parts.folded is None else parts.folded.native,
        learners=learners,
        activation=activation,
        projection=projection,
        learned=None if parts.learned is None else parts.learned.native,
        merge=merge,
        attentive=None if parts.attentive is None else parts.attentive.native,
        queries=None if parts.queries is None else parts.queries.native,
    )
    return PreparedExit(
        native, parts.past.inputs, parts.past.outputs, parts.labels, parts.learned is not None, (parts, learners)
    )


def exit(
    x: Tensor, weights: PreparedExit, add: Tensor | None, answer: bool
) -> tuple[Tensor | None, Tensor, Tensor | None]:
    x, rows, width, labels = contiguous(x), x.shape[0], weights.width, weights.labels
    if add is not None:
        add = contiguous(add)
    past, past_to = new_output((rows, width), torch.float32)
    logits, logits_to = new_output((rows, labels), torch.float32) if answer else (None, 0)
    learned, learned_to = new_output((rows,), torch.float32) if answer and weights.learned else (None, 0)
    extension._C.run_exit(
        kernels(),
        weights.native,
        address("x", x, torch.float32, (rows, weights.hidden)),
        address("add", add, torch.float32, (rows, width)),
        rows,
        past_to,
        logits_to,
        learned_to,
        extension.threads(),
    )
    return logits, past, learned


def mean(x: Tensor, cu_seqlens: Tensor) -> Tensor:
    x, rows = contiguous(x), len(cu_seqlens) - 1
    out, to = new_output((rows, x.shape[1]), torch.float32)
    extension._C.run_mean(
        address("x", x, torch.float32, x.shape),
        len(x),
        address("cu_seqlens", cu_seqlens, torch.int32, (rows + 1,)),
        rows,
        x.shape[1],
        to,
    )
    return out


def prepare_queries(queries: Tensor) -> PreparedQueries:
    count, size = queries.shape
    columns = F.pad(queries.float().T, (0, -count % QUERY_BLOCK)).contiguous()
    native = extension._C.QueryMean(
        queries=address("queries", columns, torch.float32, columns.shape), count=count, size=size
    )
    return PreparedQueries(native, size, columns)


def query_mean(x: Tensor, cu_seqlens: Tensor, queries: PreparedQueries) -> Tensor:
    return _of_rows(extension._C.run_query_mean, x, cu_seqlens, queries.hidden, queries.hidden, queries=queries.native)


def prepare_attentive(parts: Attentive, dtype: torch.dtype) -> PreparedAttentive:
    C = extension._C
    pairs = {"narrow": parts.narrow, "qkv": parts.qkv, "output": parts.output}
    linear = {name: pack_linear(weight, bias, dtype) for name, (weight, bias) in pairs.items()}
    native = C.Attentive(
        precision=linear["qkv"].precision,
        heads=parts.num_heads,
        head_size=linear["output"].inputs // parts.num_heads,
        scale=parts.scale,
        pooling=getattr(C.TokenPooling, parts.pooling),
        **{name: part.native for name, part in linear.items()},
    )
    tensors = tuple(tensor for part in linear.values() for tensor in part.tensors)
    return PreparedAttentive(native, linear["narrow"].inputs, linear["narrow"].outputs, tensors)


def attentive(x: Tensor, cu_seqlens: Tensor, weights: PreparedAttentive) -> Tensor:
    run = extension._C.run_attentive
    return _of_rows(run, x, cu_seqlens, weights.hidden, weights.width, attentive=weights.native)


def _of_rows(
    run: Callable[..., None], x: Tensor, cu_seqlens: Tensor, hidden: int, width: int, **part: object
) -> Tensor:
    """What a part of an exit makes of all tokens of each row: [T, hidden] -> float32 [R, width]."""
    x, rows = contiguous(x), len(cu_seqlens) - 1
    out, to = new_output((rows, width), torch.float32)
    run(
        kernels=kernels(),
        x=address("x", x, torch.float32, (len(x), hidden)),
        tokens=len(x),
        cu_seqlens=address("cu_seqlens", cu_seqlens, torch.int32, (rows + 1,)),
        rows=rows,
        out=to,
        threads=extension.threads(),
        **part,
    )
    return out
