"""Rows from files: plain text, TSV, CSV, JSON lines, Parquet and CoNLL's columns; splits are found by name.

One reader for all commands: `stream` gives rows to answer, lazily, with an Unreadable for a bad one; `read` gives a
data set, complete or not at all, and `read_tagged` one for taggers. Files may be compressed.
"""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

from .. import tasks
from ..errors import ConfigError
from ..tokenization import Unreadable
from .columns import LABELS, PAIRS, TAGS, TEXTS, WORDS, Columns, clipped, text_columns
from .examples import Example, TaggedExample
from .labels import as_text, label_ids, label_sets, names_of, number, read_as, scores
from .lines import COMPRESSED, STDIN, display_name
from .records import BLANK, FORMATS, SUFFIXES, checked, read_records
from .split import hold_out, split_off
from .tagged import read_tagged, tag_ids, tag_names

__all__ = [
    "FORMATS",
    "LABELS",
    "PAIRS",
    "STDIN",
    "TAGS",
    "TEXTS",
    "WORDS",
    "Example",
    "TaggedExample",
    "display_name",
    "find_split",
    "hold_out",
    "label_ids",
    "label_sets",
    "locate",
    "names_of",
    "number",
    "read",
    "read_as",
    "read_tagged",
    "scores",
    "split_off",
    "stream",
    "tag_ids",
    "tag_names",
    "text_columns",
]  # fmt: skip

SPLITS = {"dev": ("dev", "validation", "dev_matched", "valid")}  # the names a split goes by


def locate(source: str | Path, split: str) -> Path:
    """The file of a split: in a directory, of a GLUE task on the hub, or the given file itself.

    `-` is standard input.
    """
    path = Path(source)
    if path.is_dir():
        return find_split(path, split)
    if path.exists() or path == STDIN:
        return path
    task = tasks.find(str(source)) if path.name == str(source) else None
    if task is None:
        known = ", ".join(tasks.TASKS)
        raise ConfigError(f"{source} does not exist; give a file, a directory with splits, or one of {known}")
    return tasks.from_hub(task, split)


def find_split(directory: Path, split: str) -> Path:
    """The file of a split: `dev.tsv`, `dev.tsv.gz`, `dev.csv`, `Dev.JSONL`, `dev.parquet`, `dev.txt` and so on."""
    there = {file.name.lower(): file for file in sorted(directory.iterdir(), reverse=True)}
    for name in SPLITS.get(split, (split,)):
        for suffix in (*SUFFIXES, ".txt"):
            for ending in ("", *COMPRESSED):
                file = directory / f"{name}{suffix}{ending}"
                if file.exists() or file.name in there:
                    return file if file.exists() else there[file.name]
    kinds, endings = "|".join(SUFFIXES), "|".join(COMPRESSED)
    raise ConfigError(f"{directory} has no split {split!r}; expected {split}{kinds}, compressed ({endings}) or not")


def stream(
    source: str | Path,
    kind: str = "auto",
    *,
    text: str | None = None,
    pair: str | None = None,
    label: str | None = None,
) -> Generator[Any, None, None]:
    """Rows as `Engine.stream` takes them, read lazily; a bad row is an Unreadable.

    source: a file, a pipe, or `-` for standard input. kind: of FORMATS; "auto" goes by the name's suffix, and
    is text where that is not known. text, pair, label: columns, as in `read`. Plain text has one row per line; empty
    lines count, except at the end. A TSV has no quoting, as in GLUE, and need not name its columns: it then has text,
    or text and second text. A list of words, in JSON lines or in CoNLL's columns, is a row {"words"}. Raises
    ConfigError at once for a source that cannot be read, at the first row for columns that do not fit.
    """
    path = checked(source, kind)
    records = read_records(path, kind, Columns(text, pair, label), headed=False)
    return (record.row for record in records)


def read(
    file: str | Path,
    *,
    text: str | None = None,
    pair: str | None = None,
    label: str | None = None,
    kind: str = "auto",
    labelled: bool | None = None,
    max_rows: int | None = None,
) -> list[Example]:
    """All rows of a file (or the rows of a directory's `dev` split). ConfigError names file, line and column.

    text, pair, label: names of the columns; default: the usual ones, see PAIRS, TEXTS and LABELS. kind: as in
    `stream`. labelled: True if every row must have a label, False if labels are ignored, None if a file may have none
    at all. max_rows: read only this many rows. Empty lines between rows are skipped, except in plain text.
    """
    file = Path(file)
    if file.is_dir():
        file = find_split(file, "dev")
    unit = "row" if file.suffix.lower() == ".parquet" else "line"
    examples: list[Example] = []
    bare, labels = "", False  # the fault of the first row without a label; whether a row has one
    for record in read_records(checked(file, kind), kind, Columns(text, pair, label), headed=bool(labelled)):
        if record.row is BLANK:
            continue
        try:
            first, second = _texts(record.row, None if not examples else examples[0])
            value = None if labelled is False else as_text(record.label)
        except ConfigError as error:
            raise ConfigError(f"{display_name(file)}, {unit} {record.line}: {error}") from None
        if value is not None:
            labels = True
        elif labelled is not False and not bare:
            what = "no label" if record.label_column is None else f"no label in column {clipped(record.label_column)!r}"
            bare = f"{display_name(file)}, {unit} {record.line}: has {what}; label it, or leave it out"
        if bare and (labels or (labelled and record.label_column is not None)):
            raise ConfigError(bare)
        examples.append(Example(first, second, value))
        if len(examples) == max_rows:
            break
    if not examples:
        raise ConfigError(f"{display_name(file)} has no rows")
    return examples


def _texts(row: Any, like: Example | None) -> tuple[str, str | None]:
    """Text and second text of a row; ConfigError where `like` has a second text and it does not, or the reverse."""
    if isinstance(row, Unreadable):
        raise ConfigError(row.reason)
    if not isinstance(row, (str, tuple)):
        words = isinstance(row, dict) and "words" in row
        raise ConfigError("is a list of words, not a text" if words else "is neither text nor an object with text")
    text, pair = (row, None) if isinstance(row, str) else row
    if like is not None and (pair is None) != (like.pair is None):
        raise ConfigError(
            "has one text, the first row has two" if pair is None else "has two texts, the first row has one"
        )
    return text, pair
