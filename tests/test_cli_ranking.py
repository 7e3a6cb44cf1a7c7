"""`pfengine rank`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import pfengine

from .test_cli import Outcome
from .test_cli import run as run

Run = Callable[..., Outcome]
QUERY = "is the film very good"
DOCUMENTS = ["a charming journey", "the film is very good", "unflinchingly bleak", "it was slow"]


@pytest.fixture(scope="module")
def path(make_text_checkpoint: Callable[..., Path]) -> Path:
    regression = {"problem_type": "regression"}
    return make_text_checkpoint(labels=1, head="linear", criterion="patience:,0.8", threshold=2.0, config=regression)


@pytest.mark.parametrize(("name", "content"), [
    ("documents.txt", "\n".join(DOCUMENTS) + "\n"),
    ("documents.jsonl", "".join(json.dumps({"text": text, "id": i}) + "\n" for i, text in enumerate(DOCUMENTS))),
    ("documents.tsv", "label\tsentence\n" + "".join(f"1\t{text}\n" for text in DOCUMENTS)),
])  # fmt: skip
def test_json_equals_python(run: Run, path: Path, tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    result = run("rank", path, QUERY, tmp_path / name, "--json", "--precision", "fp32", "--top-k", "3")
    assert result.json == pfengine.load(path, precision="fp32").rank(QUERY, DOCUMENTS, top_k=3)
    assert (result.code, result.err) == (0, "")


def test_lines_are_shown_best_first(run: Run, path: Path) -> None:
    result = run("rank", path, QUERY, "-", "--criterion", "never", stdin="\n".join(DOCUMENTS))
    ranked = pfengine.load(path, criterion="never").rank(QUERY, DOCUMENTS)
    for line, one in zip(result.out.splitlines(), ranked, strict=True):
        assert line == f"{one['score']:.4f}  layer  5  {one['index']:>4}  {DOCUMENTS[one['index']]}"


def test_a_bad_document_does_not_lose_the_others(run: Run, path: Path) -> None:
    content = "\n".join([json.dumps(DOCUMENTS[0]), "not json", json.dumps({"text": DOCUMENTS[1], "text_pair": "b"})])
    for options in ([], ["--json"]):
        result = run("rank", path, QUERY, "-", "--format", "jsonl", *options, stdin=content)
        assert (result.code, result.err) == (1, "error: 2 of 3 documents could not be ranked\n")
        lines = result.out.splitlines()
        assert len(lines) == 3
        assert ("error" in lines[1]) if options else lines[1].startswith("row 1: ")
    assert [one.get("row") for one in result.json] == [None, 1, 2]


@pytest.mark.parametrize(("arguments", "code", "said"), [
    (["sst2", QUERY, "-"], 2, "has 2 labels and does not rank documents"),
    (["sst2", "", "-"], 2, "query is empty"),
    (["sst2", QUERY, "nowhere.txt"], 2, "nowhere.txt"),
    (["sst2", QUERY, "-", "--top-k", "-1"], 2, "--top-k is -1"),
    (["sst2", "\udcff", "-"], 2, "the query is not UTF-8"),
    (["sst2", QUERY], 2, "file"),
])  # fmt: skip
def test_wrong_use(run: Run, arguments: list[str], code: int, said: str) -> None:
    result = run("rank", *arguments, stdin="a")
    assert result.code == code
    assert said in result.err.lower() or said in result.err


def test_help_shows_an_example_and_the_command_is_listed(run: Run) -> None:
    assert "Example: pfengine rank" in " ".join(run("rank", "--help").out.split())
    assert "rank" in run("--help").out.split()
