"""evaluate(): figures recomputed from predictions by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import pfengine
from pfengine.evaluation import evaluate

ROWS = [
    ("it 's a charming and often affecting journey .", 1),
    ("unflinchingly bleak and desperate", 0),
    ("it 's slow -- very , very slow .", 0),
    ("a sometimes tedious film .", 0),
    ("the mesmerizing performances of the leads keep the film grounded and keep the audience riveted .", 0),  # wrong
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "dev.jsonl"
    path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in ROWS))
    return path


def test_figures(file: Path, sst2: pfengine.Engine) -> None:
    thresholds = [0.02, 0.3]
    report = evaluate("sst2", file.parent, thresholds=thresholds, repeats=2)
    labels = np.array([label for _, label in ROWS])
    assert report.rows == len(ROWS)
    assert report.mean_tokens == np.mean([len(sst2.tokenizer.backend.encode(text).ids) for text, _ in ROWS])  # type: ignore[union-attr]
    for setting, threshold in zip(report.settings, [None, *thresholds], strict=True):
        rule = "never" if threshold is None else f"entropy:{threshold}"
        out = sst2.predict([text for text, _ in ROWS], criterion=rule)
        assert setting.metrics == {"accuracy": (out.label_ids == labels).mean()}
        accuracy = setting.metrics["accuracy"]
        assert setting.standard_error == pytest.approx((accuracy * (1 - accuracy) / len(ROWS)) ** 0.5)
        assert setting.layer_speedup == out.layer_speedup
        assert sum(setting.exit_layers.values()) == len(ROWS)
        assert sum(layer * count for layer, count in setting.exit_layers.items()) == out.exit_layers.sum()
    assert report.settings[0].wall_clock_speedup == 1


def test_default_settings_are_the_calibration_table(file: Path, sst2: pfengine.Engine) -> None:
    report = evaluate("sst2", file, repeats=1)
    points = [p for p in sst2.checkpoint.manifest.calibration if p["layer_speedup"] > 1]
    assert len(report.settings) == 1 + len(points)


def test_labels_that_do_not_fit(file: Path) -> None:
    file.write_text('{"text": "a film", "label": "mixed"}\n')
    with pytest.raises(pfengine.ConfigError, match="row 0: label 'mixed' is not one of negative, positive"):
        evaluate("sst2", file)
    with pytest.raises(pfengine.ConfigError, match="repeats"):
        evaluate("sst2", file, repeats=0)


@pytest.fixture
def regression(make_text_checkpoint: Callable[..., Path]) -> Path:
    return make_text_checkpoint(labels=1, head="classifier", config={"problem_type": "regression"})


@pytest.mark.parametrize("rows", [[("a film", 2.5)], [("a film", 2), ("the", 2), ("bad", 2)]])
def test_one_score_is_refused(regression: Path, tmp_path: Path, rows: list) -> None:
    file = tmp_path / "dev.jsonl"
    file.write_text("".join(json.dumps({"text": text, "score": score}) + "\n" for text, score in rows))
    with pytest.raises(pfengine.ConfigError, match=f"all {len(rows)} rows have the same score"):
        evaluate(regression, file)


def test_a_metric_without_a_value_is_null(regression: Path, tmp_path: Path) -> None:
    file = tmp_path / "dev.jsonl"
    file.write_text("".join(json.dumps({"text": "a film", "score": i + 0.5}) + "\n" for i in range(4)))
    report = evaluate(regression, file, repeats=np.int64(1))
    written = json.loads(json.dumps(report.to_json(), allow_nan=False))["settings"][0]
    assert written["metrics"] == {"pearson": None, "spearman": None}
    assert written["standard_error"] is None
    report.write(tmp_path / "report")
    json.loads((tmp_path / "report" / "report.json").read_text(), parse_constant=pytest.fail)
