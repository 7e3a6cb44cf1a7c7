"""bench.systems end to end with a tiny encoder: resumed, measured, and written down."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers

import pfengine

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT))  # at its end: pfengine stays the one that is installed

from bench import systems  # noqa: E402
from bench.systems_report import markdown  # noqa: E402
from pfengine.exits.calibration import layer_speedup  # noqa: E402
from pfengine.heads import HEADS  # noqa: E402
from pfengine.training.systems import SYSTEMS  # noqa: E402

OPTIONS: dict[str, Any] = {
    "rows": 300, "hold_out": 40, "epochs": 4, "learning_rate": 3e-3, "training_precision": "fp32", "rounds": 2,
}  # fmt: skip


@pytest.fixture
def dev(rows: Path, tmp_path: Path) -> Path:
    lines = (rows / "train.tsv").read_text().splitlines()
    file = tmp_path / "dev.tsv"
    file.write_text("\n".join([lines[0], *lines[-90:]]) + "\n")
    return file


def test_every_system_that_scores_rows_is_in_it() -> None:
    names = systems.methods()
    for name in SYSTEMS:
        head = pfengine.TrainingConfig("", "", "", system=name).head(shared_pooler=False)
        assert (name in names) == (not HEADS[head["type"]].tags)


def test_made_measured_and_not_made_again(
    encoder: Path, rows: Path, dev: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    work, report = tmp_path / "work", tmp_path / "docs" / "systems.md"
    systems.main(encoder, rows, work, report, ["linear"], test=dev, **OPTIONS)
    found = json.loads((work / "linear.json").read_text())
    engine = pfengine.load(work / "linear", precision="fp32")
    labels = [int(line.rpartition("\t")[2]) for line in dev.read_text().splitlines()[1:]]
    texts = [line.partition("\t")[0] for line in dev.read_text().splitlines()[1:]]
    for key in ("full depth", "2x", "3x"):
        out = engine.predict(texts, criterion=found[key]["criterion"])
        assert found[key]["score"] == np.mean(out.label_ids == labels)
        assert found[key]["layer_speedup"] == layer_speedup(out.exit_layers, 3)
        assert found[key]["wall_clock_speedup"] > 0
    assert len(found["full depth"]["seconds"]) == 2
    assert [exit["layer"] for exit in found["exits"]] == [1, 2, 3]
    assert found["machine"]["threads"] > 0
    trained = {line.partition("\t")[0] for line in (work / "train.tsv").read_text().splitlines()[1:]}
    held = {line.partition("\t")[0] for line in (work / "held.tsv").read_text().splitlines()[1:]}
    assert not trained & held
    text = report.read_text()
    assert "| linear | entropy | 0 |" in text
    assert "    pfengine train" in text
    assert str(tmp_path) not in text, "no path of this machine"
    monkeypatch.setattr(pfengine, "train", pytest.fail)
    systems.main(encoder, rows, work, report, ["linear"], test=dev, **OPTIONS)
    assert report.read_text() == text
    with pytest.raises(pfengine.ConfigError, match="rounds"):
        systems.main(encoder, rows, work, report, ["linear"], test=dev, **(OPTIONS | {"rounds": 3}))


@pytest.mark.slow
def test_all_of_them(encoder: Path, rows: Path, dev: Path, tmp_path: Path) -> None:
    work, report, deeper = tmp_path / "work", tmp_path / "systems.md", tmp_path / "deeper"
    config = transformers.BertConfig.from_pretrained(encoder, num_hidden_layers=4)  # a student of it can have exits
    transformers.BertModel(config, add_pooling_layer=False).save_pretrained(deeper)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(encoder / file, deeper)
    systems.main(deeper, rows, work, report, test=dev, **(OPTIONS | {"epochs": 1}))
    lines = [line for line in report.read_text().splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[0][2:] for line in lines[1:]] == list(systems.methods())
    half = json.loads((work / "full-model-half.json").read_text())
    assert half["full depth"]["layer_speedup"] == 2
    assert half["beside"] == "full-model"
    student = json.loads((work / "student.json").read_text())
    assert "pfengine train full-model train.tsv student" in student["command"]
    assert "--layers 2" in student["command"]
    assert "--teacher full-model" in student["command"]
    on_top = json.loads((work / "exits-on-student.json").read_text())
    assert on_top["full depth"]["layer_speedup"] == 2
    assert on_top["3x"]["layer_speedup"] > 2
    assert "2x" not in on_top, "that is its full depth"


def test_what_is_far_below_its_own_full_depth_is_named() -> None:
    def at(score: float, speed: float) -> dict[str, Any]:
        return {"score": score, "standard_error": 0.01, "layer_speedup": speed, "wall_clock_speedup": speed - 0.1}

    common: dict[str, Any] = {
        "criterion": "entropy", "rows": 9, "metric": "accuracy", "data": "SST-2/dev.tsv", "epochs": 1.0, "command": "c",
        "training_seconds": 100.0, "precision": "fp32", "batch_size": 32, "rounds": 5, "trained_rows": 90,
        "held_out_rows": 10, "machine": {"threads": 2, "processor": "P", "instruction_set": "AVX2"},
        "full depth": at(0.9, 1.0),
    }  # fmt: skip
    good = common | {"system": "good", "2x": at(0.86, 2.0), "3x": at(0.7, 3.0)}
    bad = common | {"system": "bad", "2x": at(0.84, 1.9), "precision": "int8"}
    text = markdown([good, bad])
    assert "bad falls 6.0 points below its own full depth at 1.90x: to be looked into." in text
    assert "good falls" not in text
    assert "Measured under other conditions than the first: bad" in text
    assert "| good | entropy | 2 | 90.0 ± 1.0 | 86.0 (2.00 / 1.90) | 70.0 (3.00 / 2.90) |  |" in text
    assert "No system falls more than 5 points" in markdown([good])
