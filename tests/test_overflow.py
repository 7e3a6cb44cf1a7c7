"""Finite weights whose numbers overflow on the way: the rows they meet have errors, the others answers."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import pfengine
from pfengine import api, extension
from pfengine.answers import has_answer, mark_unanswered
from pfengine.evaluation import precisions
from pfengine.ops import cpu_torch
from pfengine.tokenization import Row

Make = Callable[..., Path]
ROWS = ["the film is very good", "a bleak movie", "it was slow", ("a good film", "bleak"), "charming", "bleak bleak"]
BAD, GOOD = [1, 3, 5], [0, 2, 4]
PRECISIONS = ["fp32", "bf16", "int8"] if extension.has_cpu() else ["fp32", "bf16"]


def spoil(path: Path, out: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    shutil.copytree(path, out)
    tensors = load_file(out / "model.safetensors")
    change(tensors)
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    save_file(tensors, out / "model.safetensors")
    return out


def one_word(tensors: dict[str, torch.Tensor]) -> None:
    """The row of "bleak" in the table of words."""
    tensors["bert.embeddings.word_embeddings.weight"][15] = torch.tensor([3e38, -3e38] * 24)


def last_layer(tensors: dict[str, torch.Tensor]) -> None:
    tensors["bert.encoder.layer.4.output.dense.weight"].fill_(3e38)


@pytest.fixture(scope="module")
def clean(make_text_checkpoint: Make) -> Path:
    return make_text_checkpoint(threshold=0.9)


@pytest.fixture(scope="module")
def path(clean: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return spoil(clean, tmp_path_factory.mktemp("spoilt") / "checkpoint", one_word)


def stay(layer: int, logits: torch.Tensor, state: Any, row_ids: torch.Tensor) -> Any:
    return logits[:, 0] > 0.5, None


@pytest.fixture(params=[*PRECISIONS, "torch alone"])
def precision(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "torch alone":
        monkeypatch.setattr(api, "find_op_set", lambda device: cpu_torch)
        return "fp32"
    return request.param


@pytest.mark.parametrize("criterion", ["entropy:0.9", "never", "patience:1", "replay:1,1,2,2,3,5", stay])
def test_rows_without_an_answer_are_errors(path: Path, clean: Path, precision: str, criterion: Any) -> None:
    engine, untouched = (pfengine.load(p, precision=precision, criterion="never") for p in (path, clean))
    expected = untouched.classify(ROWS, criterion=criterion)
    for options in ({}, {"batch_size": 1}, {"batch_tokens": 16}):
        found = engine.classify(ROWS, criterion=criterion, on_error="return", **options)
        assert [found[i] for i in GOOD] == [expected[i] for i in GOOD]
        for i in BAD:
            assert set(found[i]) == {"error", "row"}
            assert found[i]["row"] == i
            assert f"overflow in {precision}" in found[i]["error"]
    for call in (engine.classify, engine.predict):
        with pytest.raises(pfengine.InputError, match=r"^row 1: has no answer: the model's numbers overflow"):
            call(ROWS, criterion=criterion)
    stream = engine.stream(ROWS, criterion=criterion)
    assert next(stream) == expected[0]
    with pytest.raises(pfengine.InputError, match="row 1"):
        next(stream)


def test_logits_of_all_exits(path: Path, precision: str) -> None:
    engine = pfengine.load(path, precision=precision)
    with pytest.raises(pfengine.InputError, match="row 1: has no answer"):
        engine.layer_logits(ROWS)
    assert np.isfinite(engine.layer_logits([ROWS[i] for i in GOOD])).all()


@pytest.mark.parametrize(
    "head",
    [
        {"type": "past-future", "pooler": "per-layer"},
        {"type": "past-future", "pooler": "none", "incorporate": "max", "gate": "row"},
        {"type": "linear", "pooler": "per-layer"},
        {"type": "linear", "pooler": "none", "combine": "vote"},
        {"type": "classifier"},
    ],
    ids=str,
)
@pytest.mark.parametrize("precision", PRECISIONS, indirect=True)
def test_heads(make_text_checkpoint: Make, tmp_path: Path, precision: str, head: dict[str, Any]) -> None:
    engine = pfengine.load(spoil(make_text_checkpoint(head=head), tmp_path / "spoilt", one_word), precision=precision)
    found = engine.predict([ROWS[i] for i in GOOD])
    assert np.isfinite(found.logits).all()
    errors = [answer for answer in engine.classify(ROWS, on_error="return") if "error" in answer]
    assert [error["row"] for error in errors] == BAD


def test_rows_that_leave_before_it_happens_are_answered(clean: Path, tmp_path: Path, precision: str) -> None:
    engine = pfengine.load(spoil(clean, tmp_path / "spoilt", last_layer), precision=precision)
    untouched = pfengine.load(clean, precision=precision)
    first = "replay:" + ",".join("1" * len(ROWS))
    assert engine.classify(ROWS, criterion=first) == untouched.classify(ROWS, criterion=first)
    with pytest.raises(pfengine.InputError, match="row 0: has no answer"):
        engine.classify(ROWS, criterion="never")


def labelled(path: Path, rows: list[str]) -> Path:
    lines = [f"{text}\tL{i % 3}" for i, text in enumerate(rows)]
    path.write_text("\n".join(["sentence\tlabel", *lines, ""]))
    return path


def test_evaluating_and_calibrating(path: Path, tmp_path: Path) -> None:
    rows = ["very good", "it was slow", "the bleak film", "a charming journey"] * 5
    before = (path / "pfengine.json").read_bytes()
    data = labelled(tmp_path / "dev.tsv", rows)
    with pytest.raises(pfengine.InputError, match="row 2: has no answer"):
        pfengine.evaluate(path, data, repeats=1, precision="fp32")
    with pytest.raises(pfengine.InputError, match="row 2: has no answer"):
        pfengine.calibrate(path, data)
    assert (path / "pfengine.json").read_bytes() == before


def test_a_precision_that_overflows_is_not_chosen(clean: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(path: Any, precision: str) -> pfengine.Engine:
        engine = pfengine.load(path, precision=precision)
        if precision == "bf16":

            def predict(*args: Any, **options: Any) -> Any:
                raise pfengine.InputError(3, "has no answer")

            monkeypatch.setattr(engine, "predict", predict)
        return engine

    monkeypatch.setattr(precisions, "load", load)
    found = precisions.check_precisions(clean, ["very good", "bleak"])
    assert list(found) == [name for name in PRECISIONS if name == "int8"]


@pytest.mark.parametrize(
    ("logits", "answered"),
    [
        ([0.5, -1.0], True),
        ([0.5, -math.inf], True),  # a label without any probability, as an ensemble of sure exits has
        ([-math.inf, -math.inf], False),
        ([math.inf, 0.0], False),
        ([math.nan, 0.0], False),
        ([0.0, math.nan], False),
    ],
)
def test_what_is_an_answer(logits: list[float], answered: bool) -> None:
    row = Row(4, np.zeros(1, np.int64), None, False)
    with np.errstate(all="raise"):
        (found,) = mark_unanswered([row], has_answer(np.array([logits], np.float32)), "bf16")
    assert (found is row) == answered
    if not answered:
        assert isinstance(found, pfengine.InputError)
        assert (found.row, "try precision='fp32'" in found.reason) == (4, True)
