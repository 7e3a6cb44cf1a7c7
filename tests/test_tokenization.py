"""Rows of any form to token ids, as transformers tokenises them, and to batches within a budget."""

from __future__ import annotations

import dataclasses
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.roberta.modeling_roberta import RobertaEmbeddings

import pfengine
from pfengine import tokenization
from pfengine.checkpoint import tokenizer_files as tokenizer_files_of
from pfengine.config import BackboneConfig, parse_backbone
from pfengine.reader import read
from pfengine.tokenization import Row, Tokenizer, batches, pack, parse

SIZES = {"hidden_size": 8, "num_attention_heads": 1, "num_hidden_layers": 1, "intermediate_size": 8, "vocab_size": 120}


def backbone(model_type: str = "bert", positions: int = 64, **fields: Any) -> BackboneConfig:
    faults: list[str] = []
    config = parse_backbone({"model_type": model_type, "max_position_embeddings": positions} | SIZES | fields, faults)
    assert config is not None
    assert not faults
    return config


@pytest.fixture
def files(tokenizer_files: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tokenizer_files, tmp_path / "tokenizer"))


def configure(path: Path, **fields: Any) -> Path:
    raw = json.loads((path / "tokenizer_config.json").read_text())
    (path / "tokenizer_config.json").write_text(json.dumps(raw | fields))
    return path


def loaded(path: Path, config: BackboneConfig, max_length: int | None = None) -> Tokenizer:
    return Tokenizer(tokenizer_files_of(path), config, max_length)


def ids_of(tokenizer: Tokenizer, *rows: Any) -> list[list[int]]:
    out = []
    for row in tokenizer.encode(enumerate(rows)):
        assert isinstance(row, Row), row
        out.append(row.ids.tolist())
    return out


text = st.text(st.one_of(st.characters(), st.sampled_from("the film is good bad 0 1 .,!? \n\t")), max_size=60)


@settings(max_examples=150, deadline=None)
@given(text, st.none() | text)
def test_ids_and_types_are_those_of_transformers(text_checkpoint: Path, text: str, pair: str | None) -> None:
    theirs = transformers.AutoTokenizer.from_pretrained(text_checkpoint)
    clean = [
        None if t is None else t.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for t in (text, pair)
    ]
    expected = theirs(*clean, truncation=True, max_length=64)
    (row,) = loaded(text_checkpoint, read(text_checkpoint).backbone).encode(
        [(7, text if pair is None else (text, pair))]
    )
    assert isinstance(row, Row)
    assert (row.row_id, row.ids.tolist()) == (7, expected["input_ids"])
    types = np.zeros(len(row.ids), int) if row.types is None else row.types
    assert types.tolist() == expected["token_type_ids"]


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize(
    "long",
    [
        "the film is bad " * 2000 + "very good charming journey",
        "very" + " " * 9000 + "good film",
        "x" * 9000,
        "bad " + "x" * 9000 + " good",
        "é́" * 5000,
        "the film\n" * 2000,
        "\u3000".join(["東京"] * 3000),
    ],
    ids=["words", "spaces", "one word", "word inside", "accents", "lines", "CJK"],
)
def test_the_cut_of_long_texts_changes_nothing(files: Path, long: str, side: str) -> None:
    configure(files, truncation_side=side)
    theirs = transformers.AutoTokenizer.from_pretrained(files)
    assert theirs.truncation_side == side
    expected = theirs(long, truncation=True, max_length=64)["input_ids"]
    tokenizer = loaded(files, backbone())
    assert ids_of(tokenizer, long) == [expected]
    (row,) = tokenizer.encode([(0, long)])
    assert isinstance(row, Row)
    assert row.truncated == (len(theirs(long)["input_ids"]) > 64)
    assert ids_of(tokenizer, (long, "good"), ("good", long)) == [
        theirs(*pair, truncation=True, max_length=64)["input_ids"] for pair in ((long, "good"), ("good", long))
    ]


@pytest.mark.parametrize("max_length", [3, 4, 5, 7, 64])
def test_rows_are_cut_to_max_length(files: Path, max_length: int) -> None:
    tokenizer = loaded(files, backbone(), max_length)
    assert tokenizer.max_length == max_length
    ids = list(range(5, 75))
    rows = tokenizer.encode(
        [(0, "the film is very good"), (1, {"input_ids": ids}), (2, {"input_ids": ids[:max_length]})]
    )
    for row in rows:
        assert isinstance(row, Row)
        assert len(row.ids) <= max_length
    assert [row.truncated for row in rows] == [max_length < 7, True, False]  # type: ignore[union-attr]
    assert rows[0].ids.tolist() == [*[2, 5, 7, 9, 11, 12][: max_length - 1], 3]  # type: ignore[union-attr]
    assert rows[1].ids.tolist() == ids[:max_length]  # type: ignore[union-attr]


def test_limits_of_tokenizer_and_model(files: Path) -> None:
    assert loaded(files, backbone()).max_length == 64
    configure(files, model_max_length=16)
    assert loaded(files, backbone()).max_length == 16
    assert loaded(files, backbone(), 40).max_length == 40  # asked for, and the model can
    assert loaded(files, backbone(), 8).max_length == 8
    assert Tokenizer(None, backbone()).max_length == 64
    assert Tokenizer(None, backbone("roberta", pad_token_id=1)).max_length == 62
    for odd in (None, 0, -1, "many", 1e30, float("nan")):
        assert loaded(configure(files, model_max_length=odd), backbone()).max_length == 64


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '"text"', '{"truncation_side": "up"}'])
def test_tokenizer_config_that_is_none(text_checkpoint: Path, tmp_path: Path, content: str) -> None:
    path = Path(shutil.copytree(text_checkpoint, tmp_path / "ckpt"))
    (path / "tokenizer_config.json").write_text(content)
    with pytest.raises(pfengine.CheckpointError, match="tokenizer"):
        pfengine.load(path)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "{}", '{"version": "9.0"}'])
def test_tokenizer_that_is_none(text_checkpoint: Path, tmp_path: Path, content: str) -> None:
    path = Path(shutil.copytree(text_checkpoint, tmp_path / "ckpt"))
    (path / "tokenizer.json").write_text(content)
    with pytest.raises(pfengine.CheckpointError, match="tokenizer"):
        pfengine.load(path)


def test_a_text_the_tokenizer_refuses_is_a_bad_row(text_checkpoint: Path, tmp_path: Path) -> None:
    """A WordPiece vocabulary without its [UNK]: unknown words are an error of the library's, for the whole call."""
    path = Path(shutil.copytree(text_checkpoint, tmp_path / "ckpt"))
    model = tokenizers.models.WordPiece({"good": 0, "film": 1, "[CLS]": 2, "[SEP]": 3}, unk_token="[UNK]")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    (path / "tokenizer.json").unlink()
    tokenizer.save(str(path / "tokenizer.json"))
    engine = pfengine.load(path)
    good = engine.classify({"input_ids": [2, 0, 1, 3]})
    assert engine.classify("good film") == good
    with pytest.raises(pfengine.InputError, match="row 1"):
        engine.classify(["good film", "bad film", "good film"])
    answers = engine.classify(["good film", "bad film", "worse", "good film"], on_error="return")
    assert answers[::3] == good * 2
    assert [answers[1]["row"], answers[2]["row"]] == [1, 2]
    assert engine.classify("good film") == good


def test_a_text_with_ids_or_types_that_the_model_lacks_is_a_bad_row(files: Path) -> None:
    """Loading refuses such tokenizers. What it does not see costs no other text."""
    tokenizer = loaded(files, backbone())
    tokenizer.pair_types = True
    (film, good), texts = ids_of(tokenizer, "the film", "good"), ["the film", "good", ("the", "the"), "the"]
    assert max(good) > max(film)
    tokenizer.config = dataclasses.replace(tokenizer.config, vocab_size=max(film) + 1, type_vocab_size=1)
    one, other, pair, last = tokenizer.encode(enumerate(texts))
    assert isinstance(one, Row)
    assert isinstance(last, Row)
    assert str(other) == f"row 1: has token id {max(good)}; this model's are 0 to {max(film)}"
    assert str(pair) == "row 2: has token type id 1; this model's are 0 to 0"


def test_token_types_are_an_option_of_load(text_checkpoint: Path) -> None:
    pair = ("the film is good", "very bad")
    (row,) = loaded(text_checkpoint, read(text_checkpoint).backbone).encode([(0, pair)])
    assert isinstance(row, Row)
    engine = pfengine.load(text_checkpoint)
    typed, untyped = (pfengine.load(text_checkpoint, token_types=given) for given in (True, False))
    assert (
        typed.classify(pair)
        == engine.classify(pair)
        == engine.classify({"input_ids": row.ids, "token_type_ids": row.types})
    )
    assert untyped.classify(pair) == engine.classify({"input_ids": row.ids}) != engine.classify(pair)


def as_it_stands(source: Path, target: Path, **sections: Any) -> Path:
    """A copy whose tokenizer.json is changed, and taken as it stands."""
    path = Path(shutil.copytree(source, target))
    raw = json.loads((path / "tokenizer.json").read_text()) | sections
    (path / "tokenizer.json").write_text(json.dumps(raw))
    return configure(path, tokenizer_class="PreTrainedTokenizerFast")


NO_SUCH_TOKEN = [{"SpecialToken": {"id": "nobody", "type_id": 0}}]
PANICS: dict[str, tuple[dict[str, Any], str]] = {  # of the tokenizers library, which are no Exceptions
    "while it is read": (
        {"model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "éb": 2, "é": 3}, "merges": [["é", "b"]],
                   "continuing_subword_prefix": "éé"}}, "tokenizer.json cannot be read: the tokenizers library failed"),
    "on every text": (
        {"post_processor": {"type": "TemplateProcessing", "single": NO_SUCH_TOKEN, "pair": NO_SUCH_TOKEN,
                            "special_tokens": {}}}, "the tokenizers library failed"),
}  # fmt: skip


@pytest.mark.parametrize("kind", PANICS)
def test_a_tokenizer_that_panics_is_refused(text_checkpoint: Path, tmp_path: Path, kind: str) -> None:
    sections, message = PANICS[kind]
    with pytest.raises(pfengine.CheckpointError, match=message) as caught:
        pfengine.load(as_it_stands(text_checkpoint, tmp_path / "ckpt", **sections))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "sections",
    [{"pre_tokenizer": {"type": "FixedLength", "length": 0}},
     {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAAAAAAAAA="}}],
    ids=["pre-tokenizer", "normalizer"],
)  # fmt: skip
def test_a_text_on_which_the_tokenizer_panics_is_a_bad_row(
    text_checkpoint: Path, tmp_path: Path, sections: dict[str, Any]
) -> None:
    engine = pfengine.load(as_it_stands(text_checkpoint, tmp_path / "ckpt", **sections))
    good: list[Any] = ["", {"input_ids": [5, 6]}, ("", "")]
    alone = [engine.classify([row])[0] for row in good]
    answers = engine.classify(["panics", good[0], ("panics", "too"), *good[1:], "panics"], on_error="return")
    assert answers[1:2] + answers[3:5] == alone
    for i in (0, 2, 5):
        assert answers[i]["row"] == i
        assert "cannot be tokenised: the tokenizers library failed" in answers[i]["error"]
    with pytest.raises(pfengine.InputError, match="row 1: cannot be tokenised"):
        engine.predict(["", "panics"])


def test_one_warning_counts_the_truncated(text_checkpoint: Path) -> None:
    engine = pfengine.load(text_checkpoint)
    long = "very good " * 40
    rows = [long, "good", {"input_ids": [9] * 65}, {"input_ids": [9] * 64}, (long, "x")] * 100
    with pytest.warns(UserWarning, match="were truncated") as caught:
        engine.classify(rows, batch_tokens=256)
    assert [str(warning.message) for warning in caught] == [
        "300 of 500 rows had more than 64 tokens and were truncated"
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine.classify(["good", {"input_ids": [9] * 64}], batch_tokens=256)
        with pytest.raises(pfengine.InputError, match="row 1: has more than 64 tokens"):
            engine.classify(["good", long], truncation="error")
        answers = engine.classify(rows[:5], truncation="error", on_error="return")
    assert [i for i, answer in enumerate(answers) if "error" in answer] == [0, 2, 4]
    with pytest.warns(UserWarning, match="1 of 1 rows"):
        engine.predict(long)
    with pytest.warns(UserWarning, match="1 of 1 rows"):
        engine.layer_logits(long)


@pytest.mark.parametrize(
    ("given", "clean"),
    [
        ("plain", "plain"), ("\ud800", "\ufffd"), ("a\udfffb", "a\ufffdb"), ("\ud83d\ude00", "\U0001f600"),
        ("\ude00\ud83d", "\ufffd\ufffd"), ("x\ud83d", "x\ufffd"), ("\ufeffa\ud800", "\ufeffa\ufffd"), ("\0", "\0"),
    ],
)  # fmt: skip
def test_lone_surrogates_become_replacement_characters(given: str, clean: str) -> None:
    assert parse(0, given) == tokenization.Text(clean, None)
    assert parse(0, (given, given)) == tokenization.Text(clean, clean)
    clean.encode()


@settings(max_examples=60)
@given(st.lists(st.integers(1, 30), max_size=40), st.integers(1, 64), st.none() | st.integers(1, 9))
def test_batches_hold_every_row_once_within_the_budget(lengths: list, tokens: int, size: int | None) -> None:
    rows = [Row(i, np.full(n, 3), None, False) for i, n in enumerate(lengths)]
    seen = []
    for batch in batches(rows, tokens, size):
        assert batch
        assert len(batch) == 1 or sum(len(row.ids) for row in batch) <= tokens
        assert size is None or len(batch) <= size
        seen += [row.row_id for row in batch]
    assert sorted(seen) == list(range(len(lengths)))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=12), min_size=1, max_size=6), st.integers(0, 3))
def test_positions_are_those_of_transformers(rows: list[list[int]], pad: int) -> None:
    import torch

    packed = pack(
        [Row(9 - i, np.array(ids), None, False) for i, ids in enumerate(rows)], backbone("roberta", pad_token_id=pad)
    )
    expected = [RobertaEmbeddings.create_position_ids_from_input_ids(torch.tensor([ids]), pad)[0] for ids in rows]
    assert packed.positions.tolist() == torch.cat(expected).tolist()
    assert packed.ids.tolist() == [i for ids in rows for i in ids]
    assert packed.row_ids.tolist() == [9 - i for i in range(len(rows))]
    assert packed.cu_seqlens.tolist() == [0, *np.cumsum([len(ids) for ids in rows])]
    assert (packed.cu_seqlens.dtype, packed.ids.dtype) == (np.int32, np.int64)
    plain = pack([Row(i, np.array(ids), np.array(ids) % 2, False) for i, ids in enumerate(rows)], backbone())
    assert plain.positions.tolist() == [i for ids in rows for i in range(len(ids))]
    assert plain.types.tolist() == [i % 2 for ids in rows for i in ids]


def test_another_longest_row_changes_nothing_else(text_checkpoint: Path) -> None:
    tokenizer = pfengine.load(text_checkpoint).tokenizer
    assert tokenizer.backend is not None
    tokenizer.backend.encode_special_tokens = True  # which the tokenizer's own text does not say
    short = tokenizer.limited(9)
    for text in ("[SEP] good", "good film " * 20, ("a", "good film " * 20)):
        (row,), (cut,) = tokenizer.encode([(0, text)]), short.encode([(0, text)])
        assert isinstance(row, Row)
        assert isinstance(cut, Row)
        assert len(cut.ids) == min(9, len(row.ids))
        assert cut.truncated == (len(row.ids) > 9)
        assert set(cut.ids.tolist()) <= set(row.ids.tolist())
    assert (tokenizer.max_length, short.max_length) == (64, 9)
    with pytest.raises(pfengine.ConfigError, match="max_length is 2, but the tokenizer adds 2 special tokens"):
        tokenizer.limited(2)
