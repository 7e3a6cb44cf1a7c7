"""Students: what they learn from a teacher, where they start, what does not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers

import pfengine
from pfengine import reader
from pfengine.folder import Folder
from pfengine.training.student import StudentModel

from .test_recipes import full as full
from .test_train import config

TEXTS = ["good film", "bad", "the plot is very awful", "great great fine", "a", "poor the a film is bad"]


def test_a_student_agrees_with_its_teacher(full: Path, rows: Path, tmp_path: Path) -> None:
    """Also where the teacher is wrong: here it has learned other labels than those the student sees."""
    other = tmp_path / "rows"
    other.mkdir()
    lines = (rows / "train.tsv").read_text().splitlines()
    turned = [line[:-1] + str(1 - int(line[-1])) for line in lines[1:]]
    (other / "train.tsv").write_text("\n".join([lines[0], *turned]) + "\n")
    options = {"layers": 2, "epochs": 5, "options": {"teacher": str(full), "soft": 0.9, "temperature": 1.0}}
    out = pfengine.train(config(full, other, tmp_path / "out", system="student", **options))
    student, teacher = pfengine.load(out), pfengine.load(full)
    assert student.num_layers == 2
    own, theirs = (engine.predict(TEXTS).logits.argmax(-1) for engine in (student, teacher))
    np.testing.assert_array_equal(own, theirs)
    said = json.loads((out / "pfengine.json").read_text())["training"]
    assert (said["teacher"], said["soft"]) == (full.name, 0.9)


@pytest.mark.slow
def test_exits_on_top_of_a_student(full: Path, rows: Path, tmp_path: Path) -> None:
    options = {"layers": 2, "epochs": 1, "options": {"teacher": str(full)}}
    student = pfengine.train(config(full, rows, tmp_path / "student", system="student", **options))
    out = pfengine.train(config(student, rows, tmp_path / "out", system="past-future", epochs=3))
    assert pfengine.load(out).exit_layers == (1, 2)


def test_the_loss_is_that_of_the_paper(full: Path) -> None:
    ckpt = pfengine.load(full).checkpoint
    told = {"teacher": str(full), "soft": 0.25, "temperature": 2.0, "patient": 3.0, "compared": "first"}
    model = StudentModel(None, ckpt.backbone, {"type": "classifier"}, options=told)
    torch.manual_seed(0)
    logits, answers, labels = torch.randn(5, 2), torch.randn(5, 2), torch.tensor([0, 1, 1, 0, 1])
    own, theirs = [torch.randn(5, 48) for _ in range(2)], [torch.randn(5, 48) for _ in range(6)]
    p = torch.softmax(answers / 2, -1)
    unit = [F.normalize(state, dim=-1) for state in (own[0], theirs[2])]  # of two layers, the first learns the third
    expected = (
        0.75 * F.cross_entropy(logits, labels)
        - 0.25 * (p * torch.log_softmax(logits / 2, -1)).sum(-1).mean()
        + 3 * (unit[0] - unit[1]).square().sum(-1).mean()
    )
    torch.testing.assert_close(model.distilled(logits, labels, answers, own, theirs), expected)


@pytest.mark.parametrize("compared", ["first", "mean"])
def test_which_states_are_compared(full: Path, compared: str) -> None:
    """A model that is its own teacher is at no distance from it, and the states are those of transformers."""
    told = {"teacher": str(full), "soft": 0.0, "temperature": 1.0, "patient": 1.0, "compared": compared}
    ckpt = reader.read(Folder(full))
    encoder = transformers.AutoModel.from_pretrained(full, add_pooling_layer=False)
    student = StudentModel(encoder, ckpt.backbone, {"type": "classifier"}, options=told)
    student.train()
    encoder.eval()
    ids = torch.tensor([[2, 7, 9, 3], [2, 8, 3, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    seen: dict[str, Any] = {}
    student.distilled = lambda logits, labels, answers, own, theirs: seen.update(own=own, theirs=theirs) or logits.sum()
    student(labels=torch.tensor([0, 1]), input_ids=ids, attention_mask=mask)
    with torch.no_grad():
        hidden = encoder(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states[1:]
    weights = mask[..., None] / mask.sum(1)[:, None, None]
    for own, theirs, each in zip(seen["own"], seen["theirs"], hidden, strict=True):
        torch.testing.assert_close(own, each[:, 0] if compared == "first" else (each * weights).sum(1))
        torch.testing.assert_close(theirs, own)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "teacher is None; system 'student' needs"),
        ({"labels": ("no", "yes")}, r"has labels \('negative', 'positive'\), and the student \('no', 'yes'\)"),
        ({"layers": 2}, "the student has 3 layers, more than its teacher .*, 2"),
        ({"teacher": "/nowhere"}, "nowhere"),
    ],
)
def test_what_does_not_fit(
    encoder: Path, full: Path, rows: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    teacher: Any = options.get("teacher", full if options else None)
    if "layers" in options:
        teacher = pfengine.train(config(full, rows, tmp_path / "t", system="full-model", layers=2, epochs=0.1))
    own = {} if teacher is None else {"teacher": teacher}
    given = {"labels": options["labels"]} if "labels" in options else {}
    with pytest.raises(pfengine.PFEngineError, match=message):
        pfengine.train(config(encoder, rows, tmp_path / "out", system="student", options=own, **given))
