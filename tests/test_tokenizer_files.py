"""A tokenizer's vocabulary is its family's and fits the model; pairs have the types they have in transformers."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest

import pfengine
from pfengine.rows import Row

from .tokenizers_made import ADDED, JSON, MADE, SETTINGS, load, same_as_transformers, write


def vocabulary(path: Path, family: str) -> dict[str, Any]:
    """A family's own files in place of tokenizer.json, which is removed; none for SentencePiece."""
    model = json.loads((path / JSON).read_text())["model"]
    (path / JSON).unlink()
    if isinstance(model["vocab"], list):
        return {}
    if model["type"] == "WordPiece":
        return {"vocab.txt": "\n".join(sorted(model["vocab"], key=model["vocab"].__getitem__)) + "\n"}
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    return {"vocab.json": model["vocab"], "merges.txt": "\n".join(["#version: 0.2", *merges, ""])}


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "electra", "mpnet"])
def test_a_familys_own_files_are_read_as_transformers_reads_them(
    tokenizer_directories: dict[str, Path], tmp_path: Path, family: str
) -> None:
    path = Path(shutil.copytree(tokenizer_directories[family], tmp_path / "x"))
    write(path, vocabulary(path, family) | {SETTINGS: {"do_lower_case": False, "add_prefix_space": True}})
    same_as_transformers(path, asked=True)


MISSING = "is missing, from which {} reads its vocabulary; add it, or tokenizer.json"
UNFIT: dict[str, tuple[str, dict[str, Any], str]] = {
    "another family's": ("bert", {"vocab.txt": None, "vocab.json": {"the": 0}},
                         "vocab.txt " + MISSING.format("BertTokenizer")),
    "ALBERT's": ("albert", {"vocab.txt": "the\n"}, "spiece.model " + MISSING.format("AlbertTokenizer")),
    "XLM-R's": ("xlm-roberta", {"vocab.json": {"the": 0}, "merges.txt": ""}, "sentencepiece.bpe.model is missing"),
    "of another class": ("bert", {SETTINGS: {"tokenizer_class": "XLMRobertaTokenizerFast"}},
                         "sentencepiece.bpe.model is missing"),
    "of no class": ("bert", {SETTINGS: {"tokenizer_class": "PreTrainedTokenizerFast"}},
                    "tokenizer.json is missing"),
    "of a class unknown here": ("bert", {"vocab.txt": None, "vocab.json": {"the": 0}, SETTINGS: {
        "tokenizer_class": "FunnelTokenizer"}}, "vocab.txt " + MISSING.format("FunnelTokenizer")),
    "of a class in Python": ("bert", {SETTINGS: {"tokenizer_class": "BertJapaneseTokenizer"}},
                             "BertJapaneseTokenizer is a tokenizer written in Python"),
    "empty vocab.txt": ("bert", {"vocab.txt": ""}, "vocab.txt has no words, only special tokens"),
    "special tokens alone": ("bert", {"vocab.txt": "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n"}, "vocab.txt has no words"),
    "no special tokens": ("bert", {"vocab.txt": "\n".join(map(str, range(157)))}, "vocab.txt lacks the special token"),
    "too long": ("bert", {"vocab.txt": "\n".join(map(str, range(900)))}, "vocab.txt has token ids up to 899, but"),
    "no merges.txt": ("roberta", {"merges.txt": None}, "merges.txt is missing"),
    "no vocab.json": ("roberta", {"vocab.json": None, "vocab.txt": "a\n"}, "vocab.json is missing"),
    "empty merges.txt": ("roberta", {"merges.txt": ""}, "merges.txt makes 0 of the .* longer tokens of vocab.json"),
    "other merges": ("roberta", {"merges.txt": "q x\nz z\n"}, "merges.txt makes '(qx|zz)', which is not in"),
    "merges that fit in part": ("roberta", {"merges.txt": lambda text: text + "q x\n"}, "merges.txt makes 'qx', which"),
    "merges of bytes": ("roberta", {"merges.txt": "\udcff"}, "merges.txt cannot be read"),
    "vocab.json of a list": ("roberta", {"vocab.json": [1]}, "vocab.json is not a JSON object"),
    "no SentencePiece": ("albert", {"spiece.model": "not one"}, "transformers cannot build a tokenizer"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNFIT)
def test_a_wrong_or_missing_vocabulary_is_refused(
    tokenizer_directories: dict[str, Path], tmp_path: Path, case: str
) -> None:
    family, files, message = UNFIT[case]
    path = Path(shutil.copytree(tokenizer_directories[family], tmp_path / "x"))
    own = vocabulary(path, family)
    for name, content in (own | files).items():
        if content is not None:
            content = content(own[name]) if callable(content) else content
            text = content if isinstance(content, str) else json.dumps(content)
            (path / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(pfengine.CheckpointError, match=message) as caught:
        load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("family", MADE)
def test_tokenizer_json_of_a_larger_model_is_refused(
    tokenizer_directories: dict[str, Path], tmp_path: Path, family: str
) -> None:
    path = Path(shutil.copytree(tokenizer_directories[family], tmp_path / "x"))
    size = len(json.loads((path / JSON).read_text())["model"]["vocab"])
    write(path, {"config.json": lambda raw: raw | {"vocab_size": size}})
    assert load(path)
    write(path, {"config.json": lambda raw: raw | {"vocab_size": size - 1}})
    with pytest.raises(pfengine.CheckpointError, match=f"{JSON} has token ids up to {size - 1}, but this model's are"):
        load(path)


def test_an_added_token_beyond_the_model_costs_the_rows_that_have_it(
    tokenizer_directories: dict[str, Path], tmp_path: Path
) -> None:
    path = Path(shutil.copytree(tokenizer_directories["bert"], tmp_path / "x"))
    size = len(json.loads((path / JSON).read_text())["model"]["vocab"])
    write(path, {"config.json": lambda raw: raw | {"vocab_size": size}, ADDED: {"<new>": size}})
    good, bad = load(path).encode([(0, "the film"), (1, "the <new> film")])
    assert isinstance(good, Row)
    assert isinstance(bad, pfengine.InputError)
    assert f"token id {size}" in bad.reason


def test_a_vocabulary_far_smaller_than_the_model_warns(tokenizer_directories: dict[str, Path], tmp_path: Path) -> None:
    path = Path(shutil.copytree(tokenizer_directories["bert"], tmp_path / "x"))
    write(path, {"config.json": lambda raw: raw | {"vocab_size": 30_522}})
    with pytest.warns(UserWarning, match=r"tokenizer.json has \d+ tokens, but the model has embeddings for 30522"):
        load(path)


PAIR = ("the film", "very good")
TYPES_LOST = {  # classes whose pairs had types in transformers 4
    "albert": {}, "bert": {SETTINGS: {"tokenizer_class": "PreTrainedTokenizerFast"}},
    "xlm-roberta": {SETTINGS: {"tokenizer_class": "PreTrainedTokenizerFast"}},
}  # fmt: skip


@pytest.mark.parametrize("family", TYPES_LOST)
def test_types_that_version_5_drops_are_warned_of_once_and_can_be_had(
    tokenizer_directories: dict[str, Path], tmp_path: Path, family: str
) -> None:
    def types(**options: Any) -> tuple[list[int], list[str]]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            tokenizer = load(path, **options)
            rows = [row for _ in range(3) for row in tokenizer.encode([(0, "the film"), (1, PAIR)])]
        assert all(isinstance(row, Row) for row in rows)
        assert all(row.types is None for row in rows[::2])
        found = {tuple([0] * len(row.ids) if row.types is None else row.types.tolist()) for row in rows[1::2]}
        return list(*found), [str(warning.message) for warning in caught]

    path = write(Path(shutil.copytree(tokenizer_directories[family], tmp_path / "x")), TYPES_LOST[family])
    for version, warned in ((None, 0), ("5.0.0.dev0", 0), ("4.40.2", 1), ("2.9", 1)):
        write(path, {"config.json": lambda raw, version=version: raw | {"transformers_version": version}})
        values, messages = types()
        assert set(values) == {0}
        assert len(messages) == warned
        assert all("token_types=True" in message and version in message for message in messages)
    assert types(token_types=False) == (values, [])
    typed, messages = types(token_types=True)
    second = typed.index(1)
    assert not messages
    assert typed == [0] * second + [1] * (len(typed) - second)
    names = {"model_input_names": ["input_ids"]}  # a file says so: no doubt, no warning
    write(path, {SETTINGS: TYPES_LOST[family].get(SETTINGS, {}) | names})
    assert types() == (values, [])
    write(path, {"config.json": lambda raw: raw | {"type_vocab_size": 1}})
    with pytest.raises(pfengine.ConfigError, match="token_types is True, but"):
        load(path, token_types=True)


@pytest.mark.parametrize(
    ("family", "given"),
    [("bert", True), ("electra", True), ("roberta", False), ("distilbert", False), ("mpnet", False)],
)
def test_types_of_families_that_kept_their_ways(
    tokenizer_directories: dict[str, Path], tmp_path: Path, family: str, given: bool
) -> None:
    path = Path(shutil.copytree(tokenizer_directories[family], tmp_path / "x"))
    write(path, {"config.json": lambda raw: raw | {"transformers_version": "4.40.2"}})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (row,) = load(path).encode([(0, PAIR)])
        (without,) = load(path, token_types=False).encode([(0, PAIR)])
    assert isinstance(row, Row)
    assert isinstance(without, Row)
    assert (row.types is not None and 1 in row.types) == given
    assert without.types is None
    with pytest.raises(pfengine.ConfigError, match="token_types is 'yes'"):
        load(path, token_types="yes")
    if not given:
        with pytest.raises(pfengine.ConfigError, match="token_types is True, but"):
            load(path, token_types=True)
