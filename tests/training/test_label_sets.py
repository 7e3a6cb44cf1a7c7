"""Train, evaluate and calibrate mean the same by a label, whatever the labels look like."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

import pfengine
from pfengine import data

from .conftest import BAD, FILL, GOOD
from .test_train import config


def write(file: Path, labels: list[str], seed: int, rows: int = 320, spelled: str = "{}") -> Path:
    """Rows whose class is told by one word."""
    draw = random.Random(seed)
    lines = ["label\ttext"]
    for i in range(rows):
        kind = i % len(labels)
        words = [(*GOOD, *BAD)[kind], *draw.choices(FILL, k=draw.randint(1, 6))]
        draw.shuffle(words)
        lines.append(f"{spelled.format(labels[kind])}\t{' '.join(words)}")
    file.write_text("\n".join(lines) + "\n")
    return file


@pytest.mark.slow
@pytest.mark.parametrize(
    ("labels", "names", "spelled"),
    [
        (["3", "1", "2", "5", "4"], ("1", "2", "3", "4", "5"), "{}"),
        (["1", "0"], ("0", "1"), "{}.0"),
        pytest.param(["10", "9", "2"], ("2", "9", "10"), "{}", marks=pytest.mark.slow),
        pytest.param(["-1", "1", "0"], ("-1", "0", "1"), "{}", marks=pytest.mark.slow),
        pytest.param(["a", "1"], ("1", "a"), "{}", marks=pytest.mark.slow),
        pytest.param(["very good", "so so", "bad"], ("bad", "so so", "very good"), " {} ", marks=pytest.mark.slow),
    ],
    ids=lambda value: ",".join(value),
)
def test_one_mapping(encoder: Path, tmp_path: Path, labels: list[str], names: tuple[str, ...], spelled: str) -> None:
    train, held = write(tmp_path / "train.tsv", labels, 0), write(tmp_path / "held.tsv", labels, 1, 200, spelled)
    options = {"labels": None, "held_out": str(held), "epochs": 10, "layers": 2, "learning_rate": 4e-3}
    out = pfengine.train(config(encoder, train, tmp_path / "ckpt", **options))
    written = json.loads((out / "pfengine.json").read_text())["training"]
    assert written["held_out_score"] > 0.9
    engine = pfengine.load(out, criterion="never", precision="fp32")
    assert engine.labels == names
    assert json.loads((out / "config.json").read_text())["id2label"] == {str(i): name for i, name in enumerate(names)}
    rows = [example.row for example in data.read(held)]
    right = [answer["label"] == labels[i % len(labels)] for i, answer in enumerate(engine.classify(rows))]
    report = pfengine.evaluate(out, held, precision="fp32", repeats=1, curves=False)
    assert report.settings[0].metrics["accuracy"] == sum(right) / 200 == written["held_out_score"]
    found = pfengine.calibrate(out, held, accuracy_drop=0.05, confidence=0.9)
    assert found.guarantee is not None
    assert found.table[0]["accuracy"] == written["held_out_score"]
    wrong = write(tmp_path / "wrong.tsv", [*labels[1:], "8"], 1, 200)
    with pytest.raises(pfengine.ConfigError, match="label '8' is not one of"):
        pfengine.calibrate(out, wrong, accuracy_drop=0.05, confidence=0.9)
    turned = write(tmp_path / "turned.tsv", [*labels[1:], labels[0]], 1, 200)
    with pytest.raises(pfengine.ConfigError, match="no accuracy can be promised: at full depth"):
        pfengine.calibrate(out, turned, accuracy_drop=0.05, confidence=0.9)


@pytest.mark.parametrize(
    ("lines", "options", "message"),
    [
        (["only\ta film", "only\tthe plot"], {}, "all 2 rows have the label 'only'; a classifier needs two"),
        (
            ["1.5\ta film", "2.5\tthe plot", "2.5\tgood", "2.5\tbad"],
            {"hold_out": 1},
            "all 1 held-out rows have the same score",
        ),
        (["1\ta film", "\tthe plot"], {}, r"train\.tsv, line 3: has no label in column 'label'"),
        (["1\ta film", "2\tthe plot"], {"hold_out": 9}, "holding out 9 leaves none to train on: .* such as 1$"),
        (
            ["1\ta film", "2\tthe plot"],
            {"hold_out": 1, "freezing": "lower", "frozen_layers": 4},
            "encoder has 3 layers",
        ),
        (["a\ta film", "b\tthe plot"], {"labels": ("a", "c")}, "row 1: label 'b' is not one of a, c$"),
    ],
)
def test_data_that_cannot_be_learned_from(
    encoder: Path, tmp_path: Path, lines: list[str], options: dict, message: str
) -> None:
    file = tmp_path / "train.tsv"
    file.write_text("\n".join(["label\ttext", *lines]) + "\n")
    with pytest.raises(pfengine.ConfigError, match=message):
        pfengine.train(config(encoder, file, tmp_path / "ckpt", **({"labels": None} | options)))
    assert not (tmp_path / "ckpt").exists()
