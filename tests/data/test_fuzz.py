"""Damaged files of every kind, with a fixed seed: rows, or an error of ours, and never anything else.

PFENGINE_FUZZ_CASES says how many files of each kind are damaged, in the place of a few hundred.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import random
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

import pfengine
from pfengine import data
from pfengine.data import Example
from pfengine.tokenization import Row, Text, Unreadable, parse

CASES = int(os.environ.get("PFENGINE_FUZZ_CASES", 200))
WHOLE = {
    "txt": "a film\n\nthe plot\r\nümläuts\n",
    "tsv": "sentence1\tsentence2\tlabel\na\tb\t1\nc\td\t0\ne\tf\t1.5\n",
    "csv": 'text,label\n"a ""quoted"", text",1\nb,True\n"two\nlines",-1\n',
    "jsonl": '{"text": "a", "label": 1}\n{"text": "b", "text_pair": null, "label": true}\n"c"\n{"input_ids": [1, 2]}\n',
}
PIECES = [
    b'"', b"'", b"\r", b"\n", b"\r\n", b"\0", b"\t", b",", b"{", b"}", b"[", b"]", b":", b"\\", b"\\ud800", b"null",
    b"NaN", b"-Infinity", b"1e999", b"9" * 5000, b"[" * 3000, b"\xff", b"\xe9", b"\xed\xa0\x80", b"\xef\xbb\xbf",
    b"\xff\xfe", b"\xfe\xff", b"\x1f\x8b", b"label", b"text\t", b"text,", b"\xe2\x80\xa8", b"\x1a", b"a" * 200_000,
]  # fmt: skip
UNDO: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("", bytes), ("", bytes), (".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress),
]  # fmt: skip


def damaged(content: bytes, draw: random.Random) -> bytes:
    for _ in range(draw.choice([1, 1, 2, 5])):
        place, end = draw.randint(0, len(content)), draw.randint(0, len(content))
        match draw.randint(0, 5):
            case 0 if content:
                flipped = bytearray(content)
                flipped[place - 1] ^= 1 << draw.randint(0, 7)
                content = bytes(flipped)
            case 1:
                content = content[:place]
            case 2:
                content = content[: min(place, end)] + content[max(place, end) :]
            case 3:
                content = content[:place] + content[min(place, end) : max(place, end)] + content[place:]
            case _:
                content = content[:place] + draw.choice(PIECES) + content[place:]
    return content


def check(file: Path) -> None:
    """All ways to read a file."""
    rows, said, named = [], [], 0
    try:
        rows = list(data.stream(file))
    except pfengine.PFEngineError as error:
        said.append(str(error))
    for i, row in enumerate(rows):
        try:
            assert isinstance(parse(i, row), (Text, Row))
        except pfengine.InputError as error:
            said.append(error.reason)
    for labelled in (True, None, False):
        try:
            examples = data.read(file, labelled=labelled)
        except pfengine.PFEngineError as error:
            named += str(file) in str(error)
            said.append(str(error))
            continue
        assert all(isinstance(example, Example) for example in examples)
        assert len(examples) <= len([row for row in rows if not isinstance(row, Unreadable)])
        named += 1
        if labelled:
            said += checked_labels(examples)
    assert named == 3, "every error names the file"
    assert not [reason for reason in said if "\n" in reason or len(reason) > 2000]


def checked_labels(examples: list[Example]) -> list[str]:
    said = []
    found = [example.label for example in examples if example.label is not None]
    try:
        assert data.label_sets(examples, ("negative", "positive"), "f").shape == (len(examples), 2)
    except pfengine.ConfigError as error:
        said.append(str(error))
    try:
        names = data.names_of(found)
    except pfengine.ConfigError as error:  # lists of labels
        return [*said, str(error)]
    for labels in (names, ("negative", "positive")):
        try:
            ids = data.label_ids(examples, labels, "f") if labels else data.scores(examples, "f")
        except pfengine.ConfigError as error:
            said.append(str(error))
            assert labels is not names or len(found) < len(examples)
        else:
            assert len(ids) == len(examples)
    return said


@pytest.mark.fuzz
@pytest.mark.parametrize("kind", WHOLE)
def test_damaged_files(tmp_path: Path, kind: str) -> None:
    draw = random.Random(kind)
    warnings.simplefilter("ignore")
    for _ in range(CASES):
        content = WHOLE[kind].encode(draw.choice(["utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1"]))
        ending, compress = draw.choice(UNDO)
        if draw.random() < 0.7:
            content = damaged(content, draw)
        content = compress(content)
        if ending and draw.random() < 0.5:
            content = damaged(content, draw)
        file = tmp_path / f"x.{kind}{ending}"
        file.write_bytes(content)
        check(file)


@pytest.mark.fuzz
@pytest.mark.slow
def test_damaged_parquet(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    draw, whole = random.Random("parquet"), io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", None, "c"] * 50, "label": [1.0, 2.0, None] * 50}), whole)
    for _ in range(CASES):
        file = tmp_path / "x.parquet"
        file.write_bytes(damaged(whole.getvalue(), draw))
        check(file)


def test_values_that_are_no_rows(tmp_path: Path) -> None:
    """JSON of every shape in the place of a row, a text, a second text and a label."""
    values = [None, True, 0, -1.5, 1e308, "", "a", [], ["a", "b"], {}, {"text": {}}, {"input_ids": []}, {"label": 1}]
    for key in (None, "text", "text_pair", "label", "input_ids", "token_type_ids", "attention_mask"):
        lines = [json.dumps(value if key is None else {"text": "a", key: value}) for value in values]
        (tmp_path / "x.jsonl").write_text("\n".join(lines) + "\n")
        check(tmp_path / "x.jsonl")
        for line in lines:
            (tmp_path / "y.jsonl").write_text(line + "\n")
            check(tmp_path / "y.jsonl")
