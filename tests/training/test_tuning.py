"""A faster model from a finished one and unlabelled text, which keeps its promise on texts that nobody has seen."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import pfengine
from pfengine import cli
from pfengine.cascade_reader import CascadeCheckpoint
from pfengine.evaluation import tuned
from pfengine.exits.calibration import alike
from pfengine.exits.guarantee import NotShown
from pfengine.exits.placement import Costs, Price

from .conftest import BAD, FILL, GOOD
from .test_attach import fine_tuned


def made_up(rows: int, seed: int) -> list[str]:
    draw, found = random.Random(seed), list[str]()
    for _ in range(rows):
        words = [draw.choice(GOOD + BAD), *draw.choices(FILL + GOOD + BAD, k=draw.randint(0, 8))]
        draw.shuffle(words)
        found.append(" ".join(words))
    return found


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("texts") / "texts.txt"
    file.write_text("".join(f"{row}\n" for row in dict.fromkeys(made_up(2500, 5))))
    return file


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory, encoder: Path) -> Path:
    return fine_tuned("bert", tmp_path_factory.mktemp("plain") / "bert", encoder, "labels")


OPTIONS: dict[str, Any] = {"epochs": 4, "learning_rate": 1e-3, "hold_out": 500, "agreement": 0.95}


@pytest.mark.parametrize(
    ("family", "problem", "rate", "fallback", "epochs"),
    [
        # exits that learn so little keep it too
        pytest.param("bert", "labels", 0.0, None, 1, marks=pytest.mark.slow),
        pytest.param("modernbert", "labels", 0.0, None, 4, marks=pytest.mark.slow),
        pytest.param("bert", "label sets", 0.0, None, 4, marks=pytest.mark.slow),
        pytest.param("bert", "scores", 0.0, None, 4, marks=[pytest.mark.slow, pytest.mark.wide]),
        pytest.param("bert", "scores", 1e-4, None, 4, marks=pytest.mark.slow),
        pytest.param("bert", "one label", 0.0, None, 4, marks=[pytest.mark.slow, pytest.mark.wide]),
        pytest.param("bert", "labels", 1e-4, None, 4, marks=pytest.mark.slow),
        pytest.param("bert", "labels", 1e-4, False, 4, marks=[pytest.mark.slow, pytest.mark.wide]),
    ],
)
def test_the_promise_is_kept_on_other_texts(
    tmp_path_factory: pytest.TempPathFactory, encoder: Path, texts: Path, tmp_path: Path, family: str, problem: str,
    rate: float, fallback: bool | None, epochs: int,
) -> None:  # fmt: skip
    plain = fine_tuned(family, tmp_path_factory.mktemp("plain") / family, encoder, problem)
    tolerance = {"tolerance": 0.2} if problem == "scores" else {}
    options = OPTIONS | {"epochs": epochs} | tolerance
    made = pfengine.tune(plain, texts, tmp_path / "out", encoder_rate=rate, fallback=fallback, **options)
    others = made_up(1000, seed=77)
    judge = pfengine.load(plain, precision="fp32").predict(others)
    engine = pfengine.load(tmp_path / "out")
    assert engine.precision == made.precision
    assert isinstance(engine.checkpoint, CascadeCheckpoint) == made.falls_back
    out = engine.predict(others)
    share = alike(out.logits, judge.logits, tolerance.get("tolerance"), problem in ("label sets", "one label")).mean()
    assert share >= 0.95
    assert out.layer_speedup > 1.2
    assert engine.checkpoint.manifest.guarantee["precision"] == made.precision  # type: ignore[index]
    assert made.guarantee.limit == pytest.approx(0.05)
    ours, theirs = made.contestants[-1], made.contestants[0]
    assert (theirs["name"], theirs["agreement"]) == ("original, transformers fp32", 1.0)
    # what the promise counted on the held-out texts is what the engine that was written answers to them
    assert made.guarantee.faults == round((1 - ours["agreement"]) * made.rows)
    assert made.guarantee.layer_speedup == pytest.approx(ours["layer_speedup"])
    (layers,) = {each.exit_layers for each in made.candidates if each.precision == made.precision}
    of_exits = engine.checkpoint.cascade.members[0] if made.falls_back else engine.checkpoint  # type: ignore[union-attr]
    assert of_exits.manifest.exit_layers == layers  # type: ignore[union-attr]
    tried = {(each.precision, each.falls_back) for each in made.candidates}
    may_fall_back = rate > 0 and fallback is not False
    assert tried == {(p, f) for p in tuned.precisions() for f in ((False, True) if may_fall_back else (False,))}
    if not rate:  # full depth is the model's own, bit for bit
        exact = pfengine.load(tmp_path / "out", precision="fp32").predict(others, criterion="never")
        np.testing.assert_array_equal(exact.logits, pfengine.load(plain, precision="fp32").predict(others).logits)
        assert [each.full_depth_agreement for each in made.candidates if each.precision == "fp32"] == [1.0]
    json.dumps(made.to_json())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_one_command(bert: Path, texts: Path, tmp_path: Path) -> None:
    arguments = ["attach", str(bert), str(texts), str(tmp_path / "out"), "--tune", "--agreement", "0.9"]
    shown = CliRunner().invoke(cli.app, [*arguments, "--hold-out", "200", "--epochs", "2", "--max-rows", "600"])
    assert shown.exception is None, shown.output
    assert "original, transformers fp32" in shown.output
    assert "with confidence 0.95 at least 0.9 of rows are answered as by the original in fp32" in shown.output
    told = pfengine.load(tmp_path / "out").checkpoint.manifest
    training = told.training
    assert (training["system"], training["epochs"], training["learning_rate"]) == ("pfengine", 2.0, 1e-3)
    assert training["rows"] % 4 == 0  # with three rows made of each text


def test_what_cannot_be_tuned(bert: Path, texts: Path, tmp_path: Path) -> None:
    with pytest.raises(pfengine.ConfigError, match=r"250 of \d+ texts are held out, and \d+ are needed to show"):
        pfengine.tune(bert, texts, tmp_path / "out", hold_out=250)
    with pytest.raises(pfengine.ConfigError, match=r"tolerance is for scores of regression, and .* gives labels"):
        pfengine.tune(bert, texts, tmp_path / "out", tolerance=0.1)
    with pytest.raises(pfengine.ConfigError, match=r"tolerance is 0\.0; it must be above 0"):
        pfengine.tune(bert, texts, tmp_path / "out", tolerance=0)
    with pytest.raises(pfengine.ConfigError, match="agreement is 1; it must be between 0 and 1"):
        pfengine.tune(bert, texts, tmp_path / "out", agreement=1)
    with pytest.raises(pfengine.ConfigError, match="has exits already"):
        pfengine.tune("sst2", texts, tmp_path / "out")
    with pytest.raises(pfengine.ConfigError, match="system is 'full-model', which has no exits"):
        pfengine.tune(bert, texts, tmp_path / "out", system="full-model", agreement=0.9)
    with pytest.raises(pfengine.ConfigError, match="json is for --tune"):
        cli.app(["attach", str(bert), str(texts), str(tmp_path / "out"), "--json"], standalone_mode=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_promise_that_no_setting_keeps(bert: Path, texts: Path, tmp_path: Path) -> None:
    """A learning rate that ruins the encoder, and nothing to fall back to."""
    options = OPTIONS | {"epochs": 0.3, "max_rows": 1000}
    with pytest.raises(NotShown, match=r"no setting keeps the promise: at full depth the tuned model agrees .*%"):
        pfengine.tune(bert, texts, tmp_path / "out", encoder_rate=0.1, fallback=False, **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_exits_that_cost_more_than_they_save_are_not_tested(
    bert: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Testing the first exit is made to cost as much as ten layers, or nothing, in the place of what was measured."""
    first = []
    for price in (10.0, 0.0):
        none, extra = np.zeros(4), np.array([price, 0, 0, 0])
        costs = Costs(Price(none + 1, none), Price(extra, none), 32.0, 0.0)
        monkeypatch.setattr(tuned, "measure_costs", lambda *_, costs=costs: costs)
        made = pfengine.tune(bert, texts, tmp_path / f"{price}", **OPTIONS | {"agreement": 0.9})
        manifest = pfengine.load(tmp_path / f"{price}").checkpoint.manifest
        assert [sum(point["exit_rows"]) for point in manifest.calibration] == [500] * len(manifest.calibration)
        first.append(1 in manifest.exit_layers)  # type: ignore[union-attr]
        assert all(each.exit_layers[-1] == 4 for each in made.candidates)
    assert first == [False, True]


def test_all_settings_share_the_risk() -> None:
    count = len(tuned.precisions())
    assert tuned.risk_of_each(0.95, False) == pytest.approx(1 - 0.05 / count)
    assert tuned.risk_of_each(0.95, True) == pytest.approx(1 - 0.05 / (2 * count))
    assert np.isclose(tuned.precisions().count("fp32"), 1)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_sentences_of_sst2(shared: Path, tmp_path: Path) -> None:
    """A six-layer encoder fine-tuned on 900 rows; the promise of 95% is looked at on the development set."""
    weights, sst2 = shared / "weights" / "all-MiniLM-L6-v2", shared / "data" / "SST-2"
    options: dict[str, Any] = {"epochs": 1, "learning_rate": 1e-4, "max_rows": 1000, "hold_out": 100}
    output = str(tmp_path / "plain")
    plain = pfengine.train(pfengine.TrainingConfig(str(weights), str(sst2), output, system="full-model", **options))
    made = pfengine.tune(plain, sst2, tmp_path / "out", max_rows=1500, hold_out=450, agreement=0.95, epochs=2)
    texts = [example.row for example in pfengine.data.read(pfengine.data.locate(sst2, "dev"))]
    judge = pfengine.load(plain, precision="fp32", criterion="never").predict(texts)
    out = pfengine.load(tmp_path / "out").predict(texts)
    # two standard errors of a share of 0.05 on 872 rows
    assert (out.label_ids == judge.label_ids).mean() >= 0.95 - 2 * (0.05 * 0.95 / len(texts)) ** 0.5
    assert made.guarantee.faults <= 0.05 * made.rows
    assert out.layer_speedup > 1
