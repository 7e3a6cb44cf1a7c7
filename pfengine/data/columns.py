"""Which columns hold the text, the second text and the label."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ..errors import ConfigError

PAIRS = (  # columns of the two texts of a pair: plain names first, then GLUE's own
    ("text", "text_pair"),
    ("sentence1", "sentence2"),
    ("sentence", "sentence2"),
    ("question1", "question2"),
    ("premise", "hypothesis"),
    ("query", "document"),
    ("question", "sentence"),
    ("#1 String", "#2 String"),
)
TEXTS = tuple(dict.fromkeys(("text", "sentence", *(text for text, _ in PAIRS))))
LABELS = ("label", "labels", "gold_label", "is_duplicate", "Quality", "score")
WORDS = ("words", "tokens")  # columns of rows that are lists of words
TAGS = ("tags", "ner_tags", "labels")  # and of the words' tags


class Columns(NamedTuple):
    """Names of columns. None means the usual names when a user gives it, and no column once chosen."""

    text: str | None = None
    pair: str | None = None
    label: str | None = None

    def choose(self, names: Sequence[str], tagged: bool = False) -> Columns:
        """The columns to read; ConfigError, to follow the name of a file, where one is missing or ambiguous.

        tagged: rows are lists of words with a list of tags each.
        """
        for column in self:
            if column is not None and column not in names:
                raise ConfigError(f"has no column {clipped(column)!r}; it has {listed(names)}")
        given = [column for column in self if column is not None]
        if len(set(given)) < len(given):
            raise ConfigError(f"cannot have {clipped(given[0])!r} as two columns at once")
        text, pair = self.text, self.pair
        if text is None:
            free = [name for name in names if name not in given]
            text, usual = (_find(WORDS, free), None) if tagged else text_columns(free)
            pair = usual if pair is None else pair
        if text is None:
            what, known = ("words", WORDS) if tagged else ("text", TEXTS)
            raise ConfigError(
                f"has the columns {listed(names)}; the {what} must be in one named {' or '.join(known)}, or name it"
            )
        labels = TAGS if tagged else LABELS
        chosen = Columns(text, pair, self.label or _find(labels, [name for name in names if name not in (text, pair)]))
        for column in chosen:
            if names.count(column) > 1:
                raise ConfigError(
                    f"has {names.count(column)} columns named {clipped(str(column))!r}; rename all but one"
                )
        return chosen


def listed(names: Sequence[str]) -> str:
    """Names for a message, shortened where there are many or long ones."""
    return ", ".join(clipped(name) for name in names[:20]) + ", ..." * (len(names) > 20)


def clipped(text: str) -> str:
    """A text for a message, on one line and at most 50 characters."""
    text = " ".join(text.split())
    return text if len(text) <= 50 else text[:47] + "..."


def text_columns(columns: Iterable[str]) -> tuple[str | None, str | None]:
    """The columns of the text and of the second text, None where there is none. Case is ignored."""
    columns = list(columns)
    for text, pair in PAIRS:
        found = _find((text,), columns), _find((pair,), columns)
        if None not in found:
            return found
    return _find(TEXTS, columns), None


def is_header(cells: Sequence[str]) -> bool:
    """Whether a usual name occurs, so that the line is a header and not a row."""
    return text_columns(cells)[0] is not None or _find(LABELS, cells) is not None


def _find(usual: Iterable[str], columns: Sequence[str]) -> str | None:
    """The first of the usual names that a column has, as the column spells it."""
    plain = {column.strip().lower(): column for column in reversed(columns)}
    return next((name if name in columns else plain[name.lower()] for name in usual if name.lower() in plain), None)
