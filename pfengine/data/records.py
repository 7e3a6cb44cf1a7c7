"""The records of a file, one at a time: plain text, TSV, CSV, JSON lines, Parquet or the columns of CoNLL."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import ConfigError
from ..tokenization import Unreadable
from .columns import WORDS, Columns, clipped, is_header, text_columns
from .conll import read_conll
from .labels import number
from .lines import MAX_BYTES, STDIN, Line, bare_name, display_name, read_lines

SUFFIXES = {
    ".tsv": "tsv", ".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".parquet": "parquet",
    ".conll": "conll",
}  # fmt: skip
FORMATS = ("auto", "text", "tsv", "csv", "jsonl", "parquet", "conll")
ROW_KEYS = ("input_ids", "token_type_ids", "attention_mask", "first_pieces", "pieces")
BLANK = Unreadable("is a blank line")
_LONE_CR = "\udc0d"  # replaces a CR inside a line, which the csv module would take for a line end


class Record(NamedTuple):
    """One row. line: where it begins, 1-based; in Parquet the number of the row.

    row: as `Engine.classify` takes it; Unreadable for a bad one. label: as the file has it in label_column.
    """

    line: int
    row: Any
    label: Any = None
    label_column: str | None = None


def checked(source: str | Path, kind: str) -> Path:
    """The source as a path; ConfigError where it is no file, or `kind` is none of FORMATS."""
    path = Path(source)
    if kind not in FORMATS:
        raise ConfigError(f"format is {kind!r}; it must be one of {', '.join(FORMATS)}")
    if path != STDIN and not path.exists():
        raise ConfigError(f"{path} does not exist")
    if path.is_dir():
        raise ConfigError(f"{path} is a directory; give a file")
    return path


def read_records(source: Path, kind: str, columns: Columns, headed: bool, tagged: bool = False) -> Iterator[Record]:
    """Records, read lazily; a bad one is Unreadable, and the others are not lost.

    kind: of FORMATS; "auto" goes by the name's suffix, and is text where that is not known. headed: a TSV names its
    columns; otherwise one without usual names in its first line has no header: text, or text and pair. tagged: rows are
    words with tags; what is neither JSON lines nor Parquet then has the columns of CoNLL. Raises ConfigError where the
    columns do not fit or nothing can be read.
    """
    if kind == "auto":
        name = bare_name(source)
        kind = next((kind for suffix, kind in SUFFIXES.items() if name.endswith(suffix)), "text")
    if kind == "parquet":
        return _parquet(source, columns, tagged)
    if kind == "conll" or (tagged and kind != "jsonl"):
        if any(columns):
            raise ConfigError(f"{display_name(source)} has the columns of CoNLL, which have no names; do not name any")
        return (
            Record(line, words if isinstance(words, Unreadable) else {"words": words}, tags)
            for line, words, tags in read_conll(read_lines(source))
        )
    if kind == "text" and any(columns):
        raise ConfigError(f"{display_name(source)} is read as plain text, which has no columns; say its format")
    lines = _without_last_blanks(read_lines(source))
    if kind == "text":
        return (Record(line.number, line.fault or line.text) for line in lines)
    if kind == "jsonl":
        return _json_lines(lines, columns, tagged)
    cells = _cells_of_tsv(lines) if kind == "tsv" else _cells_of_csv(lines)
    return _table(cells, columns, kind == "csv" or headed or any(columns), display_name(source))


def _without_last_blanks(lines: Iterator[Line]) -> Iterator[Line]:
    blank: range | None = None  # numbers of the empty lines read last
    end = ""
    for line in lines:
        if line.text == "" and line.fault is None:
            blank, end = range(line.number if blank is None else blank.start, line.number + 1), line.end
            continue
        if blank is not None:
            yield from (Line(number, "", end) for number in blank)
            blank = None
        yield line


def _json_lines(lines: Iterator[Line], columns: Columns, tagged: bool) -> Iterator[Record]:
    """A string, or an object with texts or words in columns or with "input_ids"; other keys are ignored."""
    known: dict[tuple[str, ...], Columns] = {}  # by the keys of a record
    for line in lines:
        if line.fault is not None:
            yield Record(line.number, line.fault)
        elif not line.text.strip():
            yield Record(line.number, BLANK)
        else:
            try:
                value = json.loads(line.text)
            except (ValueError, RecursionError) as error:
                array = "; one object a line is wanted, not an array" if line.text.strip() == "[" else ""
                yield Record(line.number, Unreadable(f"is not JSON: {error}{array}"))
                continue
            yield (
                _of_object(line.number, value, columns, known, tagged)
                if isinstance(value, dict)
                else Record(line.number, value)
            )


def _of_object(
    number: int, value: dict[str, Any], columns: Columns, known: dict[tuple[str, ...], Columns], tagged: bool
) -> Record:
    if "input_ids" in value and columns.text is None and not tagged:
        ids = {key: value[key] for key in ROW_KEYS if key in value}
        return Record(number, ids)
    keys = tuple(value)
    words = next((name for name in WORDS if isinstance(value.get(name), list)), None)
    if words is not None and columns.text is None and not tagged and text_columns(keys)[0] is None:
        return Record(number, {"words": value[words]})
    if keys not in known:
        try:
            chosen = columns.choose(keys, tagged)
        except ConfigError as error:
            return Record(number, Unreadable(str(error)))
        if len(known) < 1000 and sum(map(len, keys)) < 10_000:  # more is not worth the memory
            known[keys] = chosen
    else:
        chosen = known[keys]
    row = _row(value, chosen, null_pair=True)
    return Record(number, row, None if chosen.label is None else value[chosen.label], chosen.label)


def _row(record: dict[str, Any], chosen: Columns, null_pair: bool = False) -> Any:
    """Text, text and second text, or words; Unreadable names a column without text."""
    if chosen.pair is None and chosen.text is not None and isinstance(record[chosen.text], list):
        return {"words": record[chosen.text]}
    texts = []
    for column in (chosen.text, chosen.pair):
        value = None if column is None else record[column]
        if column is None or (value is None and null_pair and column == chosen.pair):
            continue
        if not isinstance(value, str):
            what = "is null" if value is None or value != value else f"is of type {type(value).__name__}"
            return Unreadable(f"column {clipped(column)!r} {what}; it must be a string")
        texts.append(value)
    return texts[0] if len(texts) == 1 else tuple(texts)


def _cells_of_tsv(lines: Iterator[Line]) -> Iterator[tuple[int, list[str] | Unreadable]]:
    """TSVs have no quoting, as in GLUE."""
    for line in lines:
        yield line.number, line.fault or line.text.split("\t")


def _cells_of_csv(lines: Iterator[Line]) -> Iterator[tuple[int, list[str] | Unreadable]]:
    """Read by the csv module one record at a time, so that a bad record does not lose the others."""
    if csv.field_size_limit() < MAX_BYTES:  # it holds for the whole module, so it is only ever raised
        csv.field_size_limit(MAX_BYTES)
    feed = _Feed(lines)
    reader = csv.reader(feed)
    while True:
        feed.first, feed.size, feed.fault = 0, 0, None
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            feed.fault = feed.fault or Unreadable(f"is not CSV: {error}")
        if feed.fault is not None:
            yield feed.first, feed.fault
        elif cells:  # else a blank line
            yield feed.first, [cell.replace(_LONE_CR, "\r") for cell in cells]


@dataclass
class _Feed:
    """Lines for the csv module, and the first line, size and fault of the record being read."""

    lines: Iterator[Line]
    first: int = 0
    size: int = 0
    fault: Unreadable | None = None

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self.lines, None)
        if line is None or self.size > MAX_BYTES:
            if self.first:
                self.fault = self.fault or Unreadable("opens a quote that is not closed")
            raise StopIteration
        self.first = self.first or line.number
        self.size += len(line.text)
        if line.fault is not None and self.fault is None:
            which = "" if line.number == self.first else f"has a line {line.number} that "
            self.fault = Unreadable(which + line.fault.reason)
        return line.text.replace("\r", _LONE_CR) + line.end


def _table(
    cells: Iterator[tuple[int, list[str] | Unreadable]], columns: Columns, headed: bool, name: str
) -> Iterator[Record]:
    """Records of rows of cells; the first row names the columns."""
    header: list[str] = []
    chosen = Columns()
    for line, row in cells:
        if isinstance(row, Unreadable):
            if headed and not header:
                raise ConfigError(f"{name}, line {line}: {row.reason}")
            yield Record(line, row)
        elif not header and (headed or is_header(row)):
            header = row
            try:
                chosen = columns.choose(header)
            except ConfigError as error:
                raise ConfigError(f"{name} {error}") from None
        elif not header:
            yield from _headless(line, row, cells, name)
            return
        elif row == [""] and len(header) > 1:
            yield Record(line, BLANK)
        elif len(row) < len(header) and (missing := next((c for c in chosen[:2] if c in header[len(row) :]), None)):
            yield Record(line, Unreadable(f"has fewer columns than the header: column {clipped(missing)!r} is missing"))
        elif any(row[len(header) :]):
            yield Record(line, Unreadable(f"has {len(row)} columns; the header has {len(header)}"))
        else:
            values = dict(zip(header, row, strict=False))
            label = None if chosen.label is None else values.get(chosen.label)
            yield Record(line, _row(values, chosen), label, chosen.label)


def _headless(
    line: int, row: list[str], rest: Iterator[tuple[int, list[str] | Unreadable]], name: str
) -> Iterator[Record]:
    """Records of a table without a header: text, or text and second text.

    ConfigError where the first rows look like something else: a second column of numbers holds labels.
    """
    for index, (at, cells) in enumerate(itertools.chain([(line, row)], rest)):
        if isinstance(cells, Unreadable):
            yield Record(at, cells)
        elif len(cells) > 2:
            fault = f"has {len(cells)} columns; without a header a row is text, or text and pair"
            if index == 0:
                raise ConfigError(f"{name} {fault}: name the columns in a first line")
            yield Record(at, Unreadable(fault))
        elif index < 2 and len(cells) == 2 and number(cells[1]) is not None:
            raise ConfigError(
                f"{name} has a second column with numbers such as {clipped(cells[1])!r}, and no header with usual "
                "names: name the columns in a first line"
            )
        else:
            yield Record(at, cells[0] if len(cells) == 1 else tuple(cells))


def _parquet(file: Path, columns: Columns, tagged: bool) -> Iterator[Record]:
    try:
        import pyarrow.parquet
    except ImportError:
        raise ConfigError(f"{file}: reading Parquet needs pyarrow: pip install 'pfengine[train]'") from None
    if file == STDIN or not file.is_file():
        raise ConfigError(f"{display_name(file)}: Parquet is read from its end, so it must be a file")
    try:
        table = pyarrow.parquet.ParquetFile(file)
        names: Sequence[str] = table.schema_arrow.names
    except Exception as error:  # pyarrow raises errors of many types for a damaged file
        raise ConfigError(f"{file} cannot be read: {_first_line(error)}") from None
    try:
        chosen = columns.choose(names, tagged)
    except ConfigError as error:
        raise ConfigError(f"{file} {error}") from None
    return _parquet_rows(table, chosen)


def _parquet_rows(table: Any, chosen: Columns) -> Iterator[Record]:
    wanted = [column for column in chosen if column is not None]
    row = 0
    with table:
        try:
            flat = None if any("." in column for column in wanted) else wanted  # a dot selects from a struct
            for batch in table.iter_batches(1024, columns=flat):
                parts = {column: batch.column(batch.schema.get_field_index(column)).to_pylist() for column in wanted}
                for values in zip(*parts.values(), strict=True):
                    row += 1
                    record = dict(zip(parts, values, strict=True))
                    label = None if chosen.label is None else record[chosen.label]
                    yield Record(row, _row(record, chosen), label, chosen.label)
        except Exception as error:  # of many types, as above
            yield Record(row + 1, Unreadable(f"cannot be read, nor what follows it: {_first_line(error)}"))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
