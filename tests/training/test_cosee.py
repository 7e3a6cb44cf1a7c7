"""COSEE's signal, sample weights and calibration, by hand and by loops over rows."""

from __future__ import annotations

import math

import pytest
import torch

from pfengine.exits import Energy
from pfengine.training.cosee import calibration, energy, exits_taken, sample_weights


def test_the_signal_is_the_criterion_s_through_a_sigmoid() -> None:
    """So that a threshold s of theirs is energy:ln(s / (1 - s))."""
    torch.manual_seed(0)
    logits, s = 3 * torch.randn(200, 4), 0.03
    for temperature in (1.0, 2.0):
        found = energy(logits, temperature)
        expected = 1 / (1 + (logits / temperature).exp().sum(-1) ** temperature)
        torch.testing.assert_close(found, expected)
        leave, _ = Energy(math.log(s / (1 - s)), temperature)(1, logits, None, torch.arange(200))
        assert torch.equal(leave, found < s)
        assert 0 < leave.float().mean() < 1
    assert energy(torch.tensor([900.0, 0.0])) == 0


def test_exits_taken() -> None:
    signals = torch.tensor([[0.1, 0.5, 0.9], [0.05, 0.2, 0.9], [0.3, 0.3, 0.95]])
    found = exits_taken(signals, torch.tensor([0.0, 0.1, 0.25, 1.0]))
    assert found.tolist() == [[2, 2, 2], [1, 2, 2], [0, 1, 2], [0, 0, 0]]


def test_sample_weights() -> None:
    assert torch.equal(sample_weights(3, 0), torch.full((3, 3), 1 / 3))
    e = math.exp(-2.0)
    total = 1 + e + e * e
    torch.testing.assert_close(sample_weights(3, 2.0)[0], torch.tensor([1 / total, e / total, e * e / total]))
    torch.testing.assert_close(sample_weights(12, 10.0), torch.eye(12), atol=1e-4, rtol=0)


def test_calibration() -> None:
    signals = torch.tensor([[0.1, 0.3, 0.8], [0.9, 0.2, 0.1], [0.5, 0.5, 0.5]], requires_grad=True)
    right = torch.tensor([[True, True, False], [True, False, False], [True, True, True]])
    found = calibration(signals, right, 0.3)  # 0.2 - 0.8 is clear of the margin; 0.9 - 0.15 is not
    assert found.item() == pytest.approx((0 + 0.9 - 0.15 + 0.3) / 2)
    (gradient,) = torch.autograd.grad(found, signals)
    torch.testing.assert_close(gradient, torch.tensor([[0, 0, 0], [0.5, -0.25, -0.25], [0, 0, 0]]))
    assert calibration(signals, torch.ones(3, 3, dtype=torch.bool), 0.3) == 0
