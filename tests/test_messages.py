"""Warnings point at the line of the program that called, and options take any whole number."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pfengine
from pfengine.options import whole

LONG = "film " * 100


@pytest.fixture(scope="module")
def engine(text_checkpoint: Path) -> pfengine.Engine:
    return pfengine.load(text_checkpoint, criterion="never")


def line() -> int:
    frame = inspect.currentframe()
    assert frame is not None
    assert frame.f_back is not None
    return frame.f_back.f_lineno


def in_a_loop(engine: pfengine.Engine) -> int:
    for _ in engine.stream(iter([LONG])):
        pass
    return line() - 2


CALLS: list[Callable[[pfengine.Engine], int]] = [
    lambda engine: (engine.classify(LONG), line())[1],
    lambda engine: (engine.classify([LONG] * 300, batch_tokens=64), line())[1],
    lambda engine: (engine.predict([LONG]), line())[1],
    lambda engine: (engine.layer_logits([LONG]), line())[1],
    lambda engine: (list(engine.stream([LONG])), line())[1],
    in_a_loop,
]


@pytest.mark.parametrize("call", CALLS)
def test_the_truncation_warning_points_at_the_caller(engine: pfengine.Engine, call: Callable[..., int]) -> None:
    with pytest.warns(UserWarning, match="truncated") as caught:
        expected = call(engine)
    assert [(warning.filename, warning.lineno) for warning in caught] == [(__file__, expected)]


def test_a_folder_that_hides_a_bundled_name_says_so(
    text_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("sst2").symlink_to(text_checkpoint)
    with pytest.warns(UserWarning, match=r"local folder .*sst2.* hides the bundled checkpoint") as caught:
        engine = pfengine.load("sst2")
    assert engine.num_layers == 5
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pfengine.load("./sst2").num_layers == 5
        monkeypatch.chdir("/")
        assert pfengine.load("sst2").num_layers == 12


def test_repr_says_what_is_loaded(text_checkpoint: Path, make_checkpoint: Callable[..., Path]) -> None:
    engine = pfengine.load(text_checkpoint, threshold=0.25, precision="fp32")
    for part in (str(text_checkpoint), "bert", "5 layers", "'L0', 'L1', 'L2'", "fp32 on cpu", "entropy:0.25"):
        assert part in repr(engine)
    assert "never" in repr(pfengine.load(text_checkpoint, criterion="never"))
    many = repr(pfengine.load(make_checkpoint("bert", labels=40), criterion="replay:" + "5," * 500 + "5"))
    assert "... (40)" in many
    assert len(many) < 500


@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.int8, lambda n: np.array(n), lambda n: torch.tensor(n)])
def test_whole_numbers_of_any_type(text_checkpoint: Path, engine: pfengine.Engine, kind: Callable[[int], Any]) -> None:
    texts = ["a good film", "a bad film", "the movie"]
    expected = engine.classify(texts, top_k=2, batch_size=2, batch_tokens=100)
    options = {"batch_size": kind(2), "batch_tokens": kind(100)}
    assert engine.classify(texts, top_k=kind(2), **options) == expected
    assert list(engine.stream(texts, top_k=kind(2), **options)) == expected
    np.testing.assert_array_equal(engine.predict(texts, **options).logits, engine.predict(texts).logits)
    np.testing.assert_array_equal(engine.layer_logits(texts, batch_tokens=kind(100)), engine.layer_logits(texts))
    engine.warmup(rows=[kind(1)], tokens=[kind(4)])
    assert pfengine.load(text_checkpoint, max_length=kind(8), criterion="never").max_length == 8


@pytest.mark.parametrize("value", [True, np.True_, 0, -1, np.int64(0), 2.0, np.float32(2), "2", None, [2], np.ones(2)])
def test_what_is_no_whole_number(value: Any) -> None:
    with pytest.raises(pfengine.ConfigError, match=r"batch_size is .* positive integer"):
        whole("batch_size", value)


@pytest.mark.parametrize("options", [{"rows": 4}, {"rows": [0]}, {"tokens": None}, {"tokens": [1.5]}, {"rows": [True]}])
def test_what_warmup_takes(engine: pfengine.Engine, options: dict[str, Any]) -> None:
    with pytest.raises(pfengine.ConfigError, match=next(iter(options))):
        engine.warmup(**options)
