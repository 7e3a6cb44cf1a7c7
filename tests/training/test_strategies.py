"""bench/strategies.py: trains what is missing, and its table says what its checkpoints do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import pfengine
from pfengine import data

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_strategies_over_seeds(encoder: Path, rows: Path, tmp_path: Path) -> None:
    lines = (rows / "train.tsv").read_text().splitlines()
    for name, part in (("train", lines[1:201]), ("held", lines[201:301]), ("test", lines[301:])):
        (tmp_path / f"{name}.tsv").write_text("\n".join([lines[0], *part]) + "\n")
    work, report = tmp_path / "work", tmp_path / "report"
    command = [
        sys.executable, "bench/strategies.py", str(encoder), str(tmp_path), str(work), str(report),
        "--held-out", str(tmp_path / "held.tsv"), "--test", str(tmp_path / "test.tsv"),
        "--methods", "concat; past only; plain, entropy; plain, patience; vote; half", "--seeds", "0,1",
        "--epochs", "3", "--learning-rate", "3e-3",
    ]  # fmt: skip
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    found = json.loads((report / "strategies.json").read_text())
    table = {row["method"]: row for row in found["table"]}
    assert list(table) == ["concat", "past only", "plain, entropy", "plain, patience", "vote", "half"]
    assert all(row["seeds"] == 2 and row["full depth"]["deviation"] is not None for row in table.values())
    assert table["half"]["full depth"]["layer_speedup"] == 3  # one layer of three
    assert {path.name for path in work.iterdir() if path.is_dir() and "-s0" in path.name} == {
        "concat-s0", "past-only-s0", "plain-s0", "vote-s0", "half-s0",
    }  # fmt: skip

    run = next(run for run in found["runs"] if run["method"] == "concat" and run["seed"] == 1)
    engine = pfengine.load(work / "concat-s1", threshold=run["2x"]["threshold"])
    examples = data.read(tmp_path / "test.tsv")
    answers = engine.predict([example.row for example in examples])
    truth = data.label_ids(examples, engine.labels, "test")
    assert (answers.label_ids == truth).mean() == run["2x"]["score"]
    assert 3 * len(examples) / answers.exit_layers.sum() == run["2x"]["layer_speedup"]

    made = (work / "concat-s0" / "model.safetensors").stat().st_mtime_ns
    (work / "concat-s1.json").unlink()  # what is missing is done, nothing else
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    assert json.loads((report / "strategies.json").read_text())["table"] == found["table"]
    assert (work / "concat-s0" / "model.safetensors").stat().st_mtime_ns == made
    assert {"strategies.md", "strategies.png", "strategies.svg"} <= {path.name for path in report.iterdir()}

    more = [*command[: command.index("--methods")], "--methods", "past only", "--seeds", "2"]
    subprocess.run([*more, "--epochs", "3", "--learning-rate", "3e-3"], cwd=ROOT, check=True, capture_output=True)
    seeds = {row["method"]: row["seeds"] for row in json.loads((report / "strategies.json").read_text())["table"]}
    assert seeds == {name: 3 if name == "past only" else 2 for name in table}
    other = subprocess.run([*more, "--epochs", "2"], cwd=ROOT, capture_output=True, text=True)
    assert other.returncode == 1
    assert "holds checkpoints trained with another epochs, learning_rate" in other.stderr
