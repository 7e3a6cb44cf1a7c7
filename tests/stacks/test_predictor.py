"""The predictor that all faces share; needs no other package."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

import pfengine
from pfengine.stacks.predictor import Predictor, with_knobs

ROWS = ["a charming journey", ("a film", "it is bad"), {"text": "slow"}, 3, "bleak and unflinching"]


@pytest.fixture(scope="module")
def predictor(text_checkpoint: Path) -> Predictor:
    return Predictor(text_checkpoint, precision="fp32")


def test_columns_are_the_answers_of_the_engine_and_a_bad_row_fails_alone(predictor: Predictor) -> None:
    found = predictor.columns(ROWS)
    expected = pfengine.load(predictor.checkpoint, precision="fp32").classify(ROWS, on_error="return")
    for i, answer in enumerate(expected):
        if i == 3:
            assert found["error"][i] == answer["error"]
            assert found["label"][i] == ""
            assert np.isnan(found["score"][i])
            assert found["exit_layer"][i] == 0
        else:
            assert found["error"][i] == ""
            assert found["label"][i] == answer["label"]
            assert found["score"][i] == np.float32(answer["score"])
            assert found["exit_layer"][i] == answer["exit_layer"]
    assert {name: column.dtype for name, column in found.items()} == {
        "label": object, "score": np.float32, "exit_layer": np.int64, "error": object,
    }  # fmt: skip
    assert {name: column.shape for name, column in predictor.columns([]).items()} == dict.fromkeys(found, (0,))


def test_it_pickles_as_path_and_options_and_loads_where_it_is_used(predictor: Predictor) -> None:
    assert predictor.engine is predictor.engine
    raw = pickle.dumps(predictor)
    assert len(raw) < 1000
    other = pickle.loads(raw)
    assert other._engine is None
    assert other.options == {"precision": "fp32"}
    assert other.answers(ROWS) == predictor.answers(ROWS)


def test_a_relative_path_is_that_of_the_driver(text_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(text_checkpoint.parent)
    made = Predictor(text_checkpoint.name)
    monkeypatch.chdir("/")
    assert pickle.loads(pickle.dumps(made)).columns(["a film"])["exit_layer"][0] > 0
    assert Predictor("sst2").checkpoint == "sst2"  # bundled ones need not be at the same place on every machine


def test_options_of_the_call_and_of_the_load(text_checkpoint: Path) -> None:
    long = " ".join(["film"] * 200)
    assert Predictor(text_checkpoint, truncation="error").columns([long, "a film"])["error"][0].startswith("has more")
    shallow = Predictor(text_checkpoint, criterion="entropy:1e9", batch_tokens=8)
    assert set(shallow.columns([long, "a film"])["exit_layer"]) == {1}
    with pytest.raises(pfengine.ConfigError, match="there is no option 'treshold'"):
        Predictor(text_checkpoint, treshold=1)
    with pytest.raises(pfengine.CheckpointError):
        Predictor("/nowhere").columns(["a"])  # made where the checkpoint is not, it fails where it is used


def test_a_model_that_tags_words_is_refused(make_text_checkpoint: object) -> None:
    path = make_text_checkpoint(head="tagger")  # type: ignore[operator]
    with pytest.raises(pfengine.ConfigError, match="tags words and does not classify rows"):
        Predictor(path).columns(["a"])


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("a", {"text": "a", "threshold": 0.5}),
        (("a", "b"), {"text": "a", "text_pair": "b", "threshold": 0.5}),
        ({"text": "a"}, {"text": "a", "threshold": 0.5}),
        ({"text": "a", "speedup": 2}, {"text": "a", "speedup": 2}),
    ],
)
def test_the_knobs_of_a_request_go_to_its_rows(row: object, expected: object) -> None:
    assert with_knobs(row, {"threshold": 0.5, "speedup": None}) == expected
    assert with_knobs(row, {}) == row


def test_a_knob_that_makes_no_sense_fails_its_row_alone(predictor: Predictor) -> None:
    rows = [with_knobs("a film", {"threshold": value}) for value in (0.5, float("nan"), "x", True)]
    rows += [with_knobs("a film", {"threshold": 0.5, "speedup": 2}), with_knobs(None, {"threshold": 1})]
    errors = predictor.columns(rows)["error"]
    assert errors[0] == ""
    assert all(errors[1:])
