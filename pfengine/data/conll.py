"""Sentences in columns, as the CoNLL shared tasks have them: a word per line, a blank line after each sentence."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from ..rows import Unreadable
from .lines import Line

DOCUMENT = "-DOCSTART-"  # begins a document, in a line of its own


class Sentence(NamedTuple):
    """line: where the sentence begins, 1-based; the first wrong line where words are Unreadable."""

    line: int
    words: list[str] | Unreadable
    tags: list[str] | None


def read_conll(lines: Iterator[Line]) -> Iterator[Sentence]:
    """Sentences, read lazily. The word is the first column and the tag the last; a single column has no tags.

    Columns are separated by tabs, or by spaces where the line has no tab. All lines have as many as the first.
    """
    width = 0
    sentence: Sentence | None = None
    for line in lines:
        cells = line.text.split("\t") if "\t" in line.text else [cell for cell in line.text.split(" ") if cell]
        if line.fault is None and (not line.text.strip() or cells[0] == DOCUMENT):
            if sentence is not None:
                yield sentence
            sentence = None
            continue
        width = width or len(cells)
        fault = line.fault
        if fault is None and len(cells) != width:
            fault = Unreadable(f"has {len(cells)} columns, and the first word of the file has {width}")
        sentence = sentence or Sentence(line.number, [], [] if width > 1 else None)
        if fault is not None and not isinstance(sentence.words, Unreadable):
            sentence = Sentence(line.number, fault, None)
        if not isinstance(sentence.words, Unreadable):
            sentence.words.append(cells[0])
            if sentence.tags is not None:
                sentence.tags.append(cells[-1])
    if sentence is not None:
        yield sentence
