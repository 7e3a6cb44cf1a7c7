"""bench.systems end to end with a tiny encoder: resumed, measured, and written down."""

from __future__ import annotations

import json
import random
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
from bench.systems_report import at, markdown  # noqa: E402
from pfengine.exits.calibration import layer_speedup  # noqa: E402
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


def test_every_system_is_in_it() -> None:
    names, taggers = systems.methods(12), systems.methods(12, tags=True)
    assert set(SYSTEMS) == {name for name in (*names, *taggers) if name not in systems.BASELINES}
    assert not set(names) & set(taggers)


def test_made_measured_and_not_made_again(
    encoder: Path, rows: Path, dev: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, report = tmp_path / "work", tmp_path / "docs" / "systems.md"
    systems.main(encoder, rows, work, report, ["linear"], test=dev, **OPTIONS)
    found = json.loads((work / "linear.json").read_text())
    engine = pfengine.load(work / "linear", precision="fp32")
    texts, labels = zip(*(line.split("\t") for line in dev.read_text().splitlines()[1:]), strict=True)
    fastest = engine.checkpoint.manifest.calibration[-1]["layer_speedup"]
    for key, speedup in (("full depth", 1), ("2x", 2), ("3x", min(3, fastest))):
        out, setting = engine.predict(texts, speedup=speedup), at(found, key)
        assert setting["metrics"]["accuracy"] == np.mean(out.label_ids == np.array(labels, int))
        assert setting["layer_speedup"] == layer_speedup(out.exit_layers, 3)
        assert setting["wall_clock_speedup"] > 0
    assert found["report"]["repeats"] == 2
    assert [exit["layer"] for exit in found["report"]["curves"][0]["exits"]] == [1, 2, 3]
    assert found["held_out_rows"] == 40
    text = report.read_text()
    assert "| linear | entropy | 0 |" in text
    assert "    pfengine train encoder" in text
    assert str(tmp_path) not in text + json.dumps(found), "no path of this machine"
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
    assert [line.split(" | ")[0][2:] for line in lines[1:]] == list(systems.methods(4))
    half, student, on_top = (
        json.loads((work / f"{name}.json").read_text()) for name in ("full-model-half", "student", "exits-on-student")
    )
    assert at(half, "full depth")["layer_speedup"] == at(student, "full depth")["layer_speedup"] == 2
    assert f"pfengine train {deeper.name} {rows.name}/ student/" in student["command"]
    assert "--layers 2" in student["command"]
    assert "--teacher full-model" in student["command"]
    assert at(on_top, "full depth")["layer_speedup"] == 2
    assert at(on_top, "3x")["layer_speedup"] > 2
    assert "2x" not in on_top["places"], "that is its full depth"


@pytest.mark.slow
def test_those_that_tag(encoder: Path, tmp_path: Path) -> None:
    draw = random.Random(0)
    for name, count in (("train", 120), ("dev", 30)):
        lines = []
        for _ in range(count):
            words = draw.choices(["film", "plot", "good", "bad", "is"], k=draw.randint(2, 6))
            tags = ["B-LOC" if word == "good" else "O" for word in words]
            lines.append(json.dumps({"tokens": words, "tags": tags}))
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    work, report = tmp_path / "work", tmp_path / "systems.md"
    options = OPTIONS | {"epochs": 2, "hold_out": 20}
    systems.main(encoder, tmp_path, work, report, tags=True, **options)
    text = report.read_text()
    assert text.splitlines()[2].startswith("span_f1 in % on 30 rows")
    for name in systems.methods(3, tags=True):
        assert f"| {name} |" in text


def test_what_is_far_below_its_own_full_depth_is_named() -> None:
    def setting(score: float, speed: float) -> dict[str, Any]:
        faster = {"layer_speedup": speed, "wall_clock_speedup": speed - 0.1}
        return {"metrics": {"accuracy": score}, "standard_error": 0.01, **faster}

    def result(name: str, *settings: dict[str, Any], precision: str = "fp32") -> dict[str, Any]:
        curve = {"oracle": {"metrics": {"accuracy": 0.95}, "layer_speedup": 2.5}, "exits": [{"layer": 6}]}
        report = {
            "data": "SST-2/dev.tsv", "rows": 9, "precision": precision, "batch_size": 32, "repeats": 5,
            "mean_tokens": 20.0, "machine": {"threads": 2, "processor": "P", "instruction_set": "AVX2"},
            "settings": settings, "curves": [curve],
        }  # fmt: skip
        places = dict(zip(("full depth", "2x", "3x"), range(len(settings)), strict=False))
        training = {"trained_rows": 90, "held_out_rows": 10, "epochs": 1.0, "training_seconds": 100.0, "layers": 12}
        more = {"criterion": "entropy", "command": "c", "places": places, "report": report}
        return {"system": name, **training, **more}

    good = result("good", setting(0.9, 1.0), setting(0.86, 2.0), setting(0.7, 3.0))
    bad = result("bad", setting(0.9, 1.0), setting(0.84, 1.9), precision="int8")
    text = markdown([good, bad])
    assert "bad falls 6.0 points below its own full depth at 1.90x." in text
    assert "good falls" not in text
    assert "Measured under other conditions than the first: bad" in text
    assert "| good | entropy | 2 | 90.0 ± 1.0 | 86.0 (2.00 / 1.90) | 70.0 (3.00 / 2.90) | 95.0 at 5.00 |" in text
    assert "No system falls more than 5 points" in markdown([good])
