"""Rows made of texts: special tokens stay in their places, and every token comes from the texts."""

from __future__ import annotations

from typing import Any

import pytest

import pfengine
from pfengine.tokenization import Row
from pfengine.training.augmenting import augmented

TEXTS: list[Any] = [
    "a charming and often affecting journey",
    "x",
    "",
    "unflinchingly bleak",
    "it is slow . very slow .",
]


@pytest.mark.parametrize("pairs", [False, True])
def test_rows_that_are_made(sst2: pfengine.Engine, pairs: bool) -> None:
    rows = [(text, "and its pair") for text in TEXTS] if pairs else TEXTS
    read = [row for row in sst2.tokenizer.encode(enumerate(rows)) if isinstance(row, Row)]
    special = {0, 2}
    known = {int(i) for row in read for i in row.ids}
    made = augmented(rows, sst2.tokenizer, 40, seed=0)
    assert len(made) == 200
    frames = {tuple(i for i in row.ids.tolist() if i in special) for row in read}
    for row in made:
        ids = row["input_ids"]
        assert (ids[0], ids[-1]) == (0, 2)
        assert tuple(i for i in ids if i in special) in frames
        assert set(ids) <= known
    whole = {tuple(row.ids.tolist()) for row in read}
    assert len({tuple(row["input_ids"]) for row in made} - whole) > 20
    assert made == augmented(rows, sst2.tokenizer, 40, seed=0)
    assert made != augmented(rows, sst2.tokenizer, 40, seed=1)
    assert len(sst2.predict(made).logits) == 200


def test_no_row_is_longer_than_the_model_takes(text_checkpoint: Any) -> None:
    engine = pfengine.load(text_checkpoint, max_length=12)
    made = augmented(["words and more words " * 9, "others " * 30], engine.tokenizer, 50, seed=3)
    assert 3 <= max(len(row["input_ids"]) for row in made) <= 12


def test_nothing_to_make_rows_of(sst2: pfengine.Engine) -> None:
    assert augmented(["", ""], sst2.tokenizer, 3, seed=0) == []
    assert augmented(TEXTS, sst2.tokenizer, 0, seed=0) == []
