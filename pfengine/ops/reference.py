"""Plain torch, any device, any float dtype: the definition of right. Signatures and shapes: `ops.OpSet`."""

from __future__ import annotations

from collections.abc import Sequence
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
    activation: Activation
    projections: Sequence[tuple[Tensor, Tensor]]  # after layer i: [C, (n - i) H], [C]


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
    learners: Tensor,
    learner_bias: Tensor,
    activation: Activation,
    projections: Sequence[tuple[Tensor, Tensor]],
    dtype: torch.dtype,
) -> Imitation:
    projections = [(matrix.float(), bias.float()) for matrix, bias in projections]
    return Imitation(learners.to(dtype), learner_bias.to(dtype), activation, projections)


def guesses(states: Tensor, weights: Imitation, layer: int) -> Tensor:
    first = layer - 1  # learners start at layer 2, so entry `layer - 1` imitates layer + 1
    learners = weights.learners[first:]
    imitated = torch.einsum("rh,joh->rjo", states.to(learners.dtype), learners) + weights.learner_bias[first:]
    return activate(imitated, weights.activation)


def project(guesses: Tensor, weights: Imitation, layer: int) -> Tensor:
    matrix, bias = weights.projections[layer - 1]
    return F.linear(guesses.to(matrix.dtype), matrix, bias)


def imitation(states: Tensor, weights: Imitation, layer: int) -> Tensor:
    return project(guesses(states, weights, layer).flatten(1), weights, layer)


def gate_merge(past: Tensor, gates: Tensor, future: Tensor | None, gate: Linear | None, count: int) -> Tensor:
    if gate is None:
        assert future is not None
        keep = torch.sigmoid(gates)
        return keep * past + (1 - keep) * future
    keep = torch.sigmoid(linear(torch.tanh(gates / count), gate, "none"))
    merged = 2 * keep * past
    return merged if future is None else merged + (2 - 2 * keep) * future
