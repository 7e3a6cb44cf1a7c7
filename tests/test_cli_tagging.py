"""`pfengine tag`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import pfengine

from .test_cli import Outcome
from .test_cli import run as run

Run = Callable[..., Outcome]
NAMES = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
TEXTS = ["The film is GOOD, very good!", "a charming unflinchingly bleak journey"]


@pytest.fixture(scope="module")
def path(make_text_checkpoint: Callable[..., Path]) -> Path:
    config = {"id2label": {str(i): name for i, name in enumerate(NAMES)}}
    return make_text_checkpoint(labels=5, head={"type": "tagger"}, criterion="tokee:,3", threshold=0.7, config=config)


def test_json_equals_python(run: Run, path: Path) -> None:
    result = run("tag", path, *TEXTS, "--json", "--precision", "fp32")
    found = pfengine.load(path, precision="fp32").tag(TEXTS)
    assert result.json == [{"entities": list(one), "words": one.words} for one in found]
    assert result.code == 0


def test_entities_are_shown(run: Run, path: Path) -> None:
    result = run("tag", path, *TEXTS, "--criterion", "never")
    found = pfengine.load(path, criterion="never").tag(TEXTS)
    for line, one in zip(result.out.splitlines(), found, strict=True):
        assert line.startswith(f"{one[0]['label']} {one[0]['score']:.4f} {one[0]['text']!r}")
        assert line.endswith(f"layer  5.0  {one.text}")


@pytest.mark.parametrize(("name", "content"), [
    ("rows.jsonl", "".join(json.dumps({"words": text.split()}) + "\n" for text in TEXTS)),
    ("rows.conll", "\n\n".join("\n".join(f"{word} O" for word in text.split()) for text in TEXTS) + "\n"),
])  # fmt: skip
def test_words_of_files(run: Run, path: Path, tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    result = run("tag", path, "--file", tmp_path / name, "--json", "--precision", "fp32")
    found = pfengine.load(path, precision="fp32").tag([text.split() for text in TEXTS])
    assert result.json == [{"entities": list(one), "words": one.words} for one in found]


def test_a_bad_row_does_not_lose_the_others(run: Run, path: Path) -> None:
    content = json.dumps({"text": TEXTS[0]}) + "\n" + json.dumps({"words": [1]}) + "\n" + json.dumps({"text": "a"})
    result = run("tag", path, "--format", "jsonl", "--json", stdin=content)
    assert result.code == 1
    assert [sorted(one) for one in result.json] == [["entities", "words"], ["error", "row"], ["entities", "words"]]
    assert "1 of 3 rows could not be tagged" in result.err


def test_what_does_not_fit_is_said(run: Run, path: Path) -> None:
    for arguments in (("tag", "sst2", "a"), ("classify", path, "a")):
        result = run(*arguments)
        assert result.code == 2
        assert "use tag" in result.err or "use classify" in result.err
    assert run("tag", path, "a", "--file", "b").code == 2
