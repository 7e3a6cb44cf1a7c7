"""FastBERT's recipe: its attention is the head's, its phases, losses for numbers, and what it leaves out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pfengine.config import parse_backbone
from pfengine.heads import Scores
from pfengine.training import ExitModel
from pfengine.training.fastbert import FastBERTModel

LENGTHS = [3, 1, 7, 2]
BOUNDS = torch.tensor([0, 3, 4, 11, 13]).int()


def make(pooling: str = "first", labels: int = 3, **options: Any) -> FastBERTModel:
    names = {str(i): f"L{i}" for i in range(labels)}
    raw = {
        "model_type": "bert", "vocab_size": 9, "hidden_size": 12, "num_attention_heads": 2, "num_hidden_layers": 3,
        "intermediate_size": 8, "max_position_embeddings": 9, "type_vocab_size": 2, "id2label": names,
    }  # fmt: skip
    config = parse_backbone(raw, [])
    assert config is not None
    torch.manual_seed(0)
    model = FastBERTModel(None, config, {"type": "attentive", "width": 6, "heads": 2, "pooling": pooling}, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model


def states() -> list[Tensor]:
    return list(torch.randn(3, sum(LENGTHS), 12, generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("pooling", ["first", "max"])
def test_the_attention_that_is_trained_is_that_of_the_head(pooling: str) -> None:
    model = make(pooling, dropout=0.5).eval()
    found, plain = model.scores(states(), BOUNDS), ExitModel.scores(model, states(), BOUNDS)
    for ours, theirs in zip(found, plain, strict=True):
        torch.testing.assert_close(ours.logits, theirs.logits, atol=1e-5, rtol=1e-5)


def test_dropout_is_of_attention() -> None:
    """A row of one token attends to itself alone: with dropout it is twice itself, or nothing."""
    model = make(dropout=0.5).train()
    model.phase = model.phases()[1]
    qkv = torch.randn(5, 18)
    found = model.attention(qkv, torch.arange(6).int(), 2, 1.0)
    heads = found.unflatten(1, (2, 3)) / qkv[:, 12:].unflatten(1, (2, 3))
    assert set(heads.round().flatten().tolist()) == {0.0, 2.0}


def test_phases() -> None:
    first, second = make(options={"learning_rate": 0.5}).phases()
    assert (first.labelled, first.learning_rate) == (True, None)
    assert (second.labelled, second.learning_rate) == (False, 5.0)
    model = make().train()
    assert len(model.scores(states(), BOUNDS)) == 1, "students are not computed while the teacher is trained"
    model.phase = second
    assert len(model.scores(states(), BOUNDS)) == 3


@pytest.mark.parametrize("labels", [3, 1])
def test_losses(labels: int) -> None:
    """Of labels, KL(teacher || student) to be minimised by agreement; of numbers, the squared difference."""
    model = make(labels=labels).train()
    scores = [Scores(logits) for logits in torch.randn(3, 4, labels, requires_grad=True)]
    teacher = scores[-1].logits
    given = torch.tensor([0, 2, 1, 1]) if labels > 1 else torch.randn(4)
    expected = F.cross_entropy(teacher, given) if labels > 1 else F.mse_loss(teacher[:, 0], given)
    torch.testing.assert_close(model.loss(scores, given), expected)
    model.phase = model.phases()[1]
    loss = model.loss(scores, None)
    parts = []
    for each in scores[:-1]:
        if labels > 1:
            p, q = teacher.softmax(-1), each.logits.softmax(-1)
            parts.append((p * (p / q).log()).sum(1).mean())
        else:
            parts.append((each.logits - teacher).square().mean())
    torch.testing.assert_close(loss, sum(parts))
    loss.backward()
    assert teacher.grad_fn is not None
    same = [Scores(teacher)] * 3
    assert model.loss(same, None).item() == pytest.approx(0, abs=1e-6)
