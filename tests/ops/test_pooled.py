"""Imitated states pooled and projected, on every op set, against the formula; every row the same bits in any batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pfengine import extension
from pfengine.ops import cpu, cpu_torch, reference

N, ROWS, LABELS = 4, 40, 3


def parts(hidden: int) -> tuple[Tensor, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """States, learners and projection."""
    torch.manual_seed(hidden)
    states = torch.tanh(torch.randn(ROWS, hidden))
    learners = torch.randn(N - 1, hidden, hidden) / hidden**0.5, torch.randn(N - 1, hidden)
    return states, learners, (torch.randn(LABELS, hidden) / hidden**0.5, torch.randn(LABELS))


def formula(hidden: int, layer: int, activation: str, pooling: str) -> Tensor:
    states, (weight, bias), (matrix, offset) = parts(hidden)
    rows = []
    for state in states.double():
        guesses = torch.stack([w @ state + b for w, b in zip(weight.double(), bias.double(), strict=True)][layer - 1 :])
        guesses = torch.tanh(guesses) if activation == "tanh" else guesses
        weights = torch.softmax(guesses @ guesses[-1] / hidden**0.5, 0)
        pooled = guesses.max(0).values if pooling == "max" else weights @ guesses
        rows.append(matrix.double() @ pooled + offset.double())
    return torch.stack(rows).float()


@pytest.mark.parametrize("pooling", ["max", "attention"])
@pytest.mark.parametrize("activation", ["tanh", "none"])
@pytest.mark.parametrize("layer", [1, 3])
@pytest.mark.parametrize("hidden", [48, 37])
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "blocks"])
def test_pooled(
    op_set: Any, hidden: int, layer: int, activation: Any, pooling: Any, packed: bool, monkeypatch: Any
) -> None:
    if not packed:  # as on a machine without oneDNN's packed op
        monkeypatch.setattr(cpu_torch, "has_packed_linear", lambda _: False)
    states, learners, linear = parts(hidden)
    weights = op_set.prepare_imitation(*learners, activation, [], torch.float32)
    projection = op_set.prepare_linear(*linear, torch.float32)
    ours = op_set.pooled(states, weights, layer, pooling, projection)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, formula(hidden, layer, activation, pooling), atol=1e-5, rtol=1e-5)
    assert op_set.pooled(states[:0], weights, layer, pooling, projection).shape == (0, LABELS)
    for i in range(ROWS if op_set is not reference else 0):
        assert torch.equal(op_set.pooled(states[i : i + 1], weights, layer, pooling, projection), ours[i : i + 1])


@pytest.mark.parametrize("pooling", ["max", "attention"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8], ids=str)
def test_narrow_learners(dtype: torch.dtype, pooling: Any) -> None:
    if not extension.has_cpu():
        pytest.skip(extension.status())
    states, learners, linear = parts(48)
    results = []
    for ops in (cpu, reference):
        weights, projection = (
            ops.prepare_imitation(*learners, "tanh", [], dtype), ops.prepare_linear(*linear, torch.float32)
        )  # fmt: skip
        results.append(ops.pooled(states, weights, 1, pooling, projection))
    assert results[1].dtype == torch.float32
    torch.testing.assert_close(*results, atol=5e-2, rtol=0)  # rounded alike, but for what lies in between
