"""The gradient of a loss with respect to the weights of training losses, through one step of the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Parameters = Mapping[str, Tensor]
STEP = 1e-3  # of the finite difference, in the norm of all parameters: at 0.01 curvature shows, at 1e-5 rounding does


def weight_gradients(
    outputs: Callable[[Parameters], Tensor],
    terms: Callable[[Tensor], Tensor],
    objective: Callable[[Parameters], Tensor],
    parameters: Parameters,
    weights: Tensor,
    rate: float,
) -> Tensor:
    """d objective(p') / d w_k for p' = p - rate * d(sum_k w_k terms_k(outputs(p))) / dp, of the shape of `weights`.

    The training loss is linear in w, so that this is -rate <d terms_k / dp, v> with v = d objective(p') / dp'. All k
    are found at once and without a second gradient of the model: the change of the outputs along v is a central
    difference, and that of the terms along it is exact, parts that terms detach included.

    outputs, objective: functions of parameters by name, with gradients, which give the same for the same parameters.
    terms: losses, of the shape of `weights`, from outputs. rate: of the step.
    """
    values = tuple(parameters.values())
    found = outputs(parameters)
    slopes = torch.autograd.grad((weights * terms(found)).sum(), values, allow_unused=True)
    with torch.no_grad():
        ahead = [value if slope is None else value - rate * slope for value, slope in zip(values, slopes, strict=True)]
    ahead = [value.detach().requires_grad_() for value in ahead]
    reached = objective(dict(zip(parameters, ahead, strict=True)))
    direction = torch.autograd.grad(reached, ahead, allow_unused=True)
    with torch.no_grad():
        norm = torch.stack([part.norm() for part in direction if part is not None]).norm()
        if norm == 0:
            return torch.zeros_like(weights)

        def moved(by: Tensor) -> Tensor:
            pairs = zip(parameters, values, direction, strict=True)
            return outputs({name: value if part is None else value + by * part for name, value, part in pairs})

        by = STEP / norm
        change = (moved(by) - moved(-by)) / (2 * by)
    return -rate * _along(terms, found.detach(), change)


def _along(terms: Callable[[Tensor], Tensor], at: Tensor, change: Tensor) -> Tensor:
    """How fast each of `terms` changes as its argument, now `at`, changes by `change`."""
    at = at.requires_grad_()
    losses = terms(at)
    scale = torch.zeros_like(losses, requires_grad=True)  # the gradient is linear in it, and read off by another one
    (slope,) = torch.autograd.grad((scale * losses).sum(), at, create_graph=True)
    return torch.autograd.grad((slope * change).sum(), scale)[0]
