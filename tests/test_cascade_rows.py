"""How the models of a cascade read rows: each by its own tokenizer, up to its own longest row."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers

import pfengine
from pfengine.errors import ConfigError, InputError
from pfengine.tokenization import Tokenizer

from .test_cascade import by_hand, confidence

Make = Callable[..., Path]


def tokenised(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the rows that it is given from now on."""
    asked: list[int] = []
    encode = tokenizer.encode

    def kept(rows: Any) -> Any:
        given = list(rows)
        asked.extend(number for number, _ in given)
        return encode(given)

    monkeypatch.setattr(tokenizer, "encode", kept)
    return asked


TEXTS = ["the film is very good", "bleak", "it 's a slow journey and a bad movie " * 3, ("charming", "or bleak"), ""]


@pytest.fixture(scope="module")
def texts_cascade(make_text_checkpoint: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same tokenizer, and rows of at most 16 and 64 tokens."""
    sizes = {"max_position_embeddings": 16, "num_hidden_layers": 2}
    parts = [make_text_checkpoint(head="classifier", config=sizes), make_text_checkpoint(head="classifier", seed=1)]
    return pfengine.cascade(parts, tmp_path_factory.mktemp("cascade") / "out")


def test_each_model_reads_up_to_its_own_longest_row(texts_cascade: Path) -> None:
    engine = pfengine.load(texts_cascade)
    assert engine.max_length == 16
    with pytest.warns(UserWarning, match="1 of 1 rows had more than 16 tokens"):
        wanted = by_hand(texts_cascade, TEXTS, lambda *_: False)
    with pytest.warns(UserWarning, match="1 of 5 rows had more than 16 tokens"):
        out = engine.predict(TEXTS, criterion="cascadebert:1")
    np.testing.assert_array_equal(out.logits, wanted[0])
    deep = engine.predict(TEXTS, criterion="never", truncation="error")  # the last model alone reads them
    np.testing.assert_array_equal(deep.logits, wanted[0])
    with pytest.raises(InputError, match="row 2: has more than 16 tokens"):
        engine.predict(TEXTS, criterion="cascadebert:1", truncation="error")
    short = pfengine.load(texts_cascade, max_length=5, criterion="cascadebert:1")
    with pytest.warns(UserWarning, match="truncated") as warned:
        out = short.predict(TEXTS)
    assert [str(each.message) for each in warned] == ["3 of 5 rows had more than 5 tokens and were truncated"]
    with pytest.warns(UserWarning, match="had more than 5 tokens"):
        wanted = by_hand(texts_cascade, TEXTS, lambda *_: False, max_length=5)
    np.testing.assert_array_equal(out.logits, wanted[0])
    longer = pfengine.load(texts_cascade, max_length=20, criterion="cascadebert:1")  # 16 for the first model
    with pytest.warns(UserWarning, match="truncated") as warned:
        longer.predict(TEXTS)
    assert [str(each.message) for each in warned] == [
        "1 of 5 rows had more than 16 tokens and were truncated",
        "1 rows had more than 20 tokens and were truncated for model 2 of the cascade",
    ]
    with pytest.raises(ConfigError, match="max_length is 65; this model takes 1 to 64 tokens"):
        pfengine.load(texts_cascade, max_length=65)


def test_rows_are_tokenised_once_where_that_gives_the_same(
    texts_cascade: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = pfengine.load(texts_cascade, criterion="cascadebert:1")
    assert engine.cascade is not None
    asked = tokenised(engine.cascade.members[-1].tokenizer, monkeypatch)
    with pytest.warns(UserWarning, match="truncated"):
        engine.predict(TEXTS)
    assert asked == [2], "only the row that the first model cuts"


@pytest.fixture(scope="module")
def two_tokenizers(
    make_checkpoint: Make, tokenizer_directories: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    parts = []
    for number, family in enumerate(("roberta", "bert")):
        path = tmp_path_factory.mktemp("part") / family
        tokenizer = tokenizer_directories[family] / "tokenizer.json"
        vocabulary = tokenizers.Tokenizer.from_file(str(tokenizer)).get_vocab_size()
        sizes = {"vocab_size": vocabulary, "max_position_embeddings": 64}
        shutil.copytree(make_checkpoint(family, head="classifier", seed=number, config=sizes), path)
        shutil.copy(tokenizer, path)
        parts.append(path)
    return pfengine.cascade(parts, tmp_path_factory.mktemp("cascade") / "out")


def test_models_with_different_tokenizers(two_tokenizers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["a good film", "", "bleak and slow", ("one", "two"), "charming"]
    engine = pfengine.load(two_tokenizers, criterion="cascadebert:0.5")
    assert engine.cascade is not None
    asked = tokenised(engine.cascade.members[-1].tokenizer, monkeypatch)
    confident = sorted(confidence(x) for x in pfengine.load(two_tokenizers / "models" / "1").predict(texts).logits)
    threshold = (confident[1] + confident[2]) / 2  # so that two rows go on
    wanted = by_hand(two_tokenizers, texts, lambda x, _: confidence(x) > threshold)
    out = engine.predict(texts, threshold=threshold, batch_size=2)
    assert sorted(wanted[2].tolist()) == [1, 1, 1, 2, 2]
    np.testing.assert_array_equal(out.models, wanted[2])
    np.testing.assert_array_equal(out.logits, wanted[0])
    assert asked == np.flatnonzero(wanted[2] == 2).tolist(), "rows are tokenised again only where they go on"
    mixed = engine.classify([*texts, {"input_ids": [5, 6]}], on_error="return", threshold=0.0)
    assert "models of this cascade have different tokenizers; give text" in mixed[-1]["error"]
    assert [each.get("model") for each in mixed] == [1] * 5 + [None]
