"""A batch through all layers on the GPU without a wait for the host: only the device knows how many rows are left."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..batch import Packed
from ..kernels.answers import answer
from ..kernels.compaction import compact
from ..kernels.gate_merge import gate_merge
from ..kernels.imitation import imitation
from . import Exit
from .cuda import Embedding, Linear, run_block, run_embed, run_linear
from .model import Rule
from .reference import PreparedBlock


class PreparedModel(NamedTuple):
    embedding: Embedding
    widen: Linear | None
    layers: list[list[PreparedBlock]]
    exits: list[tuple[Exit, int] | None]  # behind each layer, and from which number of the past it adds up; -1: none


def run_model(
    weights: PreparedModel,
    packed: Packed,
    rule: Rule,
    open_from: int,
    places: np.ndarray,
    logits: np.ndarray,
    exit_layers: np.ndarray,
) -> None:
    """As `ops.model.run_model`, on the device where the weights are; layers are always computed in one piece.

    Waits once, for the answers. Raises ValueError for sizes that do not fit.
    """
    cu_seqlens = packed.cu_seqlens
    rows, tokens, n = len(places), len(packed.ids), len(weights.layers)
    if len(cu_seqlens) != rows + 1 or len(rule.tested) != n:
        raise ValueError(
            f"cu_seqlens has {len(cu_seqlens)} numbers for {rows} rows, tested {len(rule.tested)} for {n} layers; "
            f"expected {rows + 1} and {n}"
        )
    device = weights.embedding.tables[0].device
    longest = int(np.diff(cu_seqlens).max())

    def copied(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(device)

    bounds, counts = copied(cu_seqlens), torch.tensor([rows, tokens], dtype=torch.int32, device=device)
    row_ids, one_each = torch.arange(rows, device=device), torch.arange(rows + 1, dtype=torch.int32, device=device)
    threshold = torch.tensor([rule.entropy], dtype=torch.float32, device=device)
    layers = None if rule.layers is None else copied(rule.layers)
    out_logits = torch.full((rows, logits.shape[1]), torch.nan, device=device)
    out_layers = torch.zeros(rows, dtype=torch.int64, device=device)
    x = run_embed(copied(packed.ids), copied(packed.positions), copied(packed.types), weights.embedding, counts[1:])
    if weights.widen is not None:
        x = run_linear(x, weights.widen, "none", counts[1:])
    past: Tensor | None = None
    for layer in range(1, n + 1):
        blocks, behind = weights.layers[layer - 1], weights.exits[layer - 1]
        last = layer == n
        for i, block in enumerate(blocks, start=1):
            x = run_block(x, bounds, block, last and i == len(blocks), longest, (counts[:1], counts[1:]))
        if behind is None:
            continue
        parts, adds_from = behind
        first = x if last else x.index_select(0, bounds[:-1])  # beyond the count bounds are 0
        state = _state(first, parts, counts[:1])
        past = _past(state, parts, past if adds_from >= 0 else None, adds_from, counts[:1])
        if not last and not rule.tested[layer - 1]:
            continue
        here, _, leave = _decide(state, past, parts, threshold, counts[:1])
        stay = answer(here, leave, row_ids, layer, out_logits, out_layers, counts[:1], layers=layers, last=last)
        if not last:
            past = compact(past, one_each, row_ids, stay, 1, counts[:1])[0]
            x, bounds, row_ids, counts = compact(x, bounds, row_ids, stay, longest, counts[:1])
    logits[places] = out_logits.numpy(force=True)
    exit_layers[places] = out_layers.numpy(force=True)


def _state(first: Tensor, parts: Exit, count: Tensor) -> Tensor:
    """fp32 [R, H]: what the exit reads of each row's first token."""
    if parts.pooler is None:
        return first.float()
    return run_linear(first.contiguous(), parts.pooler, "tanh", count, out_dtype=torch.float32)


def _past(state: Tensor, parts: Exit, before: Tensor | None, adds_from: int, count: Tensor) -> Tensor:
    """fp32 [R, W]: this layer's numbers on top of those before."""
    width = parts.past.weight.shape[0]
    add = None if before is None else before[:, adds_from : adds_from + width].contiguous()
    return run_linear(state, parts.past, "none", count, add=add)


def _decide(
    state: Tensor, past: Tensor, parts: Exit, threshold: Tensor, count: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, entropy, who leaves."""
    future = None
    if parts.folded is not None:
        shares = run_linear(state, parts.folded, "none", count).unsqueeze(0)
        future = shares, torch.zeros_like(parts.folded.bias)
    if parts.imitation is not None:
        learners, layer = parts.imitation
        first = (layer - 1) * state.shape[1]
        projection = learners.projections[layer - 1]
        states = state.to(learners.learners.dtype)
        shares = imitation(
            states, learners.learners[first:], learners.bias[first:], projection.weight, learners.activation, count
        )
        future = shares, projection.bias
    gate = None if parts.gate is None or parts.gate_kind != "authors" else tuple(parts.gate)
    return gate_merge(
        past, parts.labels, parts.width, parts.gate_kind, "entropy", threshold, count, future=future, gate=gate,
        layers=parts.states,
    )  # fmt: skip
