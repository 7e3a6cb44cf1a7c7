"""Gradients of loss weights through one step of the model, against autograd through that step."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from pfengine.training.cross_level import weight_gradients
from pfengine.training.leebert import loss_terms
from pfengine.training.losses import exit_loss


class Tiny(nn.Module):
    """Three layers with a classifier each."""

    def __init__(self, labels: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(5, 5, dtype=dtype) for _ in range(3))
        self.exits = nn.ModuleList(nn.Linear(5, labels, dtype=dtype) for _ in range(3))
        self.unused = nn.Parameter(torch.ones(2, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        logits = []
        for layer, classify in zip(self.layers, self.exits, strict=True):
            x = torch.tanh(layer(x))
            logits.append(classify(x))
        return torch.stack(logits)


@pytest.mark.parametrize("labels", [3, 1])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 3e-3)])
def test_as_autograd_through_the_step(labels: int, dtype: torch.dtype, tolerance: float) -> None:
    """The finite difference errs by its curvature, and in float32 by the rounding of losses."""
    torch.manual_seed(3)
    model, rate = Tiny(labels, dtype), 0.3
    x, unseen = torch.randn(16, 5, dtype=dtype), torch.randn(12, 5, dtype=dtype)
    y, z = [torch.randint(labels, (n,)) if labels > 1 else torch.randn(n, dtype=dtype) for n in (16, 12)]
    logits_weights = torch.randn(3, 3, dtype=dtype, requires_grad=True)

    def outputs(parameters: Mapping[str, Tensor]) -> Tensor:
        return torch.func.functional_call(model, dict(parameters), (x,))

    def terms(found: Tensor) -> Tensor:
        return loss_terms(found, y)

    def objective(parameters: Mapping[str, Tensor]) -> Tensor:
        return exit_loss(torch.func.functional_call(model, dict(parameters), (unseen,)), z).mean()

    parameters = dict(model.named_parameters())
    weights = torch.softmax(logits_weights.flatten(), 0).view(3, 3)
    step = torch.autograd.grad(
        (weights * terms(outputs(parameters))).sum(), tuple(parameters.values()), create_graph=True, allow_unused=True
    )
    ahead = {
        name: value if part is None else value - rate * part
        for (name, value), part in zip(parameters.items(), step, strict=True)
    }
    by_weights, by_logits = torch.autograd.grad(objective(ahead), (weights, logits_weights))

    before = {name: value.detach().clone() for name, value in parameters.items()}
    found = weight_gradients(outputs, terms, objective, parameters, weights.detach(), rate)
    scale = float(by_weights.abs().max())
    torch.testing.assert_close(found, by_weights, atol=tolerance * scale, rtol=0)
    again = torch.softmax(logits_weights.flatten(), 0).view(3, 3)
    (through,) = torch.autograd.grad((again * found).sum(), logits_weights)
    torch.testing.assert_close(through, by_logits, atol=tolerance * scale, rtol=0)
    assert all(torch.equal(value, before[name]) and value.grad is None for name, value in parameters.items())


def test_at_a_minimum_nothing_pulls() -> None:
    parameters, weights = {"p": torch.zeros(3, requires_grad=True)}, torch.ones(2, 3)

    def squares(values: Mapping[str, Tensor]) -> Tensor:
        return values["p"].square()

    found = weight_gradients(
        squares, lambda x: x.expand(2, 3), lambda values: squares(values).sum(), parameters, weights, 0.1
    )
    assert not found.any()
