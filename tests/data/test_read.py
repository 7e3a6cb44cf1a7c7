"""Labelled rows from files."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

import pfengine
from pfengine import data, tasks
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
        ("x.tsv", "", "no rows"),
        ("x.tsv", "sentence\tlabel\n", "no rows"),
        ("x.tsv", "words\tlabel\na\t1\n", "columns words, label"),
        ("x.tsv", "sentence\tlabel\na\t1\nb\n", "line 3: has no label in column 'label'"),
        ("x.jsonl", '{"text": "a"}\n{"text"\n', "line 2: is not JSON"),
        ("x.jsonl", '["a"]\n', "line 1: is neither text nor an object with text"),
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


def test_parquet(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"question1": ["a", "c"], "question2": ["b", "d"], "is_duplicate": [1, 0]})
    pyarrow.parquet.write_table(table, tmp_path / "train.parquet")
    assert data.read(data.locate(tmp_path, "train")) == [Example("a", "b", "1"), Example("c", "d", "0")]
    (tmp_path / "train.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(pfengine.ConfigError, match=r"train\.parquet cannot be read"):
        data.read(tmp_path / "train.parquet")


@pytest.mark.parametrize(
    ("header", "line", "expected"),
    [  # GLUE's own layouts
        ("sentence\tlabel", "a b\t1", ("a b", None, "1")),
        ("Quality\t#1 ID\t#2 ID\t#1 String\t#2 String", "1\t7\t8\ta\tb", ("a", "b", "1")),
        ("\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String", "1\t7\t8\ta\tb", ("a", "b", "1")),
        ("index\tquestion\tsentence\tlabel", "0\ta\tb\tentailment", ("a", "b", "entailment")),
        ("index\tsentence1\tsentence2\tlabel", "0\ta\tb\tnot_entailment", ("a", "b", "not_entailment")),
        ("id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate", "0\t1\t2\ta\tb\t0", ("a", "b", "0")),
        (
            "index\tpromptID\tpairID\tgenre\tsentence1\tsentence2\tlabel1\tgold_label",
            "0\t1\t2\tx\ta\tb\tneutral\tentailment",
            ("a", "b", "entailment"),
        ),
        ("index\tgenre\tsentence1\tsentence2\tscore", "0\tx\ta\tb\t3.8", ("a", "b", "3.8")),
    ],
)
def test_glue_layouts(tmp_path: Path, header: str, line: str, expected: tuple) -> None:
    (tmp_path / "train.tsv").write_text(f"{header}\n{line}\n", encoding="utf-8")
    assert data.read(data.locate(tmp_path, "train")) == [Example(*expected)]


def test_columns_by_name(tmp_path: Path) -> None:
    file = tmp_path / "x.csv"
    file.write_text("text,title,body,mood\n1,a,b,c\n")
    assert data.read(file, text="title", pair="body", label="mood") == [Example("a", "b", "c")]
    assert data.read(file, text="body") == [Example("b", None, None)]
    assert data.read(file, pair="body", label="mood") == [Example("1", "b", "c")]
    with pytest.raises(pfengine.ConfigError, match="no column 'feeling'; it has text, title, body, mood"):
        data.read(file, label="feeling")


def test_splits_by_their_other_names(tmp_path: Path) -> None:
    (tmp_path / "validation.csv").write_text("text,label\na,1\n")
    assert data.locate(tmp_path, "dev").name == "validation.csv"
    (tmp_path / "dev_matched.tsv").write_text("text\tlabel\nb\t1\n")
    assert data.locate(tmp_path, "dev").name == "validation.csv"
    (tmp_path / "dev.jsonl").write_text('{"text": "c"}\n')
    assert data.locate(tmp_path, "dev").name == "dev.jsonl"


def test_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: list[tuple] = []

    def download(repo: str, file: str, repo_type: str) -> str:
        asked.append((repo, file, repo_type))
        if "qnli" in file:
            raise ConnectionError("no route to host\nand more")
        return str(tmp_path / "x.parquet")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    for name, split in (("MRPC", "train"), ("sst2", "dev"), ("mnli", "dev"), ("STS-B", "test")):
        assert data.locate(name, split) == tmp_path / "x.parquet"
    assert [file for _, file, _ in asked] == [
        "mrpc/train-00000-of-00001.parquet", "sst2/validation-00000-of-00001.parquet",
        "mnli/validation_matched-00000-of-00001.parquet", "stsb/test-00000-of-00001.parquet",
    ]  # fmt: skip
    with pytest.raises(pfengine.ConfigError, match="cannot be downloaded: no route to host; give a directory"):
        data.locate("qnli", "train")
    with pytest.raises(pfengine.ConfigError, match=r"CoLA does not exist; .* SST-2, MRPC"):
        data.locate("CoLA", "train")
    with pytest.raises(pfengine.ConfigError, match="does not exist"):
        data.locate("missing/mrpc", "train")


def test_tasks_by_name() -> None:
    for name in ("SST-2", "sst2", "some/where/SST-2", "sst_2"):
        task = tasks.find(name)
        assert task is not None
        assert (task.name, task.labels, task.pair) == ("SST-2", ("negative", "positive"), False)
    assert tasks.find("imdb") is None
    regression = tasks.find("stsb")
    assert regression is not None
    assert regression.regression


def test_the_shared_tables_are_glue_tasks(shared: Path) -> None:
    for name in ("SST-2", "MRPC", "RTE", "STS-B"):
        task, examples = tasks.find(name), data.read(data.locate(shared / "data" / name, "dev"))
        assert task is not None
        assert all((example.pair is not None) == task.pair for example in examples)
        if task.regression:
            assert 0 <= min(data.scores(examples, name)) <= max(data.scores(examples, name)) <= 5
        else:
            assert set(data.label_ids(examples, task.labels, name)) == {0, 1}


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("x.csv", "text,label\na,1\nb,\n"),
        ("x.tsv", "text\tlabel\na\t1\nb\n"),
        ("x.tsv", "text\tlabel\na\t1\nb\t \n"),
        ("x.jsonl", '{"text": "a", "label": 1}\n{"text": "b", "label": null}\n'),
        ("x.jsonl", '{"text": "a", "label": 1}\n{"text": "b", "label": NaN}\n'),
        ("x.jsonl", '{"text": "a", "label": 1}\n{"text": "b"}\n'),
        ("x.parquet", [1.0, None]),
        ("x.parquet", [1.0, float("nan")]),
    ],
)
def test_missing_labels(tmp_path: Path, name: str, rows: str | list) -> None:
    file = tmp_path / name
    if isinstance(rows, list):
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.table({"text": ["a", "b"], "label": rows}), file)
        place = "row 2"
    else:
        file.write_text(rows)
        place = f"line {len(rows.splitlines())}"
    for labelled in (True, None):
        with pytest.raises(pfengine.ConfigError, match=f"{name}, {place}: has no label( in column 'label')?; label it"):
            data.read(file, labelled=labelled)
    assert [example.label for example in data.read(file, labelled=False)] == [None, None]


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("x.csv", "text,label\nb,\n"),
        ("x.tsv", "text\tlabel\nb\n"),
        ("x.jsonl", '{"text": "b", "label": null}\n'),
    ],
)
def test_no_label_at_all_is_none_where_none_is_needed(tmp_path: Path, name: str, rows: str) -> None:
    (tmp_path / name).write_text(rows)
    assert data.read(tmp_path / name) == [Example("b", None, None)]
    with pytest.raises(pfengine.ConfigError, match="has no label in column 'label'"):
        data.read(tmp_path / name, labelled=True)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", '{"text": "a", "label": [[1]]}\n', "line 1: has a label of type list"),
        (
            "x.jsonl",
            '{"text": "a"}\n{"text": "b", "text_pair": "c"}\n',
            "line 2: has two texts, the first row has one",
        ),
        (
            "x.jsonl",
            '{"text": "a", "text_pair": "c"}\n{"text": "b"}\n',
            "line 2: has one text, the first row has two",
        ),
        ("x.jsonl", '{"text": "a"}\n{"text": 3}\n', "line 2: column 'text' is of type int; it must be a string"),
        ("x.jsonl", '{"input_ids": [1]}\n', "line 1: is neither text"),
        ("x.txt", "a\nb\n", r"x\.txt has no column with labels"),
    ],
)
def test_rows_that_do_not_go_together(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(pfengine.ConfigError, match=message):
        data.label_ids(data.read(tmp_path / name), ("no", "yes"), str(tmp_path / name))


def test_only_the_first_rows_are_read(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes(b"a\nb\n\xff\n")
    assert [example.text for example in data.read(tmp_path / "x.txt", max_rows=2)] == ["a", "b"]
