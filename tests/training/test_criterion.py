"""The criterion that a training run is told to write: any that the outputs allow, checked beforehand."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pfengine
from pfengine import TrainingConfig
from pfengine.training import run

from .test_train import config


@pytest.mark.parametrize(
    ("system", "criterion", "written"),
    [("past-future", "patience", "patience"), ("linear", " confidence: , 1.2", "confidence:,1.2")],
)
def test_it_is_written_calibrated_and_runs(
    encoder: Path, rows: Path, tmp_path: Path, system: str, criterion: str, written: str
) -> None:
    path = pfengine.train(config(encoder, rows, tmp_path / "out", system=system, criterion=criterion, epochs=3))
    manifest = json.loads((path / "pfengine.json").read_text())
    assert (manifest["system"], manifest["criterion"]) == (system, written)
    assert manifest["threshold"] in [point["threshold"] for point in manifest["calibration"]]
    engine = pfengine.load(path, precision="fp32")
    assert repr(engine.criterion).startswith(written.partition(",")[0])
    texts = [line.partition("\t")[0] for line in (rows / "train.tsv").read_text().splitlines()[1:30]]
    out = engine.predict(texts)
    alone = [engine.predict(text) for text in texts]
    np.testing.assert_array_equal(np.concatenate([each.exit_layers for each in alone]), out.exit_layers)
    np.testing.assert_array_equal(np.concatenate([each.logits for each in alone]), out.logits)
    assert engine.predict(texts, speedup=manifest["calibration"][-1]["layer_speedup"]).layer_speedup > 1


def test_that_of_scores(encoder: Path, tmp_path: Path) -> None:
    """For regression a table is written too."""
    draw, file = random.Random(0), tmp_path / "rows.jsonl"
    fill = [" ".join(draw.choices(["film", "plot", "a", "the", "is"], k=6)) for _ in range(300)]
    lines = [{"text": f"{text} {'good ' * (i % 5)}", "score": i % 5 / 2} for i, text in enumerate(fill)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    options: dict[str, Any] = {"system": "linear", "criterion": "patience:,0.5", "epochs": 2, "hold_out": 100}
    path = pfengine.train(config(encoder, file, tmp_path / "out", labels=None, **options))
    manifest = json.loads((path / "pfengine.json").read_text())
    assert manifest["criterion"] == "patience:,0.5"
    assert manifest["threshold"] >= 1
    assert all({"deviation", "layer_speedup"} <= set(point) for point in manifest["calibration"])
    assert pfengine.load(path).classify("a good film")[0]["exit_layer"] in (1, 2, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"system": "linear", "criterion": "learned"},
            "needs a head that learns when to exit.*criteria that fit: beem",
        ),
        ({"system": "full-model", "criterion": "entropy"}, "needs exits, and a head of type 'classifier' answers once"),
        ({"criterion": "replay:1,2"}, "replay.* cannot be calibrated"),
        ({"criterion": "sentee-max"}, "is for heads that score every token"),
        ({"criterion": "patience:,0.1"}, "a tolerance is for scores"),
    ],
)
def test_it_is_refused_before_the_training(
    encoder: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(run, "fit", pytest.fail)
    with pytest.raises(pfengine.ConfigError, match=message):
        pfengine.train(config(encoder, rows, tmp_path / "out", **options))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("criterion", "message"),
    [
        ("entropy:0.3", "criterion is 'entropy:0.3'; leave out its threshold, 'entropy': that is calibrated"),
        ("loudness", "criterion 'loudness' is unknown; it must be one of beem"),
        (3, "criterion is 3; it must be text such as 'patience'"),
        ("", "criterion '' is unknown"),
    ],
)
def test_text_that_makes_no_sense(criterion: Any, message: str) -> None:
    with pytest.raises(pfengine.ConfigError, match=message):
        TrainingConfig("model", "data", "out", criterion=criterion)
