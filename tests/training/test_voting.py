"""The diversity of exits, and the recipe that trains by it."""

from __future__ import annotations

import pytest
import torch

from pfengine.config import parse_backbone
from pfengine.heads import Scores
from pfengine.training.voting import VotingModel, diversity


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


@pytest.mark.parametrize("probabilities", [False, True])
def test_the_loss_pushes_labels_further_from_the_nearest_exit(probabilities: bool) -> None:
    """Its gradient is that of cross-entropy against y - w p_j, p_j of the nearest exit before."""
    torch.manual_seed(1)
    raw = {
        "model_type": "bert", "vocab_size": 9, "hidden_size": 4, "num_hidden_layers": 3, "num_attention_heads": 1,
        "intermediate_size": 4, "max_position_embeddings": 8, "type_vocab_size": 1, "num_labels": 4,
    }  # fmt: skip
    config = parse_backbone(raw, [])
    assert config is not None
    model = VotingModel(None, config, {"type": "linear", "pooler": "none"}, options={"diversity": 0.3})
    logits = torch.randn(3, 5, 4, requires_grad=True)
    y = torch.randn(5, 4).softmax(-1) if probabilities else torch.eye(4)[[0, 3, 1, 1, 2]]
    loss = model.loss([Scores(each) for each in logits], y if probabilities else y.argmax(-1))
    (gradient,) = torch.autograd.grad(loss, logits)
    p = logits.detach().softmax(-1)
    for i in range(3):
        for row in range(5):
            nearest = min((-(p[j, row] * p[i, row].log()).sum(), j) for j in range(i))[1] if i else None
            target = y[row] - (0 if nearest is None else 0.3 * p[nearest, row])
            torch.testing.assert_close(gradient[i, row], (target.sum() * p[i, row] - target) / 15)
