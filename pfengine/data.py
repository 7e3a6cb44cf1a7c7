"""Labelled rows from TSV, CSV, JSON lines and Parquet; splits of a directory or a GLUE task are found by name."""

from __future__ import annotations

import csv
import gzip
import json
import math
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from . import tasks
from .errors import ConfigError

PAIRS = (  # columns of the two texts of a pair: plain names first, then GLUE's own
    ("text", "text_pair"),
    ("sentence1", "sentence2"),
    ("sentence", "sentence2"),
    ("question1", "question2"),
    ("premise", "hypothesis"),
    ("question", "sentence"),
    ("#1 String", "#2 String"),
)
TEXTS = tuple(dict.fromkeys(("text", "sentence", *(text for text, _ in PAIRS))))
LABELS = ("label", "labels", "gold_label", "is_duplicate", "Quality", "score")
SUFFIXES = (".tsv", ".csv", ".jsonl", ".parquet")
SPLITS = {"dev": ("dev", "validation", "dev_matched")}  # the names a split goes by


class Example(NamedTuple):
    """One row of a data set; label is the text in the file, None where the file has no label column."""

    text: str
    pair: str | None
    label: str | None

    @property
    def row(self) -> str | tuple[str, str]:
        """As `Engine.classify` takes it."""
        return self.text if self.pair is None else (self.text, self.pair)


def locate(source: str | Path, split: str) -> Path:
    """The file of a split: of a directory, of the GLUE task of that name from the hub, or the file itself."""
    path = Path(source)
    if path.is_dir():
        return find_split(path, split)
    if path.exists():
        return path
    task = tasks.find(str(source)) if path.name == str(source) else None
    if task is None:
        known = ", ".join(tasks.TASKS)
        raise ConfigError(f"{source} does not exist; give a file, a directory with splits, or one of {known}")
    return tasks.from_hub(task, split)


def find_split(directory: Path, split: str) -> Path:
    """The file of a split: `dev.tsv`, `dev.tsv.gz`, `dev.csv`, `dev.jsonl`, `dev.parquet` and so on."""
    for name in SPLITS.get(split, (split,)):
        for suffix in SUFFIXES:
            for ending in ("", ".gz"):
                file = directory / f"{name}{suffix}{ending}"
                if file.exists():
                    return file
    raise ConfigError(f"{directory} has no split {split!r}; expected {split}{'|'.join(SUFFIXES)}, gzipped or not")


def read(
    file: str | Path, *, text: str | None = None, pair: str | None = None, label: str | None = None
) -> list[Example]:
    """All rows of a file (or the rows of a directory's `dev` split). ConfigError names file, line and column.

    text, pair, label: names of the columns; default: the usual ones, see PAIRS, TEXTS and LABELS.
    """
    file = Path(file)
    if file.is_dir():
        file = find_split(file, "dev")
    if not file.exists():
        raise ConfigError(f"{file} does not exist")
    name = file.name.removesuffix(".gz")
    if not name.endswith(SUFFIXES):
        raise ConfigError(f"{file} is of no known kind; use {', '.join(SUFFIXES)}, gzipped or not")
    try:
        if name.endswith(".parquet"):
            records = list(enumerate(_parquet(file), 1))
        else:
            with (
                gzip.open(file, "rt", encoding="utf-8-sig", newline="")
                if file.suffix == ".gz"
                else open(file, encoding="utf-8-sig", newline="") as stream
            ):
                records = list(_records(stream, name, file))
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from None
    if not records:
        raise ConfigError(f"{file} has no rows")
    columns = list(records[0][1])
    for column in (text, pair, label):
        if column is not None and column not in columns:
            raise ConfigError(f"{file} has no column {column!r}; it has {', '.join(columns)}")
    if text is None:
        text, usual = text_columns(columns)
        pair = usual if pair is None else pair
    if text is None:
        raise ConfigError(
            f"{file} has the columns {', '.join(columns)}; the text must be in one named {' or '.join(TEXTS)}"
        )
    label = label or next((name for name in LABELS if name in columns and name not in (text, pair)), None)
    examples = []
    for line, record in records:
        values = [record.get(column) if column is not None else None for column in (text, pair, label)]
        if values[0] is None or (pair is not None and values[1] is None) or (label is not None and values[2] is None):
            raise ConfigError(f"{file}, line {line}: has fewer columns than the header")
        examples.append(Example(str(values[0]), *(None if v is None else str(v) for v in values[1:])))
    return examples


def text_columns(columns: Iterable[str]) -> tuple[str | None, str | None]:
    """The columns of the text and of the second text, None where there is none."""
    columns = list(columns)
    for text, pair in PAIRS:
        if text in columns and pair in columns:
            return text, pair
    return next((name for name in TEXTS if name in columns), None), None


def _parquet(file: Path) -> list[dict[str, Any]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ConfigError(f"{file}: reading Parquet needs pyarrow: pip install 'pfengine[train]'") from None
    try:
        return pyarrow.parquet.read_table(file).to_pylist()
    except pyarrow.ArrowException as error:
        raise ConfigError(f"{file} cannot be read: {str(error).splitlines()[0]}") from None


def _records(stream: IO[str], name: str, file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    if name.endswith(".jsonl"):
        for line, content in enumerate(stream, 1):
            if not content.strip():
                continue
            try:
                record = json.loads(content)
            except json.JSONDecodeError as error:
                raise ConfigError(f"{file}, line {line}: is not JSON: {error}") from None
            if not isinstance(record, dict):
                raise ConfigError(f"{file}, line {line}: is no JSON object")
            yield line, record
    elif name.endswith(".tsv"):  # GLUE's TSVs have no quoting
        for line, record in enumerate(csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE), 2):
            yield line, record
    else:
        for line, record in enumerate(csv.DictReader(stream), 2):
            yield line, record


def label_ids(examples: list[Example], labels: tuple[str, ...], file: str) -> list[int]:
    """Labels as ids: label names, or their ids as text. ConfigError names the first row that fits neither."""
    by_name = {str(i): i for i in range(len(labels))} | {name: i for i, name in enumerate(labels)}
    ids = []
    for row, example in enumerate(examples):
        if example.label is None:
            raise ConfigError(f"{file} has no column with labels; name it, or give one of {', '.join(LABELS)}")
        if example.label not in by_name:
            hint = ": the rows are not labelled" if example.label == "-1" else ""
            raise ConfigError(f"{file}, row {row}: label {example.label!r} is none of {', '.join(labels)}{hint}")
        ids.append(by_name[example.label])
    return ids


def scores(examples: list[Example], file: str) -> list[float]:
    """Labels as numbers, for regression. ConfigError names the first that is none."""
    values = []
    for row, example in enumerate(examples):
        value = number(example.label)
        if value is None:
            raise ConfigError(f"{file}, row {row}: label {example.label!r} is no finite number")
        values.append(value)
    return values


def number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def hold_out(examples: list[Example], rows: int, seed: int) -> tuple[list[Example], list[Example]]:
    """(kept, held out): `rows` rows that are part of no longer row; nothing contained in one of them is kept.

    SST-2's training rows are phrases cut from sentences: rows held out at random would be short and known by heart.
    """
    everything = "\n" + "\n".join(example.text.strip() for example in examples) + "\n"
    held: list[Example] = []
    order = random.Random(seed).sample(range(len(examples)), len(examples))
    seen: set[str] = set()
    for i in order:
        if len(held) == rows:
            break
        text = examples[i].text.strip()
        if text in seen or (examples[i].pair is None and everything.count(text) > everything.count(f"\n{text}\n")):
            continue
        seen.add(text)
        held.append(examples[i])
    inside = "\n" + "\n".join(example.text.strip() for example in held) + "\n"
    if any(example.pair is not None for example in examples):
        taken = set(held)
        return [example for example in examples if example not in taken], held
    return [example for example in examples if example.text.strip() not in inside], held
