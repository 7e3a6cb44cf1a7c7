"""LeeBERT's losses, and the gradient of their weights through the model as it is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModel

from pfengine.checkpoint import read_config
from pfengine.config import parse_backbone
from pfengine.folder import Folder
from pfengine.training.leebert import LeeBERTModel, halves, loss_terms
from pfengine.training.losses import exit_loss

HEAD = {"type": "linear", "pooler": "shared", "combine": "none"}


def model_of(encoder: Path, dropout: float = 0.5, **options: Any) -> LeeBERTModel:
    torch.manual_seed(0)
    backbone = AutoModel.from_pretrained(encoder, add_pooling_layer=False, attn_implementation="eager")
    config = parse_backbone(read_config(Folder(encoder)) | {"num_labels": 2}, [])
    assert config is not None
    given = {"learning_rate": 0.05, "weight_rate": 0.01} | options
    model = LeeBERTModel(backbone, config, HEAD, dropout=dropout, options=given)
    for parameter in model.exit_head.parameters():  # far enough from zero for slopes to differ
        parameter.data.normal_(std=0.3)
    return model.train()


@pytest.fixture
def batch() -> dict[str, Tensor]:
    torch.manual_seed(1)
    ids = torch.randint(4, 16, (12, 7))
    ids[:, 0], ids[3:6, 5:] = 2, 0
    return {"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": torch.arange(12) % 2}


@pytest.mark.parametrize("labels", ["ids", "probabilities", "scores"])
def test_loss_terms(labels: str) -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 5, 1 if labels == "scores" else 4, requires_grad=True)
    truth = {"ids": torch.arange(5) % 4, "probabilities": torch.randn(5, 4).softmax(-1), "scores": torch.randn(5)}
    found = loss_terms(logits, truth[labels])
    p = logits.softmax(-1)
    for i in range(3):
        torch.testing.assert_close(found[i, i], exit_loss(logits[i : i + 1], truth[labels])[0])
        for j in range(3):
            if i == j:
                continue
            own = (logits[i] - logits[j]).square() if labels == "scores" else p[j] * (p[j].log() - p[i].log())
            torch.testing.assert_close(found[i, j], own.sum(-1).mean())
            (gradient,) = torch.autograd.grad(found[i, j], logits, retain_graph=True)
            assert gradient[i].any()
            assert not gradient[[k for k in range(3) if k != i]].any(), "the exit that is learned from stays"


@pytest.mark.parametrize("step", [0, 1])
def test_gradients_of_weights(encoder: Path, batch: dict[str, Tensor], step: int) -> None:
    """As autograd's through an explicit step on one half of the batch, for the other; the halves change roles."""
    model = model_of(encoder)
    model.step = step
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    half = halves(inputs)
    assert 2 < half.sum() < 10
    trained = half if step == 0 else ~half

    model.eval()
    parameters = {name: value for name, value in model.named_parameters() if name != "loss_weights"}

    def logits(values: dict[str, Tensor], which: Tensor) -> Tensor:
        rows = {key: value[which] for key, value in inputs.items()}
        return torch.func.functional_call(model, values, (), rows)["logits"].transpose(0, 1)

    weights = model.weights()
    loss = (weights * loss_terms(logits(parameters, trained), batch["labels"][trained])).sum()
    slopes = torch.autograd.grad(loss, tuple(parameters.values()), create_graph=True)
    ahead = {name: value - 0.05 * slope for (name, value), slope in zip(parameters.items(), slopes, strict=True)}
    objective = exit_loss(logits(ahead, ~trained), batch["labels"][~trained]).mean()
    (expected,) = torch.autograd.grad(objective, model.loss_weights)
    scale = float(expected.abs().max())
    assert scale > 1e-5

    model.train()
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    model.before_step(batch)
    assert model.training
    out = model(**batch)
    out["loss"].backward()
    assert model.loss_weights.grad is not None
    # a finite difference in float32, of a model with large weights
    torch.testing.assert_close(model.loss_weights.grad, expected, atol=5e-3 * scale, rtol=0)
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())


def test_the_loss_is_the_weighted_sum(encoder: Path, batch: dict[str, Tensor]) -> None:
    """Equal weights at first; what makes the gradient of the weights adds nothing, and no other gradient of them."""
    model = model_of(encoder, dropout=0.0).eval()
    out = model(**batch)
    logits = out["logits"].detach().transpose(0, 1)
    torch.testing.assert_close(out["loss"].detach(), loss_terms(logits, batch["labels"]).mean())
    out["loss"].backward()
    assert not model.loss_weights.grad.any()  # type: ignore[union-attr]
    model.balance.normal_()
    assert model(**batch)["loss"].detach() == out["loss"].detach()


def test_rows_of_one_half_only(encoder: Path, batch: dict[str, Tensor]) -> None:
    model = model_of(encoder)
    model.balance.fill_(1.0)
    which = halves(batch)
    model.before_step({key: value[which] for key, value in batch.items()})
    assert not model.balance.any()


def test_halves(batch: dict[str, Tensor]) -> None:
    """A row is in the same half in every batch, however it is padded."""
    ids = batch["input_ids"]
    padded = torch.nn.functional.pad(ids, (0, 3), value=1)
    mask = torch.nn.functional.pad(batch["attention_mask"], (0, 3))
    order = torch.randperm(12)
    found = halves({"input_ids": padded[order], "attention_mask": mask[order]})
    assert torch.equal(found, halves(batch)[order])
    states = torch.randn(40, 3, 8)
    assert torch.equal(halves({"states": states})[order], halves({"states": states[order]}))
    assert 8 < halves({"states": states}).sum() < 32
