"""Calibrating and evaluating cascades: thresholds between models, and layers that a row goes through in all of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import pfengine
from pfengine.cli import app
from pfengine.errors import ConfigError
from pfengine.evaluation.model_answers import answers_of_models

from ..conftest import WORDS

Make = Callable[..., Path]


@pytest.fixture(scope="module")
def cascade(make_text_checkpoint: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, the last with exits of its own."""
    small = {"num_hidden_layers": 2}
    parts = [
        make_text_checkpoint(labels=2, head="classifier", config=small),
        make_text_checkpoint(labels=2, head="linear", seed=1, threshold=0.3),
    ]
    return pfengine.cascade(parts, tmp_path_factory.mktemp("cascade") / "out")


@pytest.fixture(scope="module")
def texts() -> list[str]:
    draw = np.random.default_rng(0)
    return [" ".join(draw.choice(WORDS, draw.integers(1, 12))) for _ in range(150)]


@pytest.fixture(scope="module")
def data(cascade: Path, texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows with the last model's labels, every tenth of them wrong."""
    labels = pfengine.load(cascade / "models" / "2").predict(texts).label_ids
    labels[::10] = 1 - labels[::10]
    path = tmp_path_factory.mktemp("data") / "dev.jsonl"
    lines = (json.dumps({"text": text, "label": f"L{label}"}) for text, label in zip(texts, labels, strict=True))
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def calibrated(cascade: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("calibrated") / "out"
    pfengine.calibrate(cascade, data, speedup=1.5, out=out)
    return out


def test_what_models_answer(cascade: Path, texts: list[str]) -> None:
    engine = pfengine.load(cascade)
    answers = answers_of_models(engine, texts)
    alone = [pfengine.load(cascade / "models" / each).predict(texts) for each in ("1", "2")]
    np.testing.assert_array_equal(answers.logits, [each.logits for each in alone])
    np.testing.assert_array_equal(answers.layers, [alone[0].exit_layers, 2 + alone[1].exit_layers])
    assert len(set(answers.layers[1])) > 1


def test_the_table_is_what_the_engine_does(calibrated: Path, texts: list[str]) -> None:
    engine = pfengine.load(calibrated, precision="fp32")
    written = engine.checkpoint.manifest
    assert written.criterion == "cascadebert"
    assert len(written.calibration) > 3
    last = pfengine.load(calibrated / "models" / "2", precision="fp32").predict(texts)
    for point in written.calibration:
        out = engine.predict(texts, threshold=point["threshold"])
        assert out.layer_speedup == pytest.approx(point["layer_speedup"])
        assert (out.label_ids == last.label_ids).mean() == pytest.approx(point["agreement"])
    assert engine.predict(texts).layer_speedup == pytest.approx(1.5, rel=0.1)
    faster = engine.predict(texts, speedup=2.0)
    assert faster.layer_speedup == pytest.approx(2.0, rel=0.1)
    assert set(faster.models) == {1, 2}
    assert "bf16" in written.precisions


def test_in_place(cascade: Path, data: Path, tmp_path: Path) -> None:
    path = pfengine.convert(cascade, tmp_path / "copy")
    outcome = pfengine.calibrate(path, data, criterion="margin:0.5")
    assert (outcome.criterion, outcome.threshold, outcome.exit_layers) == ("margin", 0.5, (2, 7))
    assert pfengine.load(path).criterion == pfengine.exits.Margin(0.5)
    assert not list(tmp_path.glob(".*"))


def test_a_guarantee(cascade: Path, data: Path, texts: list[str], tmp_path: Path) -> None:
    outcome = pfengine.calibrate(cascade, data, agreement=0.6, out=tmp_path / "out")
    assert outcome.guarantee is not None
    engine = pfengine.load(tmp_path / "out")
    out, last = engine.predict(texts), pfengine.load(cascade / "models" / "2").predict(texts)
    assert out.layer_speedup == pytest.approx(outcome.guarantee.layer_speedup)
    assert int((out.label_ids != last.label_ids).sum()) == outcome.guarantee.faults
    assert engine.precision == "fp32"
    by_labels = pfengine.calibrate(cascade, data, accuracy_drop=0.4, out=tmp_path / "labels")
    assert by_labels.guarantee is not None


def test_what_a_cascade_does_not_take(cascade: Path, data: Path, tmp_path: Path) -> None:
    for options in ({"choose_layers": True}, {"speedup": 1.0}):
        with pytest.raises(ConfigError, match="choose_layers is for one of its models, and at speed-up 1"):
            pfengine.calibrate(cascade, data, out=tmp_path / "out", **options)
    with pytest.raises(ConfigError, match="needs a head that learns when to exit"):
        pfengine.calibrate(cascade, data, out=tmp_path / "out", criterion="learned")


def test_evaluation(calibrated: Path, data: Path, texts: list[str]) -> None:
    small = calibrated / "models" / "1"
    report = pfengine.evaluate(calibrated, data, speedups=[2.0], compare=[small], repeats=1, precision="fp32")
    full, fast, other = report.settings
    assert (full.layer_speedup, full.exit_layers) == (1, {5: 150})
    out = pfengine.load(calibrated, precision="fp32").predict(texts, speedup=2.0)
    assert fast.layer_speedup == pytest.approx(out.layer_speedup)
    assert other.layer_speedup == pytest.approx(5 / 2), "against the layers of the cascade's last model"
    curve = report.curves[0]
    assert curve.criterion == "cascadebert"
    assert curve.points[0]["layer_speedup"] < 1, "where no row leaves the first model, its layers are spent in vain"
    assert curve.points[-1]["layer_speedup"] == pytest.approx(5 / 2)
    assert curve.oracle is not None
    answers = answers_of_models(pfengine.load(calibrated, precision="fp32"), texts)
    labels = [int(json.loads(line)["label"][1:]) for line in data.read_text().splitlines()]
    right = answers.logits[0].argmax(1) == labels
    later = answers.logits[1].argmax(1) == labels
    spent = np.where(right | ~later, answers.layers[0], answers.layers[1])
    assert curve.oracle.layer_speedup == pytest.approx(5 * len(texts) / spent.sum())


def test_the_command_line(cascade: Path, data: Path, tmp_path: Path) -> None:
    out, models = tmp_path / "out", [str(cascade / "models" / each) for each in ("1", "2")]

    def run(*arguments: Any) -> str:
        done = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert done.exit_code == 0, done.output
        return done.stdout

    assert run("cascade", *models, out, "--criterion", "margin", "--threshold", 0.4).strip() == str(out)
    facts = json.loads(run("info", out, "--json"))
    assert (facts["system"], facts["criterion"], facts["threshold"]) == ("cascade", "margin", 0.4)
    assert [(each["layers"], each["head"]) for each in facts["models"]] == [(2, "classifier"), (5, "linear")]
    assert "model 2: system linear, head linear, family bert, layers 5" in run("info", out)
    answer = json.loads(run("classify", out, "a good film", "--json"))
    assert sorted(answer) == ["exit_layer", "label", "model", "score"]
    assert "layer speed-up" in run("calibrate", out, data, "--speedup", 1.5)
