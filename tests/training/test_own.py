"""The engine's own recipe: its loss, and that `pfengine train` without options is it."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pfengine
from pfengine.heads import Scores
from pfengine.training.losses import divergences
from pfengine.training.own import OwnModel

from .test_train import config


def test_the_divergence_is_its_definition() -> None:
    logits = torch.randn(3, 5, 4, requires_grad=True)
    p = torch.softmax(logits.detach(), -1)
    pairs = [(p[2] * (p[2] / p[i]).log()).sum(-1) for i in (0, 1)]
    found = divergences(logits).mean()
    torch.testing.assert_close(found.detach(), torch.stack(pairs).mean())
    found.backward()
    assert logits.grad is not None
    assert not logits.grad[2].any(), "the last exit learns from labels alone"
    assert logits.grad[:2].abs().sum(-1).all()
    scores = torch.randn(3, 5, 1)
    torch.testing.assert_close(divergences(scores).mean(), ((scores[:2] - scores[2]) ** 2).mean())


@pytest.mark.parametrize("distil", [0.0, 0.5])
def test_all_exits_weigh_the_same(distil: float) -> None:
    model = object.__new__(OwnModel)
    torch.nn.Module.__init__(model)
    model.options = {"distil": distil}
    logits, labels = torch.randn(4, 6, 3), torch.randint(0, 3, (6,))
    found = model.loss([Scores(each, None) for each in logits], labels)
    of_labels = torch.stack([torch.nn.functional.cross_entropy(each, labels) for each in logits]).mean()
    torch.testing.assert_close(found, of_labels + distil * divergences(logits).mean())


def test_train_without_options_is_this_recipe(encoder: Path, rows: Path, tmp_path: Path) -> None:
    told: dict[str, Any] = {"epochs": 4, "learning_rate": 3e-3, "hold_out": 40}  # a tiny encoder needs other numbers
    out = pfengine.train(pfengine.TrainingConfig(str(encoder), str(rows), str(tmp_path / "ckpt"), **told))
    manifest = pfengine.load(out).checkpoint.manifest
    assert (manifest.system, manifest.criterion) == ("pfengine", "entropy")
    assert manifest.head["reads"] == "query"
    assert manifest.training["averaging"] == 0.2
    defaults = pfengine.TrainingConfig("", "", "").filled()
    assert (defaults.epochs, defaults.learning_rate) == (3.0, 8e-5)
    others = pfengine.TrainingConfig("", "", "", system="linear").filled()
    assert (others.epochs, others.learning_rate, others.averaging) == (3.0, 5e-5, 0.0)


@pytest.mark.parametrize("system", ["pfengine", "linear", "fastbert"])
def test_a_form_is_of_past_future_alone(system: str) -> None:
    with pytest.raises(pfengine.ConfigError, match=f"form is 'authors', an option that system '{system}' does not"):
        pfengine.TrainingConfig("", "", "", system=system, form="authors")


@pytest.mark.slow
def test_low_layers_learn(encoder: Path, rows: Path, tmp_path: Path) -> None:
    """Each exit says which word a row has: no low layer is left behind by those above it."""
    out = pfengine.train(config(encoder, rows, tmp_path / "ckpt", epochs=10))
    lines = (rows / "train.tsv").read_text().splitlines()[1:]
    texts, labels = zip(*(line.split("\t") for line in lines), strict=True)
    accuracies = (pfengine.load(out).layer_logits(texts).argmax(-1) == np.array(labels, int)).mean(1)
    assert accuracies.min() > 0.9
    assert all(later > 0.9 * earlier for earlier, later in itertools.pairwise(accuracies))
