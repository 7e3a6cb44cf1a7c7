"""The diversity of exits, and the recipe that trains by it."""

from __future__ import annotations

import torch

from pfengine.training.voting import diversity


def test_the_nearest_earlier_exit_is_the_target() -> None:
    torch.manual_seed(0)
    logits = torch.randn(4, 6, 3, requires_grad=True)
    found = diversity(logits)
    for i in range(1, 4):
        for row in range(6):
            p = logits[i, row].softmax(-1)
            each = [-(logits[j, row].softmax(-1) * p.log()).sum() for j in range(i)]
            torch.testing.assert_close(found[i - 1, row], min(each))


def test_an_earlier_exit_is_not_pushed_away() -> None:
    logits = torch.randn(3, 5, 2, requires_grad=True)
    (gradient,) = torch.autograd.grad(diversity(logits)[0].sum(), logits)
    assert gradient[1].abs().sum() > 0
    assert not gradient[0].any()
    assert not gradient[2].any()


def test_far_from_any_number_it_is_finite() -> None:
    """Exits that are quite sure, of the same and of different labels."""
    logits = torch.tensor([[[900.0, -900.0]], [[900.0, -900.0]], [[-900.0, 900.0]]], requires_grad=True)
    found = diversity(logits)
    assert found[0] == 0
    assert found[1] == 1800
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    assert torch.isfinite(gradient).all()
