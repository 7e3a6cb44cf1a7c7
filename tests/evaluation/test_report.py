"""Metrics, curves, oracles, comparisons and what is written of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.metrics

import pfengine
from pfengine.evaluation import evaluate, pictures
from pfengine.evaluation.curve import curve, oracle
from pfengine.evaluation.metrics import measure, resampled, standard_error
from pfengine.exits import Entropy

WORDS = ["good", "bad", "great", "bleak", "film", "movie", "very", "slow", "charming", "journey"]


def test_metrics_by_hand() -> None:
    answers, truth = np.array([1, 1, 0, 0, 1]), np.array([1, 0, 1, 0, 1])
    assert measure(("f1", "accuracy"), answers, truth) == {"f1": pytest.approx(2 / 3), "accuracy": 0.6}
    three = np.array([0, 1, 2, 2, 1])
    expected = sklearn.metrics.f1_score(truth, three, average="macro", zero_division=0.0)
    assert measure(("f1",), three, truth)["f1"] == pytest.approx(expected)
    values, wanted = np.array([1.0, 2.5, 2.0, 4.0]), np.array([1.0, 2.0, 3.0, 5.0])
    found = measure(("pearson", "spearman"), values, wanted)
    assert found["pearson"] == pytest.approx(np.corrcoef(values, wanted)[0, 1])
    assert found["spearman"] == pytest.approx(0.8)
    assert np.isnan(measure(("pearson",), np.ones(4), wanted)["pearson"])


def test_standard_errors() -> None:
    draw = np.random.default_rng(0)
    truth = draw.integers(0, 2, 2000)
    answers = np.where(draw.random(2000) < 0.9, truth, 1 - truth)
    exact = standard_error("accuracy", answers, truth)
    assert exact == pytest.approx(0.0067, abs=5e-4)
    assert standard_error("f1", answers, truth) == pytest.approx(exact, rel=0.3)


@pytest.mark.parametrize(("metric", "labels"), [("accuracy", 2), ("f1", 2), ("f1", 4), ("pearson", 4)])
def test_resampled_is_the_metric_of_each_sample(metric: str, labels: int) -> None:
    draw = np.random.default_rng(2)
    for rows in (3, 60) if metric == "pearson" else (1, 3, 60):
        truth = draw.integers(0, labels, rows)
        answers = np.where(draw.random(rows) < 0.6, truth, draw.integers(0, labels, rows))
        samples = np.random.default_rng(0)
        found = resampled(metric, answers, truth)
        for value in found[:20]:
            part = samples.integers(0, rows, rows)
            if metric == "pearson" and (len(set(truth[part])) == 1 or len(set(answers[part])) == 1):
                assert np.isnan(value)
                continue
            # f1 of more than two labels, of a sample with only 0 and 1, is that of both labels
            if metric == "f1" and labels > 2 and max(truth[part].max(), answers[part].max()) < 2:
                continue
            assert value == pytest.approx(measure((metric,), answers[part], truth[part])[metric], abs=1e-12)


def logits(rows: int, exits: int = 4) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(1)
    truth = draw.integers(0, 2, rows)
    values = draw.standard_normal((exits, rows, 2)).astype(np.float32)
    values[:, np.arange(rows), truth] += np.linspace(0.3, 2, exits)[:, None]
    return values, truth


def test_curve_begins_at_full_depth_and_speeds_up() -> None:
    values, truth = logits(300)
    points = curve(Entropy(0.0), values, truth, [1, 2, 3, 4], ("accuracy",), points=20)
    assert len(points) == 20
    speedups = [point["layer_speedup"] for point in points]
    assert speedups == sorted(speedups)
    assert (speedups[0], speedups[-1]) == (1.0, 4.0)
    assert points[0]["metrics"]["accuracy"] == np.mean(values[-1].argmax(-1) == truth)
    assert points[-1]["metrics"]["accuracy"] == np.mean(values[0].argmax(-1) == truth)


def test_oracle_is_above_every_exit() -> None:
    values, truth = logits(300)
    best = oracle(values, truth, [1, 2, 3, 4], ("accuracy",))
    right = values.argmax(-1) == truth
    assert best.metrics["accuracy"] == right.any(0).mean()
    by_hand = [next((i + 1 for i in range(4) if right[i, row]), 1) for row in range(300)]
    assert best.layer_speedup == pytest.approx(4 * 300 / sum(by_hand))


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    draw = np.random.default_rng(0)
    path = tmp_path / "MRPC" / "dev.tsv"
    path.parent.mkdir()
    lines = [" ".join(draw.choice(WORDS, draw.integers(2, 12))) for _ in range(120)]
    path.write_text(
        "sentence1\tsentence2\tlabel\n" + "".join(f"{a}\t{a[::-1]}\t{i % 2}\n" for i, a in enumerate(lines))
    )
    return path


@pytest.fixture
def calibrated(make_text_checkpoint: Callable[..., Path], rows: Path, tmp_path: Path) -> Path:
    shutil.copytree(make_text_checkpoint(labels=2), tmp_path / "main")
    pfengine.calibrate(tmp_path / "main", rows)
    return tmp_path / "main"


def test_comparison_in_one_run(
    calibrated: Path, make_text_checkpoint: Callable[..., Path], rows: Path, tmp_path: Path
) -> None:
    static = make_text_checkpoint(labels=2, head="classifier", config={"num_hidden_layers": 2})
    other = tmp_path / "other"
    shutil.copytree(make_text_checkpoint(labels=2, seed=3, head={"type": "linear"}), other)
    pfengine.calibrate(other, rows)
    report = evaluate(calibrated, rows, speedups=[1.5], compare=[static, other], repeats=2)
    names = [(Path(s.checkpoint), s.name) for s in report.settings]
    assert names == [
        (calibrated, "full depth"), (calibrated, "speedup 1.5"), (static, "full depth"), (other, "speedup 1.5"),
    ]  # fmt: skip
    assert list(report.settings[0].metrics) == ["f1", "accuracy"], "the task is known by its directory"
    two_layers = report.settings[2]
    assert two_layers.layer_speedup == pytest.approx(5 / 2)
    assert two_layers.exit_layers == {2: 120}
    assert all(s.seconds > 0 for s in report.settings)
    assert [bool(c.points) for c in report.curves] == [True, False, True]
    assert report.curves[1].oracle is None
    report.write(tmp_path / "report")
    written = {path.name for path in (tmp_path / "report").iterdir()}
    drawn = {f"{name}.{kind}" for name in ("curve", "exits", "layers") for kind in ("png", "svg")}
    assert written == {"report.json", "report.md"} | drawn
    assert json.loads((tmp_path / "report" / "report.json").read_text())["rows"] == 120
    text = (tmp_path / "report" / "report.md").read_text()
    assert text.partition("Each exit")[0].count("\n| ") == 1 + 4
    assert "| main | speedup 1.5 |" in text
    assert "The oracle" in text
    assert "![quality against layer speed-up](curve.png)" in text
    assert (tmp_path / "report" / "curve.png").read_bytes()[:4] == b"\x89PNG"
    assert "layer speed-up" in (tmp_path / "report" / "curve.svg").read_text()


def test_full_depth_beside_a_checkpoint_that_its_criterion_does_not_keep_there(
    calibrated: Path, make_text_checkpoint: Callable[..., Path], rows: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(calibrated, tmp_path / "other"))
    manifest = json.loads((other / "pfengine.json").read_text())
    manifest["calibration"] = [point for point in manifest["calibration"] if point["layer_speedup"] > 1.2]
    (other / "pfengine.json").write_text(json.dumps(manifest))
    report = evaluate(calibrated, rows, compare=[other], speedups=[1.0, 1.5], repeats=1)
    names = [(Path(s.checkpoint).name, s.name, s.layer_speedup > 1) for s in report.settings]
    assert names == [
        ("main", "full depth", False), ("main", "speedup 1", False), ("main", "speedup 1.5", True),
        ("other", "full depth", False), ("other", "speedup 1.5", True),
    ]  # fmt: skip


def test_a_model_without_exits_has_a_table_but_no_pictures(
    make_text_checkpoint: Callable[..., Path], rows: Path, tmp_path: Path
) -> None:
    report = evaluate(make_text_checkpoint(labels=2, head="classifier"), rows, repeats=1)
    assert [s.name for s in report.settings] == ["full depth"]
    report.write(tmp_path / "report")
    assert {path.name for path in (tmp_path / "report").iterdir()} == {"report.json", "report.md"}


def test_regression(make_checkpoint: Callable[..., Path], tokenizer_files: Path, rows: Path, tmp_path: Path) -> None:
    config: dict[str, Any] = {"vocab_size": 120, "max_position_embeddings": 64, "problem_type": "regression"}
    path = tmp_path / "ckpt"
    shutil.copytree(make_checkpoint("bert", labels=1, head="classifier", config=config), path)
    shutil.copytree(tokenizer_files, path, dirs_exist_ok=True)
    report = evaluate(path, rows, repeats=1)
    engine = pfengine.load(path)
    values = engine.predict([tuple(line.split("\t")[:2]) for line in rows.read_text().splitlines()[1:]]).logits[:, 0]
    truth = np.arange(120) % 2
    assert report.settings[0].metrics["pearson"] == pytest.approx(np.corrcoef(values, truth)[0, 1], abs=1e-6)
    assert list(report.settings[0].metrics) == ["pearson", "spearman"]
    with pytest.raises(pfengine.ConfigError, match="scored by pearson or spearman"):
        evaluate(path, rows, metrics=["accuracy"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metrics": ["bleu"]}, "metric 'bleu' is unknown"),
        ({"metrics": ["pearson"]}, "scored by accuracy or f1"),
        ({"repeats": 0}, "repeats is 0"),
        ({"label_column": "mood"}, "no column 'mood'"),
        ({"max_length": 1000}, "max_length is 1000"),
    ],
)
def test_wrong_use(calibrated: Path, rows: Path, options: dict, message: str) -> None:
    with pytest.raises(pfengine.ConfigError, match=message):
        evaluate(calibrated, rows, **options)


def test_checkpoints_of_other_tasks_are_not_compared(
    calibrated: Path, make_text_checkpoint: Callable[..., Path], rows: Path
) -> None:
    with pytest.raises(pfengine.ConfigError, match="has the labels L0, L1, L2"):
        evaluate(calibrated, rows, compare=[make_text_checkpoint(labels=3)])


def test_a_picture_drawn_again_is_the_same(tmp_path: Path) -> None:
    drawn = []
    for name in ("one", "two"):
        figure, axes = pictures.new_figure()
        axes.plot([1, 2, 3], [90.5, 89.0, 80.0], label="quality")
        axes.legend()
        pictures.save_figure(figure, tmp_path / name)
        drawn.append([(tmp_path / name).with_suffix(kind).read_bytes() for kind in (".png", ".svg")])
    assert drawn[0] == drawn[1]
