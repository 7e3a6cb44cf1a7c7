"""Contestants as text."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pfengine.comparison.contestants import BASELINES, FULL, Contestant, read, read_all
from pfengine.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("linear", Contestant("linear", {"system": "linear"})),
        ("half", BASELINES["half"]),
        (
            "linear:reads=mean,epochs=2,learning_rate=8e-5",
            Contestant(
                "linear:reads=mean,epochs=2,learning_rate=8e-5",
                {"system": "linear", "reads": "mean", "epochs": 2, "learning_rate": 8e-5},
            ),
        ),
        (
            "linear:reads=mean on student",
            Contestant("linear:reads=mean on student", {"system": "linear", "reads": "mean"}, start="student"),
        ),
        ("half:epochs=2", Contestant("half:epochs=2", {"system": "full-model", "epochs": 2}, share=2)),
        (
            "student:patient=0.5,layers=4",
            Contestant("student:patient=0.5,layers=4",
                       {"system": "student", "options": {"patient": 0.5}, "layers": 4}, teacher=FULL),
        ),
    ],
)  # fmt: skip
def test_as_text(text: str, expected: Contestant) -> None:
    assert read(text) == expected


def test_taggers_have_baselines_of_their_own() -> None:
    found = read_all(["sentee", "tokee:frozen=renormalised", "half"])
    assert list(found) == [FULL, "sentee", "tokee:frozen=renormalised", "half"]
    assert found[FULL].options == found["half"].options == {"system": "full-tagger"}
    with pytest.raises(ConfigError, match="no contestant 'linear' that tags words"):
        read_all(["sentee", "linear"])
    with pytest.raises(ConfigError, match="no contestant 'student'"):
        read_all(["sentee", "student"])


def test_a_directory(make_checkpoint: Callable[..., Path]) -> None:
    path = make_checkpoint("bert")
    assert read(str(path)) == Contestant(path.name, path=path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("liner", "there is no contestant 'liner'; give a checkpoint's directory, or one of"),
        ("linear:reads", "has 'reads', which is no option of linear"),
        ("linear:patient=1", "has 'patient=1', which is no option of linear"),
        ("linear on teacher", "starts from 'teacher'; there are full-model"),
    ],
)
def test_what_is_none(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(text)


def test_a_directory_of_the_name_of_another(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    path = shutil.copytree(make_checkpoint("bert"), tmp_path / FULL)
    with pytest.raises(ConfigError, match="two contestants are called 'full-model'"):
        read_all([str(path)])


def test_what_others_need_comes_before_them() -> None:
    assert list(read_all(["linear on student", "half"])) == [FULL, "student", "linear on student", "half"]
    assert list(read_all([])) == [FULL]
