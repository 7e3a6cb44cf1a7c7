"""Words with tags from files: the columns of CoNLL, JSON lines and Parquet."""

from __future__ import annotations

from pathlib import Path

import pytest

import pfengine
from pfengine import data
from pfengine.data import TaggedExample

COLUMNS = """-DOCSTART- -X- -X- O

Ada NNP I-NP B-PER
sleeps VBZ I-VP O

In IN I-PP O
New NNP I-NP B-LOC
York NNP I-NP I-LOC
"""
ROWS = [
    TaggedExample(("Ada", "sleeps"), ("B-PER", "O")),
    TaggedExample(("In", "New", "York"), ("O", "B-LOC", "I-LOC")),
]
LINES = (
    '{"id": 1, "tokens": ["Ada", "sleeps"], "tags": ["B-PER", "O"]}\n\n'
    '{"tokens": ["In", "New", "York"], "tags": ["O", "B-LOC", "I-LOC"]}\n'
)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train.conll", COLUMNS),
        ("train.txt", COLUMNS.replace(" ", "\t").replace("\n\n", "\n\n\n") + "\n\n"),
        ("eng.train", COLUMNS.replace("\n", "\r\n")),
        ("train.jsonl", LINES),
        ("train.jsonl", LINES.replace("tokens", "words").replace("tags", "ner_tags")),
    ],
)
def test_forms(tmp_path: Path, name: str, content: str) -> None:
    file = tmp_path / name
    file.write_bytes(content.encode())
    assert data.read_tagged(file, labelled=True) == ROWS
    assert data.read_tagged(file, labelled=False, max_rows=1) == [TaggedExample(("Ada", "sleeps"), None)]
    assert data.tag_names(ROWS, name) == ("B-LOC", "B-PER", "I-LOC", "O")
    assert data.tag_ids(ROWS, ("O", "B-PER", "B-LOC", "I-LOC"), name) == [[1, 0], [0, 2, 3]]


def test_parquet_and_ids_as_tags(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"id": ["0"], "tokens": [["Ada", "sleeps"]], "ner_tags": [[10, 9]]})
    pyarrow.parquet.write_table(table, tmp_path / "train.parquet")
    rows = data.read_tagged(data.locate(tmp_path, "train"))
    assert rows == [TaggedExample(("Ada", "sleeps"), ("10", "9"))]
    assert data.tag_names(rows, "x") == ("9", "10")


def test_a_space_within_a_word_and_one_column(tmp_path: Path) -> None:
    (tmp_path / "a.conll").write_text("New York\tB\n1\u00a0000\tO\n")
    assert data.read_tagged(tmp_path / "a.conll") == [TaggedExample(("New York", "1\u00a0000"), ("B", "O"))]
    (tmp_path / "b.conll").write_text("New\nYork\n\n")
    assert data.read_tagged(tmp_path / "b.conll") == [TaggedExample(("New", "York"), None)]


def test_rows_to_tag_are_read_one_by_one(tmp_path: Path) -> None:
    (tmp_path / "a.conll").write_text("Ada O\nwalks\n\nAda O\n")
    bad, good = data.stream(tmp_path / "a.conll")
    assert bad.reason == "has 1 columns, and the first word of the file has 2"
    assert good == {"words": ["Ada"]}
    (tmp_path / "a.jsonl").write_text('{"words": ["Ada"]}\n{"text": "Ada", "tokens": ["Ada"]}\n')
    assert list(data.stream(tmp_path / "a.jsonl")) == [{"words": ["Ada"]}, "Ada"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.conll", "", "no rows"),
        ("x.conll", "a O\n\nb O\nc\n", r"x\.conll, line 4: has 1 columns, and the first word of the file has 2"),
        ("x.conll", "a\nb\n", r"line 1: has no tags; give them in the last column"),
        ("x.conll", "a O\n\t O\n", "line 1: has a word 1 that is ''; words are strings, not blank"),
        (
            "x.jsonl",
            '{"tokens": ["a"], "tags": ["O"]}\n{"tokens": ["a"], "tags": []}\n',
            "line 2: has 1 words and 0",
        ),
        (
            "x.jsonl",
            '{"tokens": ["a", 1], "tags": ["O", "O"]}\n',
            "line 1: has a word 1 that is 1; words",
        ),
        ("x.jsonl", '{"tokens": ["a"], "tags": [null]}\n', "line 1: has a tag 0 that is None; it must be a name or"),
        ("x.jsonl", '{"tokens": ["a"], "tags": "O"}\n', "line 1: has tags of type str"),
        ("x.jsonl", '{"tokens": [], "tags": []}\n', "line 1: has no words"),
        ("x.jsonl", '{"text": "a b", "label": 1}\n', "line 1: has the columns text, label; the words must be in"),
        ("x.jsonl", '{"tokens": "a b", "tags": ["O"]}\n', "line 1: is not a list of words"),
        ("x.tsv", "sentence\tlabel\n" + "good film\t1\n" * 1000, r"x\.tsv is one sentence of 1001 words; a blank line"),
        ("x.jsonl", '{"tokens": ["a"]}\n', "line 1: has no tags; give them in"),
    ],
)
def test_faults_name_file_and_line(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(pfengine.ConfigError, match=message) as caught:
        data.read_tagged(tmp_path / name, labelled=True)
    assert name in str(caught.value)


def test_other_faults(tmp_path: Path) -> None:
    (tmp_path / "a.conll").write_text("Ada O\n")
    (tmp_path / "a.jsonl").write_text('{"words": ["Ada"], "tags": ["O"]}\n')
    with pytest.raises(pfengine.ConfigError, match="is a list of words, not a text"):
        data.read(tmp_path / "a.jsonl")
    with pytest.raises(pfengine.ConfigError, match=r"a\.conll has the columns of CoNLL, which have no names"):
        data.read_tagged(tmp_path / "a.conll", text="words")
    with pytest.raises(pfengine.ConfigError, match="a tagger reads one list of words"):
        data.read_tagged(tmp_path / "a.jsonl", pair="b")
    rows = data.read_tagged(tmp_path / "a.conll")
    with pytest.raises(pfengine.ConfigError, match="needs two tags, and the 1 rows have O"):
        data.tag_names(rows, "a.conll")
    with pytest.raises(pfengine.ConfigError, match=r"a\.conll, row 0: label 'O' is not one of A, B"):
        data.tag_ids(rows, ("A", "B"), "a.conll")
