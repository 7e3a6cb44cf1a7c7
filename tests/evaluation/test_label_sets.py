"""Rows that may have several labels, or none: which they are in a file, and how answers to them are scored."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.metrics

import pfengine
from pfengine import data
from pfengine.data import Example
from pfengine.evaluation import metrics

NAMES = ("toxic", "spam", "off topic")
TEXTS = [f"a text with {i} and {i * 7 % 13} words" for i in range(90)]


@pytest.fixture
def checkpoint(make_text_checkpoint: Callable[..., Path]) -> Path:
    path = make_text_checkpoint(
        labels=3, head={"type": "linear", "pooler": "none"}, criterion="binary-confidence:0.55",
        config={"problem_type": "multi_label_classification"},
    )  # fmt: skip
    config = json.loads((path / "config.json").read_text())
    config |= {"id2label": dict(enumerate(NAMES)), "label2id": {name: i for i, name in enumerate(NAMES)}}
    (path / "config.json").write_text(json.dumps(config))
    manifest = json.loads((path / "pfengine.json").read_text())
    manifest.pop("files", None)
    (path / "pfengine.json").write_text(json.dumps(manifest))
    return path


def written(path: Path, truth: np.ndarray, form: str) -> Path:
    """The same label sets in one of the forms that files have."""
    rows: list[Any] = [[NAMES[i] for i in np.flatnonzero(row)] for row in truth]
    if form == "ids":
        rows = [np.flatnonzero(row).tolist() for row in truth]
    elif form == "floats":
        rows = truth.astype(float).tolist()
    if form == "tsv":
        lines = ["text\tlabels", *(f"{text}\t{'|'.join(row) or '[]'}" for text, row in zip(TEXTS, rows, strict=True))]
    else:
        lines = [json.dumps({"text": text, "labels": row}) for text, row in zip(TEXTS, rows, strict=True)]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_figures_are_those_of_scikit_learn(checkpoint: Path, tmp_path: Path) -> None:
    engine = pfengine.load(checkpoint, criterion="never", precision="fp32")
    answers = engine.predict(TEXTS).logits > 0
    truth = answers ^ (np.random.default_rng(0).random(answers.shape) < 0.2)
    truth[3] = [True, False, False]
    truth &= ~(truth.all(1, keepdims=True))  # three ids could be zeros and ones
    file = written(tmp_path / "rows.jsonl", truth, "names")
    report = pfengine.evaluate(checkpoint, file, precision="fp32", thresholds=[0.55], answers=True)
    full, early = report.settings
    assert full.metrics == pytest.approx(
        {
            "micro_f1": sklearn.metrics.f1_score(truth, answers, average="micro"),
            "macro_f1": sklearn.metrics.f1_score(truth, answers, average="macro", zero_division=0.0),
            "subset_accuracy": sklearn.metrics.accuracy_score(truth, answers),
        }
    )
    assert full.answers == answers.tolist()
    assert report.truth == truth.tolist()
    assert early.layer_speedup > 1
    (curve,) = report.curves
    assert curve.oracle is not None
    assert curve.oracle.metrics["subset_accuracy"] >= full.metrics["subset_accuracy"]
    assert curve.points[0]["metrics"] == pytest.approx(full.metrics)
    last = curve.exits[-1]
    assert (last.agreement, last.calibration_error, last.difficulty_inversion) == (1.0, None, None)
    report.write(tmp_path / "report")
    assert "micro_f1" in (tmp_path / "report" / "report.md").read_text()
    for metric in ("micro_f1", "macro_f1", "subset_accuracy"):
        found = metrics.resampled(metric, answers, truth)
        samples, _ = metrics._samples(len(truth))
        exact = [metrics.METRICS[metric](answers[part], truth[part]) for part in samples]
        np.testing.assert_allclose(found, exact, atol=1e-12)
        assert 0 < metrics.standard_error(metric, answers, truth) < 0.1


@pytest.mark.parametrize("form", ["names", "ids", "floats", "tsv"])
def test_forms_of_a_file(tmp_path: Path, form: str) -> None:
    truth = np.random.default_rng(1).random((len(TEXTS), 3)) < 0.4
    truth[truth.all(1)] = False
    truth[0] = [False, True, True]
    file = written(tmp_path / f"rows.{'tsv' if form == 'tsv' else 'jsonl'}", truth, form)
    found = data.label_sets(data.read(file, labelled=True), NAMES, "rows")
    np.testing.assert_array_equal(found, truth)


@pytest.mark.parametrize(
    ("label", "said"),
    [
        ('["toxic", "rude"]', r"rows, row 1: label 'rude' is not one of toxic, spam, off topic"),
        ("[0, 1, 0]", r"rows, row 1: \[0, 1, 0\] may be ids or zeros and ones; give floats, or names"),
        ("[0.0, 1.0]", "rows, row 1: has 2 numbers, and the model 3 labels"),
        ("[7]", r"rows, row 1: label '7' is not one of"),
        ("[" * 3000, r"rows, row 1: label '\[+\.*' is not one of"),
        (f"[{'9' * 5000}]", r"rows, row 1: label '\[9+\.*' is not one of"),
        (None, "rows has no column with labels"),
    ],
)
def test_sets_that_do_not_fit(label: str | None, said: str) -> None:
    with pytest.raises(pfengine.ConfigError, match=said):
        data.label_sets([Example("a", None, "spam"), Example("b", None, label)], NAMES, "rows")


def test_lists_are_not_names(tmp_path: Path, text_checkpoint: Path) -> None:
    """A model that gives one label per row is neither scored nor trained on lists."""
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"text": text, "label": ["a", "b"]}) + "\n" for text in TEXTS))
    with pytest.raises(pfengine.ConfigError, match="row 0: has a list of labels"):
        pfengine.evaluate(text_checkpoint, file)
    with pytest.raises(pfengine.ConfigError, match="the labels are lists, such as"):
        pfengine.train(pfengine.TrainingConfig(str(text_checkpoint), str(file), str(tmp_path / "out"), hold_out=10))


def test_metrics_that_do_not_fit(checkpoint: Path, tmp_path: Path) -> None:
    file = written(tmp_path / "rows.jsonl", np.zeros((len(TEXTS), 3), bool), "names")
    with pytest.raises(pfengine.ConfigError, match="is scored by micro_f1 or macro_f1 or subset_accuracy"):
        pfengine.evaluate(checkpoint, file, metrics=["accuracy"])
