"""The words of texts and their pieces: those of transformers' tokenizers, whichever family they are of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import transformers

import pfengine
from pfengine.rows import Row

from .tokenizers_made import MADE, load

WORDS = ["The", "film's", "naïve", "U.S.", "desperate,", "東京", "ﬁne", "good", "'quoted'", "xyzzy-unflinchingly", "."]


def encoded(path: Path, row: Any, max_length: int | None = None, tags: bool = True) -> Row:
    (out,) = load(path, max_length, tags=tags).encode([(0, row)])
    assert isinstance(out, Row), out
    return out


def words_of(row: Row) -> list[tuple[int, int]]:
    """First piece and number of pieces of each word."""
    assert row.first_pieces is not None
    assert row.pieces is not None
    return list(zip(row.first_pieces.tolist(), row.pieces.tolist(), strict=True))


def their_words(ids: list[int | None]) -> list[tuple[int, int]]:
    return [(ids.index(i), ids.count(i)) for i in dict.fromkeys(ids) if i is not None]


@pytest.mark.parametrize("name", ["bert", "distilbert", "albert", "xlm-roberta", "camembert"])
@pytest.mark.parametrize("max_length", [64, 12])
def test_given_words_have_the_pieces_of_transformers(tokenizer_directories, name: str, max_length: int) -> None:
    theirs = transformers.AutoTokenizer.from_pretrained(tokenizer_directories[name])
    expected = theirs(WORDS, is_split_into_words=True, truncation=True, max_length=max_length)
    row = encoded(tokenizer_directories[name], {"words": WORDS}, max_length)
    assert row.ids.tolist() == expected["input_ids"]
    assert words_of(row) == their_words(expected.word_ids())
    assert row.truncated == (max_length == 12)
    assert row.spans is not None
    assert row.spans.dtype == np.int32
    text = " ".join(WORDS)
    assert [text[start:stop] for start, stop in row.spans] == WORDS[: len(row.spans)]


@pytest.mark.parametrize("name", MADE)
def test_words_are_tokenised_as_the_text_they_make(tokenizer_directories, name: str) -> None:
    words = WORDS[:8]
    row = encoded(tokenizer_directories[name], {"words": words}, tags=False)
    assert row.ids.tolist() == encoded(tokenizer_directories[name], " ".join(words), tags=False).ids.tolist()
    ends = [first + pieces for first, pieces in words_of(row)]
    assert len(ends) == len(words)
    assert [first for first, _ in words_of(row)] == [1, *ends[:-1]]
    assert encoded(tokenizer_directories[name], "the film", tags=False).first_pieces is None


TEXT = " The film's naïve, (very) good\tU.S. "
SPLIT = ["The", "film", "'", "s", "naïve", ",", "(", "very", ")", "good", "U", ".", "S", "."]


@pytest.mark.parametrize("name", MADE)
def test_words_of_plain_text(tokenizer_directories, name: str) -> None:
    row = encoded(tokenizer_directories[name], TEXT)
    assert row.spans is not None
    found = [TEXT[start:stop] for start, stop in row.spans]
    assert found == (SPLIT if name in ("bert", "distilbert", "electra", "mpnet") else TEXT.split())
    others = 3 if name == "roberta" else 2  # the first and the last token, and a space after the last word
    assert sum(pieces for _, pieces in words_of(row)) == len(row.ids) - others


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("text", ["", "  ", {"words": []}])
def test_no_words(tokenizer_directories, name: str, text: Any) -> None:
    row = encoded(tokenizer_directories[name], text)
    assert words_of(row) == []
    assert row.spans is not None
    assert row.spans.shape == (0, 2)


def test_a_word_without_pieces_is_the_unknown_token(tokenizer_directories) -> None:
    row = encoded(tokenizer_directories["bert"], {"words": ["\u200b", "good", "", "film", "\x01"]})
    plain = encoded(tokenizer_directories["bert"], "[UNK] good [UNK] film [UNK]")
    assert row.ids.tolist() == plain.ids.tolist()
    assert len(words_of(row)) == 5
    assert row.spans is not None
    assert row.spans.tolist() == [[0, 1], [2, 6], [7, 7], [8, 12], [13, 14]]
    tokenizer = load(tokenizer_directories["bert"])
    tokenizer.backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"good": 2}))
    tokenizer.backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    (error, fine) = tokenizer.encode([(0, {"words": ["good", ""]}), (1, {"words": ["good"]})])
    assert isinstance(error, pfengine.InputError)
    assert "word 1 gives no tokens" in str(error)
    assert isinstance(fine, Row)


def test_truncation_on_the_left_keeps_the_last_words(tokenizer_directories) -> None:
    tokenizer = load(tokenizer_directories["bert"], 8, tags=True)
    tokenizer.backend.enable_truncation(8, direction="left")
    (row,) = tokenizer.encode([(0, {"words": ["good"] * 9 + ["", "film"]})])
    assert isinstance(row, Row)
    assert row.truncated
    assert row.spans is not None
    assert row.spans[-2:].tolist() == [[45, 45], [46, 50]]
    assert len(row.spans) == 6


def test_a_pair_has_no_words(tokenizer_directories) -> None:
    (error,) = load(tokenizer_directories["bert"], tags=True).encode([(3, ("a", "b"))])
    assert isinstance(error, pfengine.InputError)
    assert "row 3: is a pair of texts" in str(error)


def test_ids_with_words_are_cut_with_their_row(tokenizer_directories) -> None:
    ids = {"input_ids": [1] * 70, "first_pieces": [1, 4, 62, 66], "pieces": [3, 58, 4, 1]}
    row = encoded(tokenizer_directories["bert"], ids)
    assert (len(row.ids), row.truncated) == (64, True)
    assert words_of(row) == [(1, 3), (4, 58), (62, 2)]


def test_words_are_classified_as_their_text(sst2: pfengine.Engine) -> None:
    words = "a charming and often affecting journey".split()  # noqa: SIM905
    assert sst2.classify([{"words": words}]) == sst2.classify([" ".join(words)])
    with pytest.raises(pfengine.InputTypeError, match="is of type list"):
        sst2.classify([words])
