"""Labelled rows from files: TSV, CSV and JSON lines, gzipped or not, with the splits of a directory found by name."""

from __future__ import annotations

import csv
import gzip
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from .errors import ConfigError

TEXT_COLUMNS = ("text", "sentence", "sentence1", "question1", "question", "premise")
PAIR_COLUMNS = ("text_pair", "sentence2", "question2", "hypothesis")
LABEL_COLUMNS = ("label", "labels", "gold_label")
SUFFIXES = (".tsv", ".csv", ".jsonl")


class Example(NamedTuple):
    """One row of a data set; label is the text in the file, None where the file has no label column."""

    text: str
    pair: str | None
    label: str | None

    @property
    def row(self) -> str | tuple[str, str]:
        """As `Engine.classify` takes it."""
        return self.text if self.pair is None else (self.text, self.pair)


def find_split(directory: Path, split: str) -> Path:
    """The file of a split: `dev.tsv`, `dev.tsv.gz`, `dev.csv`, `dev.jsonl` and so on."""
    for suffix in SUFFIXES:
        for ending in ("", ".gz"):
            file = directory / f"{split}{suffix}{ending}"
            if file.exists():
                return file
    raise ConfigError(f"{directory} has no split {split!r}; expected {split}{'|'.join(SUFFIXES)}, gzipped or not")


def read(file: str | Path) -> list[Example]:
    """All rows of a file (or the rows of a directory's `dev` split). ConfigError names file, line and column."""
    file = Path(file)
    if file.is_dir():
        file = find_split(file, "dev")
    if not file.exists():
        raise ConfigError(f"{file} does not exist")
    name = file.name.removesuffix(".gz")
    if not name.endswith(SUFFIXES):
        raise ConfigError(f"{file} is of no known kind; use {', '.join(SUFFIXES)}, gzipped or not")
    try:
        with (
            gzip.open(file, "rt", encoding="utf-8", newline="")
            if file.suffix == ".gz"
            else open(file, encoding="utf-8", newline="") as stream
        ):
            records = list(_records(stream, name, file))
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from None
    if not records:
        raise ConfigError(f"{file} has no rows")
    columns = records[0][1].keys()
    text = _column(columns, TEXT_COLUMNS)
    if text is None:
        raise ConfigError(
            f"{file} has the columns {', '.join(columns)}; the text must be in one named {' or '.join(TEXT_COLUMNS)}"
        )
    pair, label = _column(columns, PAIR_COLUMNS), _column(columns, LABEL_COLUMNS)
    examples = []
    for line, record in records:
        values = [record.get(column) if column is not None else None for column in (text, pair, label)]
        if values[0] is None or (pair is not None and values[1] is None) or (label is not None and values[2] is None):
            raise ConfigError(f"{file}, line {line}: has fewer columns than the header")
        examples.append(Example(str(values[0]), *(None if v is None else str(v) for v in values[1:])))
    return examples


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


def _column(columns: Any, names: tuple[str, ...]) -> str | None:
    return next((name for name in names if name in columns), None)


def label_ids(examples: list[Example], labels: tuple[str, ...], file: str) -> list[int]:
    """Labels as ids: label names, or their ids as text. ConfigError names the first row that fits neither."""
    by_name = {str(i): i for i in range(len(labels))} | {name: i for i, name in enumerate(labels)}
    ids = []
    for row, example in enumerate(examples):
        if example.label not in by_name:
            raise ConfigError(f"{file}, row {row}: label {example.label!r} is none of {', '.join(labels)}")
        ids.append(by_name[example.label])
    return ids


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
