"""Data sets for taggers: every row is a list of words with a tag each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..rows import Unreadable
from .columns import TAGS, Columns, clipped
from .examples import TaggedExample
from .labels import fitted, names_of
from .lines import display_name
from .records import BLANK, checked, read_records

LONGEST = 1000  # words; a file with one longer sentence has none at all, but rows of something else


def read_tagged(
    file: str | Path,
    *,
    text: str | None = None,
    pair: str | None = None,
    label: str | None = None,
    kind: str = "auto",
    labelled: bool | None = None,
    max_rows: int | None = None,
) -> list[TaggedExample]:
    """All rows of a file. ConfigError names file, line and column of what is wrong.

    The file has the columns of the CoNLL shared tasks, a word per line, or is JSON lines or Parquet with a list of
    words and one of tags per row. text, label: names of those, default WORDS and TAGS; pair: must be None. kind: of
    FORMATS; what is neither JSON lines nor Parquet is read as CoNLL's columns. labelled, max_rows: as in `read`.
    """
    file = checked(file, kind)
    if pair is not None:
        raise ConfigError(f"pair_column is {clipped(pair)!r}, and a tagger reads one list of words; leave it out")
    unit = "row" if file.suffix.lower() == ".parquet" else "line"
    examples: list[TaggedExample] = []
    for record in read_records(file, kind, Columns(text, None, label), headed=False, tagged=True):
        if record.row is BLANK:
            continue
        try:
            words = _words(record.row)
            tags = None if labelled is False else _tags(record.label, len(words))
            if tags is None and labelled:
                raise ConfigError(f"has no tags; give them in the last column, or in one named {' or '.join(TAGS)}")
            if examples and (tags is None) != (examples[0].tags is None):
                raise ConfigError(
                    "has no tags, the first row has" if tags is None else "has tags, the first row has none"
                )
        except ConfigError as error:
            raise ConfigError(f"{display_name(file)}, {unit} {record.line}: {error}") from None
        examples.append(TaggedExample(words, tags))
        if len(examples) == max_rows:
            break
    if not examples:
        raise ConfigError(f"{display_name(file)} has no rows")
    if len(examples) == 1 and len(examples[0].words) > LONGEST:
        raise ConfigError(
            f"{display_name(file)} is one sentence of {len(examples[0].words)} words; a blank line ends each"
        )
    return examples


def tag_names(examples: Sequence[TaggedExample], file: str) -> tuple[str, ...]:
    """The names of all tags, sorted, in numeric order where all are integers; ConfigError where there is one only."""
    names = names_of(tag for example in examples for tag in example.tags or ())
    if len(names) < 2:
        have = ", ".join(names) or "none"
        raise ConfigError(f"{file}: a tagger needs two tags, and the {len(examples)} rows have {have}")
    return names


def tag_ids(examples: Sequence[TaggedExample], names: tuple[str, ...], file: str) -> list[list[int]]:
    """The ids of each row's tags, as `labels.read_as` reads them. ConfigError names the first row with another tag."""
    found: dict[str, int] = {}  # tag -> first row
    for row, example in enumerate(examples):
        for tag in example.tags or ():
            found.setdefault(tag, row)
    ids = fitted(found, names, file)
    return [[ids[tag] for tag in example.tags or ()] for example in examples]


def _words(row: Any) -> tuple[str, ...]:
    if isinstance(row, Unreadable):
        raise ConfigError(row.reason)
    words = row.get("words") if isinstance(row, dict) else None
    if not isinstance(words, (list, tuple)):
        raise ConfigError("is not a list of words, which a tagger is trained on")
    for number, word in enumerate(words):
        if not isinstance(word, str) or not word.strip():
            raise ConfigError(f"has a word {number} that is {clipped(repr(word))}; words are strings, not blank")
    if not words:
        raise ConfigError("has no words")
    return tuple(words)


def _tags(given: Any, words: int) -> tuple[str, ...] | None:
    if given is None:
        return None
    if not isinstance(given, (list, tuple)):
        raise ConfigError(f"has tags of type {type(given).__name__}; they must be a list with one per word")
    if len(given) != words:
        raise ConfigError(f"has {words} words and {len(given)} tags")
    for number, tag in enumerate(given):
        if isinstance(tag, bool) or not isinstance(tag, (str, int)) or not str(tag).strip():
            raise ConfigError(f"has a tag {number} that is {clipped(repr(tag))}; it must be a name or an id")
    return tuple(str(tag).strip() for tag in given)
