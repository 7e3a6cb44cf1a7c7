"""A model that tags words, by the engine's public calls: answers per word, whatever shares the batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pfengine
from pfengine.engine import run_reference
from tests.rows_of_words import row_of_words

Make = Callable[..., Path]
LENGTHS = [4, 1, 9, 17, 3, 12]  # words
LABELS = 4
CRITERIA = ["sentee-max:0.85", "sentee-avg:0.8", "token:0.7", "tokee-window:0.8,3", "tokee:0.8,3"]


@pytest.fixture(scope="module")
def path(make_checkpoint: Make) -> Path:
    return make_checkpoint("bert", labels=LABELS, head={"type": "tagger"}, criterion="tokee:0.8,3")


@pytest.fixture(scope="module", params=["words", "tokens"])
def rows(request: pytest.FixtureRequest, random_rows: Any) -> list[dict[str, Any]]:
    """Once words are marked, and once every token is one."""
    if request.param == "tokens":
        return random_rows(LENGTHS)
    draw = np.random.default_rng(2)
    marked = [row_of_words(0, length, draw) for length in LENGTHS]
    return [{"input_ids": row.ids, "first_pieces": row.first_pieces, "pieces": row.pieces} for row in marked]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("criterion", [*CRITERIA, "never"])
def test_a_row_is_tagged_as_if_it_were_alone(path: Path, rows: list, criterion: str, precision: str) -> None:
    engine = pfengine.load(path, precision=precision, criterion=criterion)
    out = engine.predict(rows, batch_size=4)
    assert out.logits.shape == (6, 17, LABELS)
    assert out.exit_layers.shape == (6, 17)
    for i, length in enumerate(LENGTHS):
        alone = engine.predict([rows[i]])
        np.testing.assert_array_equal(alone.logits[0], out.logits[i, :length])
        np.testing.assert_array_equal(alone.exit_layers[0], out.exit_layers[i, :length])
        assert np.isnan(out.logits[i, length:]).all()
        assert (out.exit_layers[i, length:] == 0).all()
    assert ((out.exit_layers > 0) == ~np.isnan(out.logits[..., 0])).all()
    own = out.exit_layers[out.exit_layers > 0]
    assert out.layer_speedup == pytest.approx(5 * len(own) / own.sum())
    assert (criterion == "never") == (set(own) == {5})


def test_logits_of_all_exits(path: Path, rows: list) -> None:
    engine = pfengine.load(path, precision="fp32")
    logits = engine.layer_logits(rows, batch_tokens=20)  # several windows
    assert logits.shape == (5, 6, 17, LABELS)
    np.testing.assert_array_equal(engine.predict(rows, criterion="never").logits, logits[-1])
    token = engine.predict(rows, criterion="token:0.7")  # nobody is frozen: each answers as at full depth so far
    where = np.nonzero(token.exit_layers)
    np.testing.assert_array_equal(token.logits[where], logits[token.exit_layers[where] - 1, *where])


def test_rows_have_thresholds_of_their_own(path: Path, rows: list) -> None:
    engine = pfengine.load(path, precision="fp32")
    thresholds = [0.5, 0.9, 0.8, 0.7, 0.99, 0.6]
    out = engine.predict(rows, criterion="tokee:0.8,3", threshold=thresholds)
    for i, (row, threshold) in enumerate(zip(rows, thresholds, strict=True)):
        alone = engine.predict([row], criterion="tokee:0.8,3", threshold=threshold)
        np.testing.assert_array_equal(out.logits[i, : LENGTHS[i]], alone.logits[0])


def test_what_a_tagger_cannot_do_is_said(path: Path, rows: list, make_checkpoint: Make) -> None:
    engine = pfengine.load(path)
    with pytest.raises(pfengine.ConfigError, match="use tag, or predict"):
        engine.classify(rows)
    with pytest.raises(pfengine.ConfigError, match="scores every token"):
        engine.predict(rows, criterion="entropy:0.5")
    with pytest.raises(pfengine.ConfigError, match="scores whole rows"):
        pfengine.load(make_checkpoint("bert")).predict(rows, criterion="tokee:0.5,3")
    assert engine.predict([]).logits.shape[0] == 0
    with pytest.raises(ValueError, match="the head scores tokens"):
        run_reference(engine.model, [], engine.model.full_depth)


def test_rows_without_words(path: Path, rows: list) -> None:
    none = {"input_ids": [3, 4, 5], "first_pieces": [], "pieces": []}
    engine = pfengine.load(path, precision="fp32")
    found, expected = engine.predict([none, *rows[:2], none]), engine.predict(rows[:2])
    np.testing.assert_array_equal(found.logits[1:3], expected.logits)
    assert not found.exit_layers[[0, 3]].any()
    assert engine.predict([none]).logits.shape == (1, 0, LABELS)
    assert engine.layer_logits([none, rows[0]]).shape == (5, 2, LENGTHS[0], LABELS)


def test_a_callable_is_shown_words(path: Path, rows: list) -> None:
    engine, shown = pfengine.load(path, precision="fp32"), []

    def odd(layer: int, logits: Any, state: Any, words: Any) -> Any:
        shown.append(words.tolist())
        return words % 2 == 1, None

    out = engine.predict(rows[2:5], criterion=odd)
    assert sorted(shown[0]) == list(range(sum(LENGTHS[2:5])))
    flat = out.exit_layers[out.exit_layers > 0]
    assert flat.tolist() == [1 if i % 2 else engine.num_layers for i in sorted(shown[0])]
