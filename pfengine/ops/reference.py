"""Plain torch, any device, any float dtype: the definition of right. Signatures and shapes: `ops.OpSet`."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import Activation, Norm

HEAD_ALIGNMENT = 1


class Linear(NamedTuple):
    weight: Tensor  # [out, in]
    bias: Tensor  # [out]


class Imitation(NamedTuple):
    learners: Tensor  # [n - 1, H, H]
    learner_bias: Tensor  # [n - 1, H]
    projections: Tensor  # [n - 1, C, H]
    projection_bias: Tensor  # [n - 1, C]


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
    return Linear(weight.to(dtype), bias.to(dtype))


def linear(x: Tensor, weights: Linear, activation: Activation) -> Tensor:
    return activate(F.linear(x.to(weights.weight.dtype), *weights), activation)


def embed(ids: Tensor, positions: Tensor, types: Tensor, tables: tuple[Tensor, Tensor, Tensor], norm: Norm) -> Tensor:
    word, position, token_type = tables
    x = F.embedding(ids, word) + F.embedding(types, token_type) + F.embedding(positions, position)
    return F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps)


def add_layer_norm(x: Tensor, residual: Tensor, norm: Norm) -> Tensor:
    return F.layer_norm(x + residual, x.shape[-1:], norm.weight, norm.bias, norm.eps)


def attention(qkv: Tensor, cu_seqlens: Tensor, num_heads: int, scale: float, first_only: bool) -> Tensor:
    bounds = cu_seqlens.tolist()
    rows = []
    for start, stop in zip(bounds[:-1], bounds[1:], strict=True):
        q, k, v = qkv[start:stop].view(stop - start, 3, num_heads, -1).permute(1, 2, 0, 3)  # [heads, tokens, d]
        q = q[:, :1] if first_only else q
        y = torch.softmax(q @ k.transpose(1, 2) * scale, dim=-1) @ v
        rows.append(y.transpose(0, 1).flatten(1))
    return torch.cat(rows) if rows else qkv.new_empty(0, qkv.shape[1] // 3)


def prepare_imitation(
    learners: Tensor, learner_bias: Tensor, projections: Tensor, projection_bias: Tensor, dtype: torch.dtype
) -> Imitation:
    return Imitation(learners.to(dtype), learner_bias.to(dtype), projections.float(), projection_bias.float())


def imitation(pooled: Tensor, weights: Imitation, layer: int) -> Tensor:
    first = layer - 1  # learners start at layer 2, so entry `layer - 1` imitates layer + 1
    learners = weights.learners[first:]
    guesses = torch.tanh(
        torch.einsum("rh,joh->jro", pooled.to(learners.dtype), learners) + weights.learner_bias[first:, None]
    )
    projected = torch.einsum("jrh,jch->rc", guesses.to(weights.projections.dtype), weights.projections[first:])
    return projected + weights.projection_bias[first:].sum(0)


def gate_merge(past: Tensor, future: Tensor | None, gate: Linear, layer: int) -> Tensor:
    logits, gates = past.chunk(2, dim=-1)
    keep = torch.sigmoid(linear(torch.tanh(gates / layer), gate, "none"))
    merged = 2 * keep * logits
    return merged if future is None else merged + (2 - 2 * keep) * future
