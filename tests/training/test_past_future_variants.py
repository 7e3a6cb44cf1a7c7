"""Every form of head trains: gradients reach every parameter, and the engine answers as the trained model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel

import pfengine
from pfengine import saving
from pfengine.config import parse_backbone
from pfengine.manifest import Manifest
from pfengine.training.freezing import Freezing
from pfengine.training.past_future import PastFutureModel, imitation_loss
from pfengine.training.plain import LinearModel
from pfengine.training.systems import SYSTEMS

from ..conftest import SIZES
from ..heads.variants import LINEAR, PAST_FUTURE, forms

UNLEARNED = [head for head in LINEAR if not head.get("learned")]  # BERxiT's recipe trains those that learn when to exit

LENGTH = 9


def model_of(make_checkpoint: Callable[..., Path], head: dict[str, Any], family: str = "bert", labels: int = 3) -> Any:
    path = make_checkpoint(family, labels=labels, head=head)
    raw = json.loads((path / "config.json").read_text()) | {"pad_token_id": 0}
    faults: list[str] = []
    config = parse_backbone(raw, faults)
    assert config is not None, faults
    torch.manual_seed(0)
    backbone = AutoModel.from_config(AutoConfig.for_model(**raw))
    backbone.pooler = None
    return SYSTEMS[head["type"]].recipe(backbone, config, head), raw


def inputs() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    ids = torch.randint(2, 90, (6, LENGTH))
    mask = (torch.arange(LENGTH) < torch.tensor([LENGTH, 1, 4, LENGTH, 7, 2])[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


@pytest.mark.parametrize("head", forms(PAST_FUTURE + UNLEARNED))
def test_trains_and_answers_alike(make_checkpoint: Callable[..., Path], tmp_path: Path, head: dict[str, Any]) -> None:
    model, raw = model_of(make_checkpoint, head)
    objective = "authors" if head.get("incorporate") == "concat-shared" else "paper"
    model.objective = objective
    model.train()
    batch, labels = inputs(), torch.tensor([0, 1, 2, 0, 1, 2])
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(4):
        out = model(labels=labels, **batch)
        optimiser.zero_grad()
        out["loss"].backward()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.exit_head.parameters())
        optimiser.step()
        losses.append(out["loss"].item())
    assert losses[-1] < losses[0]
    model.eval()
    with torch.no_grad():
        theirs = model(**batch)["logits"].transpose(0, 1).numpy()
    engine = Manifest("test", head, criterion="entropy", exit_layers=tuple(range(1, 6)))
    path = saving.write(tmp_path / "ckpt", raw, engine, model.checkpoint_tensors())
    if head.get("combine", "none") != "none":
        head = head | {"combine": "none"}  # trained as plain classifiers
        path = saving.write(
            tmp_path / "plain", raw, Manifest("test", head, exit_layers=engine.exit_layers),
            model.checkpoint_tensors(),
        )  # fmt: skip
    ours = pfengine.load(path, criterion="never").layer_logits(
        [{"input_ids": row[row > 0]} for row in batch["input_ids"].numpy()]
    )
    np.testing.assert_allclose(ours, theirs, atol=2e-5)  # fp32, five layers


def test_imitation_loss_leaves_the_teacher_alone() -> None:
    states = torch.randn(3, 5, 8, requires_grad=True)
    guesses = [torch.randn(5, 2, 8, requires_grad=True), torch.randn(5, 1, 8, requires_grad=True)]
    loss = imitation_loss(states, guesses)
    by_hand = []
    for i, guess in enumerate(guesses):
        for j in range(guess.shape[1]):
            cosine = torch.cosine_similarity(guess[:, j], states[i + 1 + j], dim=-1)
            by_hand.append((i, (1 - cosine).mean().item()))
    expected = np.mean([np.mean([v for k, v in by_hand if k == i]) for i in range(2)])
    assert loss.item() == pytest.approx(expected, abs=1e-6)
    loss.backward()
    assert states.grad is None
    assert all(guess.grad is not None for guess in guesses)


def test_past_states_get_gradients_as_the_objective_says(make_checkpoint: Callable[..., Path]) -> None:
    """Only the last layer's logits are asked: under "authors" they reach the encoder through the last state alone."""
    head = {"type": "past-future", "pooler": "none", "learner": "linear", "incorporate": "concat", "gate": "row"}
    for objective, reached in (("paper", True), ("authors", False)):
        model, _ = model_of(make_checkpoint, head)
        model.objective = objective
        first = torch.randn(5, 4, 48, requires_grad=True)
        _, _, logits = model.exits(first)
        logits[-1].sum().backward()
        assert first.grad is not None
        assert bool(first.grad[0].abs().sum() > 0) == reached
        assert first.grad[-1].abs().sum() > 0


def gradients(model: Any, layer: int) -> bool:
    return any(p.grad is not None for p in model._layers()[layer - 1].parameters())


@pytest.mark.slow
def test_layers_freeze_with_falling_probability(make_checkpoint: Callable[..., Path]) -> None:
    head = {"type": "linear", "pooler": "none"}
    model, _ = model_of(make_checkpoint, head)
    assert isinstance(model, LinearModel)
    model.freezing = Freezing("layers")
    counts = np.zeros(5)
    steps = 120
    import random

    random.seed(0)
    for _ in range(steps):
        model.train()
        model.zero_grad(set_to_none=True)
        model(labels=torch.tensor([0, 1, 2, 0, 1, 2]), **inputs())["loss"].backward()
        counts += [not gradients(model, layer) for layer in range(1, 6)]
        assert all(p.requires_grad for p in model.parameters())
    np.testing.assert_allclose(counts / steps, [1, 0.75, 0.5, 0.25, 0], atol=0.13)  # three standard deviations
    assert (counts[0], counts[-1]) == (steps, 0)
    model.eval()
    model.zero_grad(set_to_none=True)
    model(labels=torch.tensor([0, 1, 2, 0, 1, 2]), **inputs())["loss"].backward()
    assert gradients(model, 1), "nothing is frozen in evaluation"


@pytest.mark.parametrize("family", ["bert", pytest.param("albert", marks=pytest.mark.slow)])
def test_lower_layers_are_freed_over_the_steps(make_checkpoint: Callable[..., Path], family: str) -> None:
    model, _ = model_of(make_checkpoint, {"type": "linear", "pooler": "none"}, family)
    model.train()
    reached = []
    for progress in (0.0, 0.5, 1.0):
        model.freezing = Freezing("lower", 2, progress)
        times = 0
        for _ in range(30):
            model.zero_grad(set_to_none=True)
            model(labels=torch.tensor([0, 1, 2, 0, 1, 2]), **inputs())["loss"].backward()
            embeddings = model.backbone.embeddings.word_embeddings.weight
            times += embeddings.grad is not None
        reached.append(times)
    assert reached[0] == 0
    assert 0 < reached[1] < 30
    assert reached[2] == 30


def test_first_tokens_are_those_of_transformers(make_checkpoint: Callable[..., Path]) -> None:
    for family in SIZES:
        model, _ = model_of(make_checkpoint, {"type": "linear", "pooler": "none"}, family)
        model.eval()
        batch = inputs()
        with torch.no_grad():
            first, bounds = model.read_layers(batch)
            last = model.backbone(**batch).last_hidden_state[:, 0]
        assert (len(first), bounds) == (model.backbone_config.num_layers, None)
        torch.testing.assert_close(first[-1], last)


def test_authors_objective_is_half(make_checkpoint: Callable[..., Path]) -> None:
    model, _ = model_of(make_checkpoint, {"type": "past-future", "pooler": "per-layer"})
    assert isinstance(model, PastFutureModel)
    model.eval()
    losses = []
    for objective in ("paper", "authors"):
        model.objective = objective  # type: ignore[assignment]
        losses.append(model(labels=torch.tensor([0, 1, 2, 0, 1, 2]), **inputs())["loss"].item())
    assert losses[0] == pytest.approx(2 * losses[1], rel=1e-6)
