"""Bad rows and bad options: named, and never fatal to the engine or to other rows."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pfengine

Make = Callable[..., Path]
GOOD = "a charming and often affecting journey"
WRONG_TYPE = [
    None, 5, 1.5, True, b"bytes", [GOOD], ("a", "b", "c"), ("a",), (GOOD, None), (GOOD, 3), Ellipsis, {"text": None},
    {"text": b"x"}, {"text": GOOD, "text_pair": 3}, {"txt": GOOD}, {"text": [GOOD]}, {}, {"text_pair": GOOD},
    {"input_ids": [5], "text": GOOD}, {"input_ids": "5 6"}, {"input_ids": [[5, 6], [7, 8]]}, {"input_ids": [5.0, 6.0]},
    {"input_ids": [5, "6"]}, {"input_ids": None}, {"input_ids": [True]}, {"input_ids": [5], "token_type_ids": ["a"]},
]  # fmt: skip
WRONG_VALUE: list[tuple[Any, str]] = [
    ({"input_ids": []}, "empty"),
    ({"input_ids": [5, -1]}, "token id -1"),
    ({"input_ids": [5, 28_946]}, "token id 28946; this model's are 0 to 28945"),
    ({"input_ids": [5, 6], "token_type_ids": [0]}, "2 input_ids but 1 token_type_ids"),
    ({"input_ids": [5, 6], "token_type_ids": [0, 2]}, "token type id 2"),
]


@pytest.fixture(scope="module")
def engine(sst2: pfengine.Engine) -> pfengine.Engine:
    return sst2


@pytest.mark.parametrize("bad", WRONG_TYPE, ids=repr)
def test_wrong_type_is_a_type_error_that_names_the_row(engine: pfengine.Engine, bad: Any) -> None:
    with pytest.raises(TypeError, match="row 1: ") as caught:
        engine.classify([GOOD, bad, GOOD])
    assert isinstance(caught.value, pfengine.InputError)
    assert caught.value.row == 1
    good = engine.classify(GOOD)[0]
    answers = engine.classify([GOOD, bad, GOOD], on_error="return")
    assert answers[0] == answers[2] == good
    assert set(answers[1]) == {"error", "row"}
    assert answers[1]["row"] == 1


@pytest.mark.parametrize(("bad", "message"), WRONG_VALUE)
def test_wrong_value_names_the_row(engine: pfengine.Engine, bad: Any, message: str) -> None:
    for call in (engine.classify, engine.predict, engine.layer_logits):
        with pytest.raises(pfengine.InputError, match=f"row 2: .*{message}"):
            call([GOOD, GOOD, bad])
    with pytest.raises(pfengine.InputError, match="row 0"):
        engine.classify(bad)
    answers = engine.classify([bad, GOOD, bad], on_error="return", top_k=None)
    assert [answers[0]["row"], answers[2]["row"]] == [0, 2]
    assert answers[1] == engine.classify(GOOD, top_k=None)[0]


def test_row_of_a_later_window(engine: pfengine.Engine) -> None:
    rows: list[Any] = ["good"] * 700
    rows[650] = None
    with pytest.raises(TypeError, match="row 650"):
        engine.classify(rows, batch_tokens=64)
    stream = engine.stream(rows, batch_tokens=64)
    assert len(list(itertools.islice(stream, 650))) == 650  # all before it are answered
    with pytest.raises(TypeError, match="row 650"):
        next(stream)


def test_only_bad_rows(engine: pfengine.Engine) -> None:
    answers = engine.classify([None] * 3, on_error="return")
    assert [answer["row"] for answer in answers] == [0, 1, 2]


@pytest.mark.parametrize("inputs", [None, 5, 2.5, Ellipsis, np.array("text"), b"text", bytearray(b"text")])
def test_no_iterable(engine: pfengine.Engine, inputs: Any) -> None:
    with pytest.raises(TypeError, match="row 0"):
        engine.classify(inputs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_error": "ignore"}, "on_error"),
        ({"top_k": 0}, "top_k"),
        ({"top_k": 1.5}, "top_k"),
        ({"top_k": True}, "top_k"),
        ({"truncation": "maybe"}, "truncation"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_tokens": -1}, "batch_tokens"),
        ({"batch_tokens": 2.5}, "batch_tokens"),
        ({"threshold": float("nan")}, "nan"),
        ({"threshold": float("inf")}, "inf"),
        ({"threshold": "0.3"}, "0.3"),
        ({"threshold": 0.3, "speedup": 2.0}, "not both"),
        ({"speedup": 50.0}, "covers"),
        ({"speedup": float("nan")}, "nan"),
        ({"criterion": "mood:0.3"}, "one of beem, .* entropy, .* voting"),
        ({"criterion": "patience"}, "needs a threshold"),
        ({"criterion": "entropy:low"}, "low"),
        ({"criterion": "never:1"}, "never"),
        ({"criterion": "replay:1,x"}, "replay"),
        ({"criterion": "replay:0"}, "replay"),
        ({"criterion": 7}, "int"),
    ],
)
def test_options_are_checked_before_anything_is_read(
    engine: pfengine.Engine, options: dict[str, Any], message: str
) -> None:
    def untouched() -> Any:
        raise AssertionError("the input was read")
        yield

    for call in (engine.classify, engine.stream):
        with pytest.raises(pfengine.ConfigError, match=message):
            call(untouched(), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "fp16"}, "GPUs"),
        ({"precision": "fp8"}, "fp8"),
        ({"device": "tpu"}, "tpu"),
        ({"device": "mps"}, "mps"),
        ({"max_length": 0}, "max_length"),
        ({"max_length": 513}, "1 to 512"),
        ({"max_length": 2}, "max_length is 2"),
        ({"threshold": 0.1, "speedup": 2}, "not both"),
        ({"criterion": "anger"}, "anger"),
    ],
)
def test_load_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(pfengine.ConfigError, match=message):
        pfengine.load("sst2", **options)


@pytest.mark.parametrize(("path", "what"), [("", "empty"), (b"", "empty"), (None, "of type None"), (3, "of type int")])
def test_an_empty_path_is_not_the_current_directory(path: Any, what: str) -> None:
    with pytest.raises(pfengine.ConfigError, match=f"path is {what}"):
        pfengine.load(path)


def test_unknown_option() -> None:
    with pytest.raises(TypeError, match="treshold"):
        pfengine.load("sst2", treshold=0.3)  # type: ignore[call-arg]


@pytest.mark.parametrize("problem", ["regression", "multi_label_classification"])
def test_entropy_makes_no_sense_without_single_labels(make_checkpoint: Make, problem: str) -> None:
    path = make_checkpoint("bert", config={"problem_type": problem}, criterion=None)
    with pytest.raises(pfengine.ConfigError, match=problem):
        pfengine.load(path, criterion="entropy:0.3")
    with pytest.raises(pfengine.ConfigError, match=problem):
        pfengine.load(path).classify([], criterion="entropy:0.3")
    assert len(pfengine.load(path).classify({"input_ids": [5, 6]})) == 1


def test_exits_asked_of_a_model_that_has_none(make_checkpoint: Make) -> None:
    path = make_checkpoint("bert", head="classifier")
    with pytest.raises(pfengine.ConfigError, match="no exit before its last layer"):
        pfengine.load(path, criterion="entropy:0.3")
    with pytest.raises(pfengine.ConfigError, match="no criterion of its own"):
        pfengine.load(path, threshold=0.3)
    with pytest.raises(pfengine.ConfigError, match="no calibration table"):
        pfengine.load(path, speedup=2.0)
    assert (pfengine.load(path, criterion="never").predict({"input_ids": [5]}).exit_layers == 5).all()


def test_text_without_tokenizer(make_checkpoint: Make) -> None:
    engine = pfengine.load(make_checkpoint("bert"), criterion="never")
    answers = engine.classify(["text", {"input_ids": [5, 6]}], on_error="return")
    assert "no tokenizer" in answers[0]["error"]
    assert "label" in answers[1]


def test_missing_threshold_is_said_once_and_runs_at_full_depth(
    make_checkpoint: Make, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("WARNING", logger="pfengine"):
        engine = pfengine.load(make_checkpoint("bert"))
        out = engine.predict([{"input_ids": [5, 6]}] * 3)
        engine.classify([{"input_ids": [5, 6]}])
    assert len([r for r in caplog.records if "no threshold" in r.message]) == 1
    assert (out.exit_layers == 5).all()
    np.testing.assert_array_equal(engine.predict({"input_ids": [5]}, threshold=9.0).exit_layers, [1])
