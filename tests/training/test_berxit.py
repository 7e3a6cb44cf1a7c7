"""BERxiT: each strategy trains what it says, and only where a score is learned do rows leave by it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import pfengine
from pfengine.heads import Scores
from pfengine.training.berxit import STRATEGIES, learning_loss

from .test_train import config


@pytest.fixture(scope="module")
def rated(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same texts with scores."""
    path = tmp_path_factory.mktemp("rated")
    head, *lines = (rows / "train.tsv").read_text().splitlines()
    scored = [f"{line[:-1]}{3.5 if line[-1] == '1' else 1.25}" for line in lines]
    (path / "train.tsv").write_text("\n".join([head, *scored]) + "\n")
    return path


QUICK = ("alternate-lte",)


@pytest.mark.parametrize(
    "strategy", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in STRATEGIES]
)
def test_every_strategy(encoder: Path, rows: Path, tmp_path: Path, strategy: str) -> None:
    options: dict[str, Any] = {"strategy": strategy} | ({"limit": 2} if strategy == "limit" else {})
    out = pfengine.train(config(encoder, rows, tmp_path / "out", system="berxit", options=options, epochs=5))
    engine = pfengine.load(out)
    manifest = engine.checkpoint.manifest
    learned = strategy == "alternate-lte"
    assert manifest.criterion == ("learned" if learned else "entropy")
    assert manifest.training["strategy"] == strategy
    assert not any("last_pooler" in key for key in load_file(out / "model.safetensors"))
    lines = [line.split("\t") for line in (rows / "train.tsv").read_text().splitlines()[1:61]]
    texts, labels = [text for text, _ in lines], np.array([int(label) for _, label in lines])
    logits, score = engine.layer_scores(texts)
    right = (logits.argmax(-1) == labels).mean(1) > 0.9
    trained = {"raw": [False, False, True], "only-highway": [True, True, False], "limit": [False, True, False]}
    for found, wanted in zip(right, trained.get(strategy, [True] * 3), strict=True):
        assert found or not wanted
    assert (score is not None) == learned


@pytest.mark.slow
def test_regression_leaves_by_the_learned_score(encoder: Path, rated: Path, tmp_path: Path) -> None:
    out = pfengine.train(config(encoder, rated, tmp_path / "out", system="berxit", labels=None, epochs=8))
    engine = pfengine.load(out)
    assert engine.checkpoint.manifest.criterion == "learned"
    texts = [line.split("\t")[0] for line in (rated / "train.tsv").read_text().splitlines()[1:61]]
    _, learned = engine.layer_scores(texts)
    threshold = float(np.median(learned[:-1]))
    taken = engine.predict(texts, threshold=threshold)
    assert taken.exit_layers.min() < 3
    alone = [engine.predict([text], threshold=threshold) for text in texts]
    np.testing.assert_array_equal(taken.exit_layers, [each.exit_layers[0] for each in alone])
    np.testing.assert_array_equal(taken.logits, np.concatenate([each.logits for each in alone]))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["alternate-lte", pytest.param("two-stage", marks=pytest.mark.slow)])
def test_exits_attached_to_a_finished_model(encoder: Path, rows: Path, tmp_path: Path, strategy: str) -> None:
    """Of two stages the first is the finished model's."""
    full = pfengine.train(config(encoder, rows, tmp_path / "full", system="full-model", epochs=4))
    options = {"strategy": strategy}
    out = pfengine.attach(full, rows / "train.tsv", tmp_path / "out", system="berxit", hold_out=40, options=options)
    engine = pfengine.load(out)
    assert engine.checkpoint.manifest.criterion == ("learned" if strategy == "alternate-lte" else "entropy")
    assert engine.predict("the film is good").exit_layers < 3


def test_what_a_score_learns() -> None:
    """1 where the exit's label is wrong, else 0; labels may be the full model's probabilities."""
    scores = [Scores(torch.tensor([[2.0, 1.0], [0.0, 1.0]]), torch.tensor([0.25, 0.5]))]
    assert float(learning_loss(scores, torch.tensor([0, 0]))) == pytest.approx((0.25**2 + 0.5**2) / 2)
    assert float(learning_loss(scores, torch.tensor([[0.6, 0.4], [0.9, 0.1]]))) == pytest.approx(0.15625)
    scores = [Scores(torch.tensor([[2.0]]), torch.tensor([0.5]))]
    assert float(learning_loss(scores, torch.tensor([1.0]))) == pytest.approx((np.tanh(1) - 0.5) ** 2, abs=1e-6)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"strategy": "both"}, "strategy is 'both'; it must be one of alternate-lte, alternate, all"),
        ({"strategy": "limit"}, "strategy 'limit' needs limit: the layer whose exit is trained"),
        ({"limit": 2}, "strategy 'alternate-lte' has no use for limit, 2"),
        ({"strategy": "limit", "limit": 4}, "limit is 4; the encoder has 3 layers"),
    ],
)
def test_options_that_do_not_fit(encoder: Path, rows: Path, tmp_path: Path, options: Any, said: str) -> None:
    with pytest.raises(pfengine.ConfigError, match=said):
        pfengine.train(config(encoder, rows, tmp_path / "out", system="berxit", options=options))


def test_probabilities_are_distilled_of_labels_only(encoder: Path, rated: Path, tmp_path: Path) -> None:
    options = {"strategy": "self-distil"}
    with pytest.raises(pfengine.ConfigError, match="strategy 'self-distil' distils probabilities of labels"):
        pfengine.train(config(encoder, rated, tmp_path / "out", system="berxit", options=options, labels=None))
