"""The words of a row's text, and the pieces that a tokenizer makes of them.

A head that scores tokens answers once per word, from the word's first piece. The words of a row are

    {"words": [...]}   the strings themselves, as in CoNLL's files. They are joined with single spaces and tokenised as
                       that text, so that a word has the same pieces as in running text.
    plain text         as transformers' token-classification pipeline means them: where pieces that continue a word are
                       marked (WordPiece, "##"), the parts that the pre-tokenizer splits the text into, so that "Paris,"
                       is two words; for all other tokenizers, what whitespace separates. There the pipeline guesses
                       which pieces begin words. Here it is the piece of the word's first character, or the mark of the
                       space before it, as in training with transformers' `is_split_into_words`.

A word that the tokenizer makes no piece of, such as a lone control character among {"words"}, stands for the
tokenizer's unknown token, so that there are as many answers as words. Special tokens belong to no word.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import tokenizers

from .rows import Row, Text


class Pieces(NamedTuple):
    """The words of a text that have pieces: those that truncation cut off are not among them."""

    first: list[int]  # the place of each word's first piece
    counts: list[int]  # how many pieces it has
    spans: list[tuple[int, int]]  # its first character and the one after its last
    numbers: list[int]  # of words that were given, the number among all of them; of others among these

    def put_on(self, row: Row, text: str) -> Row:
        """The row with these words of `text`."""
        return row._replace(
            first_pieces=np.array(self.first, np.int32),
            pieces=np.array(self.counts, np.int32),
            spans=np.array(self.spans, np.int32).reshape(-1, 2),
            text=text,
            first_word=self.numbers[0] if self.numbers else 0,
        )


def find(text: Text, encoding: Any, backend: tokenizers.Tokenizer, encode: Callable[[str], Any]) -> tuple[Any, Pieces]:
    """The encoding of a text, or of one where words without pieces are unknown tokens; and its words.

    encoding: of the text, with offsets, by `backend`; encode: encodes another text in the same way. Spans of words that
    were given are those in the words as they were joined. Raises ValueError for a word without pieces where the
    tokenizer has no unknown token.
    """
    if text.words is None:
        continues = getattr(backend.model, "continuing_subword_prefix", None)
        spans = None if continues else [found.span() for found in re.finditer(r"\S+", text.text)]
        found = _locate(encoding, text.text, spans)
        return encoding, found._replace(numbers=list(range(len(found.first))))
    spans = _joined_spans(text.words)
    found = _locate(encoding, text.text, spans)
    empty = _without_pieces(found, encoding, len(spans), backend)
    if empty:
        token = getattr(backend.model, "unk_token", None) or "<unk>"
        unknown = backend.token_to_id(token)
        if unknown is None:
            raise ValueError(f"word {empty[0]} gives no tokens, and the tokenizer has no unknown token")
        words = [token if i in empty else word for i, word in enumerate(text.words)]
        joined = " ".join(words)
        encoding = encode(joined)
        found = _locate(encoding, joined, _joined_spans(words))
        places = dict(zip(found.numbers, found.first, strict=True))
        if any(i in places and encoding.ids[places[i]] != unknown for i in empty):
            raise ValueError(f"word {empty[0]} gives no tokens, and the tokenizer does not read {token} in a text")
        found = found._replace(spans=[spans[i] for i in found.numbers])
    return encoding, found


def _joined_spans(words: Sequence[str]) -> list[tuple[int, int]]:
    ends = list(accumulate((len(word) + 1 for word in words), initial=0))
    return [(start, start + len(word)) for start, word in zip(ends, words, strict=False)]


def _locate(encoding: Any, text: str, spans: Sequence[tuple[int, int]] | None) -> Pieces:
    """spans: of the words, in order; None: words are what the pre-tokenizer made."""
    first: list[int] = []
    counts: list[int] = []
    found: list[tuple[int, int]] = []
    numbers: list[int] = []
    starts = None if spans is None else [start for start, _ in spans]
    for place, (number, (start, end)) in enumerate(zip(encoding.word_ids, encoding.offsets, strict=True)):
        if number is None:  # added by the tokenizer
            continue
        while start < end and text[start].isspace():  # a piece may begin with the space before its word
            start += 1
        if spans is not None and starts is not None:
            number = bisect_right(starts, start) - 1
            if number < 0 or start >= max(spans[number][1], spans[number][0] + 1):
                continue  # between words
        if numbers and number <= numbers[-1]:
            counts[-1] = place + 1 - first[-1]
            found[-1] = found[-1][0], max(end, found[-1][1])
        else:
            first.append(place)
            counts.append(1)
            found.append((start, end))
            numbers.append(number)
    return Pieces(first, counts, found if spans is None else [spans[i] for i in numbers], numbers)


def _without_pieces(found: Pieces, encoding: Any, words: int, backend: tokenizers.Tokenizer) -> list[int]:
    """The words that the tokenizer makes nothing of; not those that truncation cut off."""
    missing = sorted(set(range(words)) - set(found.numbers))
    if not encoding.overflowing or not missing or not found.numbers:
        return missing if not encoding.overflowing else []
    if (backend.truncation or {}).get("direction") == "left":
        return [i for i in missing if i > found.numbers[0]]
    return [i for i in missing if i < found.numbers[-1]]
