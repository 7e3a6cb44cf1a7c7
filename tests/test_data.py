"""Labelled rows from files, and holding rows out."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

import pfengine
from pfengine import data
from pfengine.data import Example


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.tsv", 'sentence\tlabel\n"quoted" text\t1\nb\t0\n'),
        ("x.csv", 'label,text\n1,"""quoted"" text"\n0,b\n'),
        ("x.jsonl", '{"label": 1, "text": "\\"quoted\\" text"}\n{"text": "b", "label": 0}\n'),
    ],
)
def test_formats(tmp_path: Path, name: str, content: str, zipped: bool) -> None:
    file = tmp_path / (name + ".gz" * zipped)
    file.write_bytes(gzip.compress(content.encode()) if zipped else content.encode())
    assert data.read(file) == [Example('"quoted" text', None, "1"), Example("b", None, "0")]


def test_pairs_and_unlabelled(tmp_path: Path) -> None:
    (tmp_path / "dev.tsv").write_text("sentence1\tsentence2\na\tb\n")
    (example,) = data.read(tmp_path)
    assert (example.row, example.label) == (("a", "b"), None)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.txt", "a", "no known kind"),
        ("x.tsv", "", "no rows"),
        ("x.tsv", "sentence\tlabel\n", "no rows"),
        ("x.tsv", "words\tlabel\na\t1\n", "columns words, label"),
        ("x.tsv", "sentence\tlabel\na\t1\nb\n", "line 3: has fewer columns"),
        ("x.jsonl", '{"text": "a"}\n{"text"\n', "line 2: is not JSON"),
        ("x.jsonl", '["a"]\n', "line 1: is no JSON object"),
        ("x.csv.gz", "not zipped", "cannot be read"),
    ],
)
def test_faults_name_file_and_line(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(pfengine.ConfigError, match=message) as caught:
        data.read(tmp_path / name)
    assert name in str(caught.value)


def test_missing_split(tmp_path: Path) -> None:
    with pytest.raises(pfengine.ConfigError, match="no split 'dev'"):
        data.read(tmp_path)


def test_labels_by_name_or_id() -> None:
    examples = [Example("a", None, label) for label in ("1", "no", "0", "yes")]
    assert data.label_ids(examples, ("no", "yes"), "f") == [1, 0, 0, 1]
    with pytest.raises(pfengine.ConfigError, match="f, row 1: label 'no' is none of a, b"):
        data.label_ids(examples, ("a", "b"), "f")


def test_hold_out_takes_whole_rows_and_leaves_none_of_their_parts() -> None:
    sentences = [f"the film number {i} is {word}" for i, word in enumerate(["good", "bad", "slow", "fine"] * 5)]
    phrases = [sentence.split(" ", 2)[2] for sentence in sentences] + ["the film", "is good"]
    examples = [Example(text, None, "0") for text in [*phrases, *sentences, *sentences[:3]]]
    kept, held = data.hold_out(examples, 6, seed=1)
    assert len({example.text for example in held}) == 6
    assert all(example.text in sentences for example in held)
    assert not any(example.text in other.text for example in kept for other in held)
    assert "the film" not in {example.text for example in kept}
    assert {example.text for example in kept} >= set(sentences) - {example.text for example in held}
    assert data.hold_out(examples, 6, seed=1) == (kept, held)
    assert data.hold_out(examples, 6, seed=2) != (kept, held)


def test_hold_out_of_pairs() -> None:
    examples = [Example(f"a{i}", f"b{i}", "0") for i in range(20)]
    kept, held = data.hold_out(examples, 5, seed=0)
    assert len(held) == 5
    assert set(kept) | set(held) == set(examples)
    assert not set(kept) & set(held)
