"""Rows to classify, whatever they come in: the same rows, lazily, a bad one in its place."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import random
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pfengine
from pfengine import data
from pfengine.tokenization import Unreadable

ROWS = ['a "quoted" text', "tabs, commas; and ümläuts", "плохо", "fine"]
LABELS = ["1", "0", "0", "1"]


def written(kind: str, newline: str = "\n") -> str:
    lines = {
        "txt": ROWS,
        "tsv": ["label\tsentence", *(f"{label}\t{row}" for label, row in zip(LABELS, ROWS, strict=True))],
        "csv": ["sentence,label", *('"' + row.replace('"', '""') + f'",{label}'
                                    for label, row in zip(LABELS, ROWS, strict=True))],
        "jsonl": [json.dumps({"sentence": row, "label": label}) for label, row in zip(LABELS, ROWS, strict=True)],
    }[kind]  # fmt: skip
    return newline.join(lines) + newline


UNDO: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}


@pytest.mark.parametrize("kind", ["txt", "tsv", "csv", "jsonl"])
@pytest.mark.parametrize("ending", UNDO)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_name_compression_and_encoding_change_nothing(tmp_path: Path, kind: str, ending: str, encoding: str) -> None:
    content = UNDO[ending](written(kind).encode(encoding))
    for name in (f"rows.{kind}{ending}", f"ROWS.{kind.upper()}{ending.upper()}"):
        (tmp_path / name).write_bytes(content)
        assert list(data.stream(tmp_path / name)) == ROWS
    (tmp_path / "nameless").write_bytes(content)
    assert list(data.stream(tmp_path / "nameless", {"txt": "text"}.get(kind, kind))) == ROWS
    if kind != "txt" and encoding == "utf-8-sig":
        assert [example.label for example in data.read(tmp_path / f"rows.{kind}{ending}")] == LABELS


@pytest.mark.parametrize("kind", ["txt", "tsv", "csv", "jsonl"])
@pytest.mark.parametrize("tail", ["", "\n", "\n\n\n", "\r\n\r\n"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_line_ends(tmp_path: Path, kind: str, newline: str, tail: str) -> None:
    file = tmp_path / f"rows.{kind}"
    file.write_bytes((written(kind, newline).removesuffix(newline) + tail).encode())
    assert list(data.stream(file)) == ROWS
    file.write_bytes(written(kind, newline).replace("tabs, ", "a\rb ").encode())
    if kind != "jsonl":  # where it must be escaped
        assert list(data.stream(file))[1].startswith("a\rb commas")


@pytest.mark.parametrize(
    ("name", "content", "rows"),
    [
        ("x.txt", "a\n\nb\n \n\n\n", ["a", "", "b", " "]),
        ("x.txt", "a\u2028b\x0bc\x0cd\x85e\x1cf\n", ["a\u2028b\x0bc\x0cd\x85e\x1cf"]),
        ("x.tsv", "a\tpair\n\nb\n", [("a", "pair"), "", "b"]),
        ("x.tsv", "Sentence1\tsentence2\tx\na\tb\t\n", [("a", "b")]),
        ("x.csv", 'text,label\n\n"two\nlines",1\n\nb,0\n', ["two\nlines", "b"]),
        ("x.csv", "label,text,\n1,a,,,\n", ["a"]),
        ("x.csv", "text,label\n", []),
        ("x.csv", "text\n" + "a" * 200_000 + "\n", ["a" * 200_000]),
        ("x.ndjson", '{"question1": "a", "question2": "b"}\n"c"\n{"premise": "d", "hypothesis": null}\n',
         [("a", "b"), "c", "d"]),
        ("x.json", '{"input_ids": [1, 2], "attention_mask": [1, 1], "id": 7}\n',
         [{"input_ids": [1, 2], "attention_mask": [1, 1]}]),
        ("empty.tsv.gz", "", []),
    ],
)  # fmt: skip
def test_rows(tmp_path: Path, name: str, content: str, rows: list) -> None:
    (tmp_path / name).write_text(content)
    assert list(data.stream(tmp_path / name)) == rows


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.csv", "id,body,other,mood\n1,a,b,c\n"),
        ("x.tsv", "id\tbody\tother\tmood\n1\ta\tb\tc\n"),
        ("x.jsonl", '{"id": 1, "body": "a", "other": "b", "mood": "c", "text": "no", "text_pair": "no"}\n'),
    ],
)
def test_columns_by_name(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    assert list(data.stream(tmp_path / name, text="body")) == ["a"]
    assert list(data.stream(tmp_path / name, text="body", pair="other", label="mood")) == [("a", "b")]
    with pytest.raises(pfengine.ConfigError, match="no column 'nose'; it has id, body"):
        data.read(tmp_path / name, text="nose")
    with pytest.raises(pfengine.ConfigError, match="two columns at once"):
        data.read(tmp_path / name, text="body", pair="body")


def test_a_label_column_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("sentence,text\na,1\n")
    assert list(data.stream(tmp_path / "x.csv", label="text")) == ["a"]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("x.txt", b"a\nb\xe9c\nd\n", "is not valid UTF-8: byte 0xe9 at position 1"),
        ("x.csv", b"text,label\na,1\nb\xff,0\nd,1\n", "byte 0xff at position 1"),
        ("x.csv", b'text,label\na,1\n"two\nlin\xe9s",0\nd,1\n', "has a line 4 that is not valid UTF-8"),
        ("x.tsv", b"text\tlabel\na\t1\nb\t0\t7\nd\t1\n", "has 3 columns; the header has 2"),
        ("x.tsv", b"label\ttext\n1\ta\n0\n1\td\n", "column 'text' is missing"),
        ("x.tsv", b"text\tlabel\na\t1\n\nd\t1\n", "is a blank line"),
        ("x.tsv", b"a\tpair\nb\tc\td\nd\tpair\n", "has 3 columns; without a header"),
        ("x.jsonl", b'"a"\n{"text"\n"d"\n', "is not JSON"),
        ("x.jsonl", b'"a"\n' + b"[" * 100_000 + b'\n"d"\n', "is not JSON: maximum recursion"),
        ("x.jsonl", b'"a"\n{"text": ' + b"1" * 5000 + b'}\n"d"\n', "is not JSON: Exceeds the limit"),
        ("x.jsonl", b'"a"\n{"text": null}\n"d"\n', "column 'text' is null"),
        ("x.jsonl", b'"a"\n{"sentence": 3}\n"d"\n', "column 'sentence' is of type int"),
        ("x.jsonl", b'"a"\n{"words": "x"}\n"d"\n', "has the columns words; the text must be in one named"),
        ("x.jsonl", b'"a"\n\n"d"\n', "is a blank line"),
        ("x.txt", b"\xff\xfea\0\n\0\x00\xd8b\0\n\0d\0\n\0", "is not valid UTF-16"),
    ],
)
def test_a_bad_row_loses_no_other(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(content)
    first, bad, last = data.stream(tmp_path / name)
    assert isinstance(bad, Unreadable)
    assert reason in bad.reason
    assert [row[0] if isinstance(row, tuple) else row for row in (first, last)] == ["a", "d"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.tsv", b"good film\t1\nbad film\t0\n", "second column with numbers such as '1', and no header"),
        ("x.tsv", b"review\tstars\nbad film\t0\n", "second column with numbers such as '0', and no header"),
        ("x.tsv", b"gj04\t1\t\tOur friends\n", "has 4 columns; without a header"),
        ("x.tsv", b"review\tlabel\nbad film\t0\n", "has the columns review, label; the text must be"),
        ("x.csv", b"good film,1\n", "has the columns good film, 1; the text must be"),
        ("x.csv", b"text;label\ngood;1\n", "has the columns text;label; the text must be"),
        ("x.csv", b"text,text,label\na,b,1\n", "has 2 columns named 'text'"),
        ("x.csv", b"te\xe9xt,label\na,1\n", "line 1: is not valid UTF-8"),
        ("x.tsv.gz", b"text\tlabel\n", "is named .gz, but not compressed like that"),
        ("x.xlsx", b"PK\x03\x04 and so on", "is a zip archive or a spreadsheet"),
        ("x.parquet", b"PAR1 and no more", "cannot be read"),
    ],
)
def test_what_can_be_no_rows_is_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(pfengine.ConfigError, match=message):
        list(data.stream(tmp_path / name))
    with pytest.raises(pfengine.ConfigError, match="is a directory"):
        data.stream(tmp_path)
    with pytest.raises(pfengine.ConfigError, match="format is 'xml'"):
        data.stream(tmp_path / name, "xml")


@pytest.mark.parametrize("ending", [".gz", ".bz2", ".xz"])
def test_rows_before_a_broken_end_are_read(tmp_path: Path, ending: str) -> None:
    draw = random.Random(0)
    rows = [f"{draw.random()}" for _ in range(60_000)]
    whole = UNDO[ending]("\n".join(rows).encode())
    file = tmp_path / f"x.txt{ending}"
    file.write_bytes(whole[: len(whole) * 9 // 10])
    *read, last = data.stream(file)
    assert len(read) > 30_000
    assert read == rows[: len(read)]
    assert isinstance(last, Unreadable)
    assert "cannot be read, nor what follows it" in last.reason
    with pytest.raises(pfengine.ConfigError, match=rf"x\.txt{ending}, line {len(read) + 1}: cannot be read, nor"):
        data.read(file)


def test_a_quote_that_is_never_closed_is_said(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text('text,label\na,1\n"b,0\nc,1\n')
    first, bad = data.stream(tmp_path / "x.csv")
    assert (first, bad) == ("a", Unreadable("opens a quote that is not closed"))
    with pytest.raises(pfengine.ConfigError, match=r"x\.csv, line 3: opens a quote"):
        data.read(tmp_path / "x.csv")


def test_a_line_without_end_does_not_eat_all_memory() -> None:
    (only,) = data.stream("/dev/zero")
    assert isinstance(only, Unreadable)
    assert "no end within 64 MB" in only.reason


def test_parquet_is_read_in_parts(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    file = tmp_path / "rows.PARQUET"
    texts = [f"text {i}" for i in range(3000)]
    pyarrow.parquet.write_table(pyarrow.table({"id": range(3000), "sentence": [*texts[:-1], None]}), file)
    *rows, bad = data.stream(file)
    assert rows == texts[:-1]
    assert bad == Unreadable("column 'sentence' is null; it must be a string")
    with pytest.raises(pfengine.ConfigError, match="row 3000: column 'sentence' is null"):
        data.read(file)


class Pipe:
    """A pipe that is written to while it is read, as `<( )` and standard input are."""

    def __init__(self) -> None:
        self.out, self.into = os.pipe()
        self.path = f"/dev/fd/{self.out}"

    def close(self) -> None:
        os.close(self.into)


@pytest.mark.parametrize("kind", ["text", "jsonl", "csv"])
def test_rows_come_when_their_line_has_come(kind: str) -> None:
    pipe = Pipe()
    rows = data.stream(pipe.path, kind)
    header = b"text,label\n" if kind == "csv" else b""
    lines = {"text": b"row %d\n", "jsonl": b'"row %d"\n', "csv": b"row %d,1\n"}[kind]
    for i in range(3):
        os.write(pipe.into, (header if i == 0 else b"") + lines % i)
        assert next(rows) == f"row {i}"
    pipe.close()
    assert list(rows) == []


def test_a_named_pipe_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.tsv"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_text, args=("text\tlabel\na\t1\n",))
    writer.start()
    assert data.read(path) == [data.Example("a", None, "1")]
    writer.join()


@pytest.mark.parametrize(
    "content", [b"a\nb", b"\xef\xbb\xbfa\r\nb\r\n", gzip.compress(b"a\nb\n")], ids=["text", "mark", "gzip"]
)
def test_standard_input(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    stdin: Any = io.TextIOWrapper(io.BytesIO(content), "ascii")  # whatever the console's encoding is
    monkeypatch.setattr(sys, "stdin", stdin)
    assert list(data.stream("-")) == ["a", "b"]
    assert not stdin.buffer.closed
    monkeypatch.setattr(sys, "stdin", io.StringIO("a\nb\n"))
    assert list(data.stream("-")) == ["a", "b"]
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(pfengine.ConfigError, match="standard input is closed"):
        list(data.stream("-"))
