"""A comparison end to end with a tiny encoder: trained, measured, written down, and gone on with."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pfengine
from pfengine import comparison
from pfengine.comparison.report import markdown, write
from pfengine.comparison.results import Comparison
from pfengine.exits.calibration import layer_speedup
from tests.training.conftest import encoder as encoder
from tests.training.conftest import rows as rows
from tests.training.conftest import tagged as tagged

OPTIONS: dict[str, Any] = {
    "max_rows": 300, "hold_out": 40, "epochs": 4, "learning_rate": 3e-3, "training_precision": "fp32", "repeats": 2,
    "speedups": (1.5, 2, 3), "precision": "fp32",
}  # fmt: skip


@pytest.fixture(scope="module")
def dev(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    lines = (rows / "train.tsv").read_text().splitlines()
    file = tmp_path_factory.mktemp("dev") / "dev.tsv"
    file.write_text("\n".join([lines[0], *lines[-90:]]) + "\n")
    return file


def test_made_measured_and_not_made_again(
    encoder: Path, rows: Path, dev: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, told = tmp_path / "work", []
    options = OPTIONS | {"test": dev, "contestants": ["linear:reads=mean"], "seeds": [3]}
    found = pfengine.compare(encoder, rows, work, **options, say=told.append)
    assert told[:2] == ["training full-model, seed 3", "measuring full-model, seed 3"]
    assert found.contestants == ["full-model", "linear:reads=mean"]
    engine = pfengine.load(work / "linear-reads=mean-s3", precision="fp32")
    texts, labels = zip(*(line.split("\t") for line in dev.read_text().splitlines()[1:]), strict=True)
    (run,) = found.of("linear:reads=mean")
    fastest = engine.checkpoint.manifest.calibration[-1]["layer_speedup"]
    for key, setting in run["settings"].items():
        out = engine.predict(texts, speedup=min(float(key[:-1]), fastest))
        assert setting["metrics"]["accuracy"] == np.mean(out.label_ids == np.array(labels, int))
        assert setting["layer_speedup"] == layer_speedup(out.exit_layers, 3)
    write(found, tmp_path / "report")
    text = (tmp_path / "report/compare.md").read_text()
    assert "    pfengine train encoder" in text
    assert "--reads mean" in text
    assert str(tmp_path) not in text + json.dumps(found.to_json()), "no path of this machine"
    assert (tmp_path / "report/compare.png").stat().st_size > 5000
    assert json.loads((tmp_path / "report/compare.json").read_text())["seeds"] == [3]

    monkeypatch.setattr(comparison.workshop, "train", pytest.fail)
    again = pfengine.compare(encoder, rows, work, **options)
    assert again.to_json() == found.to_json()
    with pytest.raises(pfengine.ConfigError, match="another epochs"):
        pfengine.compare(encoder, rows, work, **(options | {"epochs": 1}))


def test_a_finished_checkpoint_stands_beside_them(encoder: Path, rows: Path, dev: Path, tmp_path: Path) -> None:
    shared = {key: value for key, value in OPTIONS.items() if key in ("max_rows", "hold_out", "learning_rate")}
    mine = pfengine.train(
        pfengine.TrainingConfig(
            str(encoder), str(rows), str(tmp_path / "mine"), system="linear", epochs=1, precision="fp32", **shared
        )
    )
    found = pfengine.compare(encoder, rows, tmp_path / "work", contestants=[str(mine)], test=dev,
                             **(OPTIONS | {"epochs": 1}))  # fmt: skip
    assert found.contestants == ["full-model", "mine"]
    assert found.of("mine")[0]["command"] is None
    assert str(tmp_path) not in json.dumps(found.to_json())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"contestants": ["liner"]}, "there is no contestant 'liner'"),
        ({"contestants": ["past-future:reads=last"]}, "contestant 'past-future:reads=last': reads is 'last'"),
        ({"seeds": []}, "seeds are empty"),
        ({"seeds": [1, 1]}, "seeds are 1, 1"),
        ({"speedups": [0.5]}, "each must be above 1"),
        ({"system": "linear"}, "system is not an option of all contestants"),
        ({"epoch": 3}, "there is no option 'epoch'"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_training(
    encoder: Path, rows: Path, dev: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(pfengine.ConfigError, match=message):
        pfengine.compare(encoder, rows, tmp_path / "work", **(OPTIONS | {"test": dev} | options))
    assert not (tmp_path / "work").exists()


@pytest.mark.slow
def test_taggers(encoder: Path, tagged: Path, tmp_path: Path) -> None:
    options = {key: OPTIONS[key] for key in ("hold_out", "learning_rate", "training_precision", "repeats", "precision")}
    found = pfengine.compare(encoder, tagged, tmp_path / "work", contestants=["sentee", "third"], epochs=4,
                             speedups=(1.5,), test=tagged / "train.conll", **options)  # fmt: skip
    assert found.contestants == ["full-model", "sentee", "third"]
    assert found.metric == "span_f1"
    assert found.points("full-model")["1x"].score > 0.7
    assert found.points("third")["1x"].layer_speedup == 3
    assert "1.5x" in found.points("sentee")
    assert found.difference("sentee", "third") is None
    assert "Beside models" not in markdown(found)
    assert "--system full-tagger" in (found.of("full-model")[0]["command"] or "")


def made(name: str, seed: int, *settings: tuple[str, float, float, float]) -> dict[str, Any]:
    """A run with settings of a key, score, layer speed-up and wall-clock speed-up."""
    conditions = {
        "data": "SST-2/dev.tsv", "rows": 9, "precision": "int8", "batch_size": 32, "repeats": 5, "mean_tokens": 20.0,
        "machine": {"threads": 2, "processor": "P", "instruction_set": "AVX2"},
    }  # fmt: skip
    curve = {"oracle": None, "exits": [{"layer": 12}], "points": []}
    return {
        "contestant": name, "seed": seed, "criterion": "entropy", "command": f"train {name}", "curve": curve,
        "training_seconds": 1.0, "conditions": conditions,
        "settings": {
            key: {"metrics": {"accuracy": value}, "standard_error": 0.01, "layer_speedup": layers,
                  "wall_clock_speedup": wall}
            for key, value, layers, wall in settings
        },
    }  # fmt: skip


def test_at_equal_time() -> None:
    runs = [
        made("full-model", 0, ("1x", 0.91, 1, 1)),
        made("a", 0, ("1x", 0.90, 1, 1.0), ("2x", 0.88, 2, 1.8), ("3x", 0.80, 3, 2.6)),
        made("a", 1, ("1x", 0.92, 1, 1.0), ("2x", 0.90, 2, 1.8)),
        made("half", 0, ("1x", 0.86, 2, 2.1)),
    ]
    found = Comparison(["full-model", "a", "half"], [0, 1], (1.5, 2.0, 3.0), 12,
                       {"model": "e", "epochs": 1.0}, runs)  # fmt: skip
    assert found.at_time("full-model", 1.5) is None
    assert found.at_time("a", 1.4) == pytest.approx((0.89 + 0.91) / 2)
    assert found.at_time("a", 2.0) is None, "one of its seeds is not that fast"
    assert found.at_time("half", 1.5) == found.at_time("half", 2.0) == 0.86
    assert found.points("a").keys() == {"1x", "2x"}
    assert found.points("half")["1x"].deviation is None
    assert math.isclose(found.points("a")["1x"].deviation or 0, np.std([0.9, 0.92], ddof=1))
    text = markdown(found)
    assert "| a | entropy | 91.0 ± 1.4 |  | 89.0 ± 1.4 (2.00 / 1.80) |  |  |" in text
    assert "| a | **89.8** |  |  |" in text
    assert "| half | 86.0 | **86.0** |  |" in text
    assert "| half | entropy | 86.0 (2.00 / 2.10) |" in text


def test_differences_at_the_time_of_a_static_model() -> None:
    """Their error is that of rows drawn for both alike, so that rows which both have right add nothing to it."""
    draw, truth = np.random.default_rng(0), np.random.default_rng(1).integers(0, 2, 900)

    def answered(name: str, seed: int, *settings: tuple[str, float, float, float]) -> dict[str, Any]:
        run = made(name, seed, *settings) | {"truth": truth.tolist()}
        for setting in run["settings"].values():
            wrong = draw.random(900) > setting["metrics"]["accuracy"]
            answers = np.where(wrong, 1 - truth, truth)
            setting["metrics"]["accuracy"] = float(np.mean(answers == truth))
            setting["answers"] = answers.tolist()
        return run

    runs = [answered("full-model", seed, ("1x", 0.91, 1, 1)) for seed in (0, 1)]
    for seed in (0, 1):
        runs += [answered("a", seed, ("1x", 0.95, 1, 1.0), ("2x", 0.9, 2, 1.8), ("3x", 0.8, 3, 2.6)),
                 answered("half", seed, ("1x", 0.8, 2, 2.2)), answered("tiny", seed, ("1x", 0.8, 9, 8))]  # fmt: skip
    found = Comparison(["full-model", "a", "half", "tiny"], [0, 1], (2.0, 3.0), 12, {"model": "e", "epochs": 1.0}, runs)
    assert found.static == ["half", "tiny"]
    assert found.difference("a", "tiny") is None, "it is not that fast"
    difference = found.difference("a", "half")
    assert difference is not None

    def right(name: str, key: str) -> np.ndarray:
        return np.mean([np.array(run["settings"][key]["answers"]) == truth for run in found.of(name)], 0)

    rows_of = (right("a", "2x") + right("a", "3x")) / 2 - right("half", "1x")  # 2.2 is in the middle of 1.8 and 2.6
    assert difference.value == pytest.approx(rows_of.mean())
    assert difference.standard_error == pytest.approx(rows_of.std() / 30, rel=0.15)  # 200 samples
    assert f"| a | {100 * difference.value:+.1f} ± {100 * difference.standard_error:.1f} |  |" in markdown(found)
    assert "answers" not in json.dumps(found.to_json())


@pytest.mark.slow
def test_as_a_command(encoder: Path, rows: Path, dev: Path, tmp_path: Path) -> None:
    options = ["--contestant", "linear:reads=mean", "--contestant", "third", "--seeds", "0,1", "--test", dev,
               "--max-rows", 300, "--hold-out", 40, "--epochs", 1,
               "--repeats", 1, "--report", tmp_path / "report", "--training-precision", "fp32"]  # fmt: skip
    command = [sys.executable, "-m", "pfengine", "compare", encoder, rows, tmp_path / "work", *options]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout + "\n![quality against speed-up](compare.png)\n" == (tmp_path / "report/compare.md").read_text()
    assert "compare: training linear:reads=mean, seed 1" in done.stderr
    found = json.loads((tmp_path / "report/compare.json").read_text())
    both = [run["settings"]["1x"] for run in found["runs"] if run["contestant"] == "third"]
    third = found["table"][2]["points"]["1x"]
    scores = [setting["metrics"]["accuracy"] for setting in both]
    assert third["score"] == pytest.approx(np.mean(scores))
    assert third["deviation"] == pytest.approx(np.std(scores, ddof=1))
    assert third["layer_speedup"] == 3
    wrong = subprocess.run(list(map(str, [*command, "--seeds", "a"])), capture_output=True, text=True)
    assert (wrong.returncode, wrong.stderr) == (
        2, "error: --seeds is 'a'; it must be whole numbers separated by commas\n",
    )  # fmt: skip
