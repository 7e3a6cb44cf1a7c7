"""The judges of single exits, against their definitions spelt out pair by pair and bin by bin."""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st

import pfengine
from pfengine import cli_output
from pfengine.evaluation import calibration_error, difficulty_inversion, evaluate, judge_exits
from pfengine.evaluation.judges import BINS, confidence, log_odds
from pfengine.exits.temperature import fit_temperature
from pfengine.heads import HEADS

from ..heads.examples import Knowing

CONFIDENCES = st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 1.0])  # few, so that many are equal


@given(st.lists(st.tuples(CONFIDENCES, st.integers(0, 4)), min_size=1, max_size=25))
def test_inversion_is_counted_over_pairs(rows: list[tuple[float, int]]) -> None:
    credit, pairs = 0.0, 0
    for (sure, hard), (other_sure, other_hard) in itertools.permutations(rows, 2):
        if hard < other_hard:
            pairs += 1
            credit += 1 if sure > other_sure else 0.5 if sure == other_sure else 0
    found = difficulty_inversion(*(np.array(values) for values in zip(*rows, strict=True)))
    assert math.isnan(found) if not pairs else found == pytest.approx(credit / pairs, abs=1e-12)


def test_inversion_of_an_order_its_reverse_and_none() -> None:
    hard = np.array([3, 1, 2, 0])
    assert difficulty_inversion(-hard, hard) == 1
    assert difficulty_inversion(hard, hard) == 0
    assert difficulty_inversion(np.ones(4), hard) == 0.5
    assert math.isnan(difficulty_inversion(np.arange(4), np.ones(4)))


def test_inversion_of_many_rows_takes_no_time_that_grows_with_their_pairs() -> None:
    draw = np.random.default_rng(0)
    hard = draw.integers(0, 13, 200_000)
    start = time.perf_counter()
    found = difficulty_inversion(draw.random(200_000), hard)
    assert time.perf_counter() - start < 20, "20 billion pairs"
    assert found == pytest.approx(0.5, abs=0.01)


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=30), st.integers(1, 20))
def test_calibration_error_is_summed_over_bins(rows: list[tuple[float, bool]], bins: int) -> None:
    sure, right = (np.array(values) for values in zip(*rows, strict=True))
    place = np.maximum(np.ceil(sure * bins), 1)
    total = 0.0
    for b in range(1, bins + 1):
        own = place == b
        if own.any():
            total += own.mean() * abs(right[own].mean() - sure[own].mean())
    assert calibration_error(sure, right, bins) == pytest.approx(total, abs=1e-12)


def test_calibration_error_by_hand() -> None:
    assert calibration_error(np.array([1.0, 1.0]), np.array([True, False])) == 0.5
    assert calibration_error(np.array([0.61, 0.62, 0.99]), np.array([True, False, True])) == pytest.approx(
        (abs(1 - 1.23) + 0.01) / 3
    )


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 5))
def test_confidence_and_its_odds(seed: int, labels: int) -> None:
    logits = np.random.default_rng(seed).normal(0, 3, (20, labels)).astype(np.float32)
    p = scipy.special.softmax(logits.astype(np.float64) / 1.7, 1).max(1)
    np.testing.assert_allclose(confidence(logits, 1.7), p, rtol=1e-12)
    q = confidence(logits)
    np.testing.assert_allclose(log_odds(logits), np.log(q / (1 - q)), atol=1e-6)


def test_odds_tell_apart_what_is_rounded_to_one() -> None:
    logits = np.array([[60, 0], [90, 0], [90, 0]], np.float32)
    assert (confidence(logits) == 1).all()
    assert log_odds(logits).tolist() == [60, 90, 90]


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.integers(2, 4), st.floats(0.3, 3))
def test_temperature_has_the_least_loss(seed: int, labels: int, hot: float) -> None:
    draw = np.random.default_rng(seed)
    logits = draw.normal(0, 2, (40, labels)).astype(np.float32) * hot
    truth = draw.integers(0, labels, 40)
    truth[::2] = logits.argmax(1)[::2]

    def loss(temperature: float) -> float:
        return float(-scipy.special.log_softmax(logits / temperature, 1)[np.arange(40), truth].mean())

    found = fit_temperature(logits, truth)
    grid = np.geomspace(0.01, 100, 400)
    assert loss(found) <= min(loss(t) for t in grid) + 1e-6
    assert 0.01 <= found <= 100


def test_temperature_at_its_limits() -> None:
    logits = np.array([[2.0, 0.0], [0.0, 1.0]], np.float32)
    assert fit_temperature(logits, np.array([0, 1])) == pytest.approx(0.01), "every row is right"
    assert fit_temperature(logits, np.array([1, 0])) == pytest.approx(100), "every row is wrong"


def scores(rows: int, labels: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Three exits that are more often right the deeper they are and too sure; labels; learned scores."""
    draw = np.random.default_rng(seed)
    truth = draw.integers(0, labels, rows)
    logits = draw.standard_normal((3, rows, labels)).astype(np.float32)
    logits[:, np.arange(rows), truth] += np.array([[0.5], [1.0], [2.0]], np.float32)
    learned = draw.random((3, rows)).astype(np.float32)
    learned[-1] = np.nan
    return 3 * logits, truth, learned


@pytest.mark.parametrize("labels", [2, 4])
def test_exits_are_judged_one_by_one(labels: int) -> None:
    logits, truth, learned = scores(600, labels)
    found = judge_exits(logits, truth, [2, 4, 6], ("accuracy",), learned)
    answers = logits.argmax(-1)
    hard = (answers != truth).sum(0)
    for i, exit in enumerate(found):
        sure = scipy.special.softmax(logits[i].astype(np.float64), 1).max(1)
        assert exit.layer == 2 * (i + 1)
        assert exit.metrics == {"accuracy": (answers[i] == truth).mean()}
        assert exit.agreement == (answers[i] == answers[2]).mean()
        assert exit.deviation is None
        assert exit.difficulty_inversion == pytest.approx(difficulty_inversion(sure, hard), abs=1e-6)
        assert exit.calibration_error == calibration_error(confidence(logits[i]), answers[i] == truth)
        assert exit.calibration_error_tempered is not None
        assert exit.calibration_error_tempered < exit.calibration_error, "they were made three times too sure"
        assert exit.temperature == fit_temperature(logits[i], truth)
        assert exit.learned_inversion == (None if i == 2 else difficulty_inversion(-learned[i], hard))
    assert found[2].agreement == 1
    assert found[2].difficulty_inversion is not None
    assert found[2].difficulty_inversion > 0.5


def test_one_row() -> None:
    logits, truth, learned = scores(1, 3)
    for exit in judge_exits(logits, truth, [1, 2, 3], ("accuracy",), learned):
        assert math.isnan(exit.difficulty_inversion or 0)
        assert math.isnan(exit.calibration_error_tempered or 0)
        assert exit.calibration_error is not None


def test_scores_of_regression_have_quality_and_deviation_only() -> None:
    draw = np.random.default_rng(0)
    truth = draw.random(50)
    logits = (truth[None, :, None] + draw.normal(0, [[[0.5]], [[0.1]]], (2, 50, 1))).astype(np.float32)
    first, last = judge_exits(logits, truth, [1, 2], ("pearson",))
    assert first.metrics["pearson"] == pytest.approx(np.corrcoef(logits[0, :, 0], truth)[0, 1])
    assert first.deviation == pytest.approx(np.abs(logits[0] - logits[1]).mean())
    assert last.deviation == 0
    assert {first.agreement, first.difficulty_inversion, first.calibration_error, first.temperature} == {None}


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    draw = np.random.default_rng(0)
    words = ["good", "bad", "great", "film", "movie", "very", "slow"]
    path = tmp_path / "rows.jsonl"
    lines = [{"text": " ".join(draw.choice(words, draw.integers(2, 9))), "label": int(i % 2)} for i in range(90)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_a_report_has_them_as_json_text_and_picture(
    make_text_checkpoint: Callable[..., Path], rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = make_text_checkpoint(labels=2, head={"type": "linear"})
    plain = make_text_checkpoint(labels=2, head="classifier")
    report = evaluate(path, rows, thresholds=[0.3], compare=[plain], repeats=1)
    mine, its = report.curves
    assert [exit.layer for exit in mine.exits] == [1, 2, 3, 4, 5]
    assert [exit.layer for exit in its.exits] == [5]
    logits = pfengine.load(path).layer_logits([json.loads(line)["text"] for line in rows.read_text().splitlines()])
    assert mine.exits == judge_exits(logits, np.arange(90) % 2, (1, 2, 3, 4, 5), ("accuracy",))
    written = json.loads(json.dumps(report.to_json(), allow_nan=False))["curves"][0]
    assert written["exits"][0]["difficulty_inversion"] == mine.exits[0].difficulty_inversion
    report.write(tmp_path / "report")
    assert (tmp_path / "report" / "layers.png").read_bytes()[:4] == b"\x89PNG"
    text = (tmp_path / "report" / "report.md").read_text()
    assert "| exit | accuracy % | agreement % | difficulty inversion | calibration error % | tempered % |" in text
    assert "![each exit judged by itself](layers.png)" in text
    cli_output.print_report(report)
    printed = capsys.readouterr().out
    assert "difficulty inversion" in printed
    assert "The oracle, which leaves at the first exit that is right" in printed


def test_a_report_of_a_head_that_learns_when_to_exit(
    make_text_checkpoint: Callable[..., Path], rows: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setitem(HEADS, "knowing", Knowing)
    path = make_text_checkpoint(labels=2, head={"type": "knowing"}, criterion="learned")
    report = evaluate(path, rows, thresholds=[0.3], repeats=1)
    scores = [exit.learned_inversion for exit in report.curves[0].exits]
    assert all(0 <= (score or -1) <= 1 for score in scores[:-1])
    assert scores[-1] is None, "the last exit's score is never read"
    cli_output.print_report(report)
    assert "of learned score" in capsys.readouterr().out


def test_a_report_of_regression_says_what_it_leaves_out(
    make_text_checkpoint: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = make_text_checkpoint(
        labels=1, head={"type": "linear"}, config={"problem_type": "regression"}, criterion="patience:,0.1"
    )
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"text": "a film " * (i % 7 + 1), "score": i / 3}) + "\n" for i in range(40)))
    report = evaluate(path, file, thresholds=[1, 2], repeats=1)
    assert report.curves[0].oracle is None
    assert [point["threshold"] for point in report.curves[0].points] == [4, 3, 2, 1]
    assert list(report.curves[0].points[0]["metrics"]) == ["pearson", "spearman"]
    report.write(tmp_path / "report")
    assert (tmp_path / "report" / "layers.svg").exists()
    assert "not defined for them" in (tmp_path / "report" / "report.md").read_text()
    cli_output.print_report(report)
    assert "oracle, difficulty inversion and calibration error are not defined" in capsys.readouterr().out


def test_bins_are_those_that_are_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "judges.md").read_text()
    assert f"{BINS} bins" in page
