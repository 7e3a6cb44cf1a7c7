"""Regression with every head: calibration, and the promise that scores are within a tolerance of full depth."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pfengine
from pfengine import cli, cli_output
from pfengine.exits import parse
from pfengine.exits.calibration import calibration_table, exits_taken
from pfengine.exits.guarantee import guarantee
from pfengine.heads import HEADS, register

from ..heads.examples import Knowing, examples, exit_layers

WORDS = ["good", "bad", "great", "bleak", "film", "movie", "very", "slow", "charming", "journey"]
TEXTS = [" ".join(np.random.default_rng(i).choice(WORDS, 1 + i % 9)) for i in range(400)]
HEADS_WITH_EXITS = {
    name: head
    for name, head in (examples() | {"knowing": {"type": "knowing"}}).items()
    if head["type"] != "classifier" and not (head["type"] in HEADS and HEADS[head["type"]].tags)
}


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    register(Knowing)
    yield
    del HEADS["knowing"]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("rows") / "held.jsonl"
    lines = [{"text": text, "score": 0.25 * len(text)} for text in TEXTS]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


Make = Callable[..., Path]


def made(make: Make, head: dict[str, Any], criterion: str) -> Path:
    config, layers = {"problem_type": "regression"}, exit_layers(head)
    return make(labels=1, head=head, config=config, criterion=criterion, system="any", exit_layers=layers)


@pytest.mark.parametrize("name", HEADS_WITH_EXITS)
@pytest.mark.parametrize("criterion", ["patience:,0.3", "learned"])
def test_a_promise_is_kept_by_every_head(make_text_checkpoint: Make, rows: Path, name: str, criterion: str) -> None:
    head = HEADS_WITH_EXITS[name]
    path = made(make_text_checkpoint, head, "never")
    engine = pfengine.load(path, precision="fp32")
    if criterion == "learned" and not HEADS[head["type"]].learns(head):
        with pytest.raises(pfengine.ConfigError, match="needs a head that learns when to exit"):
            pfengine.calibrate(path, rows, criterion=criterion, tolerance=0.5)
        return
    full = engine.predict(TEXTS, criterion="never").logits[:, 0]
    scores = engine.layer_logits(TEXTS)[..., 0]
    tolerance = float(np.quantile(np.abs(scores[2] - full), 0.97))  # a few rows are at fault after layer 3
    found = pfengine.calibrate(path, rows, criterion=criterion, tolerance=tolerance, agreement=0.9)
    assert found.guarantee is not None
    assert (found.guarantee.promise, found.guarantee.tolerance) == ("agreement", tolerance)
    loaded = pfengine.load(path)
    assert loaded.precision == "fp32", "a promise is for fp32"
    early = loaded.predict(TEXTS)
    gaps = np.abs(early.logits[:, 0].astype(np.float64) - full)
    assert (gaps > tolerance).sum() == found.guarantee.faults
    assert early.layer_speedup == pytest.approx(found.guarantee.layer_speedup)
    alone = [loaded.predict(text) for text in TEXTS[:25]]
    np.testing.assert_array_equal(np.concatenate([each.logits for each in alone]), early.logits[:25])
    np.testing.assert_array_equal(np.concatenate([each.exit_layers for each in alone]), early.exit_layers[:25])
    for point in found.table:
        out = loaded.predict(TEXTS, threshold=point["threshold"])
        gaps = np.abs(out.logits[:, 0].astype(np.float64) - full)
        assert out.layer_speedup == pytest.approx(point["layer_speedup"])
        assert point["agreement"] == (gaps <= tolerance).mean()
        assert point["deviation"] == pytest.approx(gaps.mean())
        values = [0.25 * len(text) for text in TEXTS]
        assert point["pearson"] == pytest.approx(np.corrcoef(out.logits[:, 0], values)[0, 1], abs=1e-6)


def test_99_percent_without_more_words(make_text_checkpoint: Make, rows: Path, capsys: Any) -> None:
    path = made(make_text_checkpoint, {"type": "linear"}, "patience:,0.3")
    found = pfengine.calibrate(path, rows, tolerance=50)
    assert found.guarantee is not None
    assert found.guarantee.limit == pytest.approx(0.01)
    assert found.guarantee.layer_speedup > 1, "every score is within 50"
    cli_output.print_calibration(found)
    printed = capsys.readouterr().out
    assert "at least 0.99 of rows are scored within 50 of full depth" in printed
    assert "deviation" in printed
    again = pfengine.calibrate(path, rows, speedup=1.2)
    assert again.guarantee is None
    assert "agreement" not in again.table[0], "there is no tolerance to say when scores agree"


def test_on_the_command_line(make_text_checkpoint: Make, rows: Path, monkeypatch: Any, capsys: Any) -> None:
    path = made(make_text_checkpoint, {"type": "linear"}, "patience:,0.3")
    for options, code in ((["--tolerance", "50", "--json"], 0), (["--agreement", "0.9"], 2)):
        monkeypatch.setattr(sys, "argv", ["pfengine", "calibrate", str(path), str(rows), *options])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == code
    printed = capsys.readouterr()
    assert json.loads(printed.out)["guarantee"]["tolerance"] == 50
    assert "agreement needs tolerance, how far a score may be" in printed.err


def test_layers_are_chosen_by_agreement_within_the_tolerance(make_text_checkpoint: Make, rows: Path) -> None:
    path = made(make_text_checkpoint, {"type": "knowing"}, "learned")
    found = pfengine.calibrate(path, rows, tolerance=1.0, speedup=1.5, choose_layers=True)
    assert found.layers is not None
    engine = pfengine.load(path, precision="fp32")
    full = engine.predict(TEXTS, criterion="never").logits
    agreement = (np.abs(engine.predict(TEXTS).logits.astype(np.float64) - full) <= 1).mean()
    assert agreement == pytest.approx(found.layers.chosen.agreement)


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (1, {"agreement": 0.9}, "gives scores of regression: agreement needs tolerance"),
        (1, {"choose_layers": True, "speedup": 2}, "choose_layers needs tolerance"),
        (1, {"accuracy_drop": 0.1}, "accuracy_drop is for labels, and .* gives scores of regression; give tolerance"),
        (1, {"tolerance": -0.1}, "tolerance is -0.1; it must be at least 0"),
        (1, {"tolerance": float("nan")}, "tolerance is nan"),
        (1, {"criterion": "entropy", "tolerance": 0.1}, "entropy.* makes no sense for problem_type 'regression'"),
        (1, {"criterion": "patience", "tolerance": 0.1}, None),  # the checkpoint's own, with its tolerance
        (2, {"tolerance": 0.1}, "tolerance is for scores of regression, and .* gives labels"),
    ],
)
def test_wrong_use(
    make_text_checkpoint: Make, rows: Path, tmp_path: Path, labels: int, options: Any, message: Any
) -> None:
    if labels == 1:
        path = made(make_text_checkpoint, {"type": "linear"}, "patience:,0.3")
    else:
        path = make_text_checkpoint(labels=2, head={"type": "linear"})
    if message is None:
        assert pfengine.calibrate(path, rows, **options, out=tmp_path / "copy").criterion == "patience:,0.3"
        return
    with pytest.raises(pfengine.ConfigError, match=message) as caught:
        pfengine.calibrate(path, rows, **options)
    assert "\n" not in str(caught.value)


def scores(rows: int, seed: int = 0) -> np.ndarray:
    """Scores that come nearer to the last exit's with depth: float32 [4, rows, 1]."""
    draw = np.random.default_rng(seed)
    final = draw.normal(0, 1, rows)
    gaps = draw.normal(0, 1, (4, rows)) * np.array([[1.0], [0.4], [0.1], [0.0]])
    return (final + gaps).astype(np.float32)[..., None]


def test_a_guarantee_counts_scores_beyond_the_tolerance() -> None:
    values, layers = scores(2000), [1, 2, 3, 4]
    rule = parse("patience:1,0.2")
    found = guarantee(rule, values, None, layers, limit=0.05, confidence=0.95, tolerance=0.5)
    taken = exits_taken(rule.with_threshold(found.threshold), values, layers)
    early = values[taken - 1, np.arange(2000), 0]
    assert found.faults == (np.abs(early - values[-1, :, 0]) > 0.5).sum()
    assert found.layer_speedup == pytest.approx(4 * 2000 / taken.sum())
    with pytest.raises(pfengine.ConfigError, match="scores of regression agree within a tolerance: give tolerance"):
        guarantee(rule, values, None, layers, limit=0.05, confidence=0.95)


@pytest.mark.slow
def test_the_promise_holds_as_often_as_it_says() -> None:
    """Thresholds from 200 fresh splits, judged on all 20,000 rows; no more of them fail than the confidence allows."""
    values, layers, draw = scores(20_000), [1, 2, 3, 4], np.random.default_rng(1)
    learned = np.abs(values[..., 0] - values[-1, :, 0]) / 4 + 0.1 * draw.random((4, 20_000)).astype(np.float32)
    rule, broken = parse("learned:0.1"), 0
    risks: dict[float, float] = {}
    for _ in range(200):
        part = draw.choice(20_000, 400, replace=False)
        found = guarantee(
            rule, values[:, part], None, layers, limit=0.05, confidence=0.9, learned=learned[:, part], tolerance=0.25
        )
        if found.threshold not in risks:
            taken = exits_taken(rule.with_threshold(found.threshold), values, layers, learned=learned)
            early = values[taken - 1, np.arange(20_000), 0]
            risks[found.threshold] = float((np.abs(early - values[-1, :, 0]) > 0.25).mean())
        broken += risks[found.threshold] > 0.05
    assert broken / 200 <= 0.1 + 3 * (0.1 * 0.9 / 200) ** 0.5
    assert max(risks) > 0.1, "and it buys some speed"


def test_a_table_of_scores() -> None:
    values, layers = scores(500), [1, 2, 3, 4]
    truth = values[-1, :, 0] + 0.1
    (slow, *_, fast) = calibration_table(parse("patience:1,0.5"), values, truth, layers, tolerance=0.2)
    assert (slow["layer_speedup"], slow["deviation"], slow["agreement"]) == (1.0, 0.0, 1.0)
    assert slow["pearson"] == pytest.approx(1)
    assert fast["deviation"] > 0
    assert fast["agreement"] < 1
    constant = calibration_table(parse("patience:1,0.5"), values, np.ones(500), layers)
    assert "pearson" not in constant[0], "equal values have no correlation"
    assert "agreement" not in constant[0]
