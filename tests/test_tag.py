"""`Engine.tag`: entities with their characters and words, and where each word left."""

from __future__ import annotations

import copy
import json
import pickle
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pfengine
from pfengine.entities import entities
from pfengine.tagging import Tagged, scheme_of

Make = Callable[..., Path]
NAMES = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
TEXTS = ["The film is GOOD, very good!", "a charming unflinchingly bleak journey", "", "x", "it 's (slow) - and bad."]


@pytest.fixture(scope="module")
def path(make_text_checkpoint: Make) -> Path:
    config = {"id2label": {str(i): name for i, name in enumerate(NAMES)}}
    return make_text_checkpoint(labels=5, head={"type": "tagger"}, criterion="tokee:,3", threshold=0.7, config=config)


@pytest.fixture(scope="module")
def engine(path: Path) -> pfengine.Engine:
    return pfengine.load(path, precision="fp32")


def test_what_is_said_of_a_text(engine: pfengine.Engine) -> None:
    answers, out = engine.tag(TEXTS), engine.predict(TEXTS)
    layers = set()
    for i, (text, found) in enumerate(zip(TEXTS, answers, strict=True)):
        words = [text[start:end] for start, end in found.spans]
        assert "".join(words) == "".join(text.split())
        own = slice(len(words))
        assert found.tags == [NAMES[label] for label in out.label_ids[i, own]]
        assert found.exit_layers == out.exit_layers[i, own].tolist()
        np.testing.assert_array_equal(np.float32(found.scores), out.probabilities[i, own].max(-1))
        for one, (kind, first, stop) in zip(found, entities(found.tags), strict=True):
            assert (one["label"], one["words"]) == (kind, [first, stop])
            assert one["text"] == text[one["start"] : one["end"]]
            assert (one["start"], one["end"]) == (found.spans[first][0], found.spans[stop - 1][1])
            assert one["exit_layers"] == found.exit_layers[first:stop]
            assert one["score"] == pytest.approx(np.mean(found.scores[first:stop]))
        layers.update(found.exit_layers)
    assert len(layers) > 1
    assert sum(map(len, answers)) > 3
    assert answers[2] == []
    assert json.loads(json.dumps(answers[0])) == list(answers[0])
    assert answers[1].words[1] == {
        "text": "charming", "start": 2, "end": 10, "label": answers[1].tags[1], "score": answers[1].scores[1],
        "exit_layer": answers[1].exit_layers[1],
    }  # fmt: skip


def test_words_and_texts_in_every_form(engine: pfengine.Engine) -> None:
    words = ["The", "film", "is", "unflinchingly", "bleak", "and", "New York", "!"]
    text = " ".join(words)
    (found,) = engine.tag([words])
    assert found.text == text
    assert len(found.tags) == len(words)
    assert [text[start:end] for start, end in found.spans] == words
    for other in ({"words": words}, {"words": tuple(words)}):
        assert vars(engine.tag(other)[0]) == vars(found)
    assert vars(engine.tag({"text": TEXTS[0]})[0]) == vars(engine.tag(TEXTS[0])[0])
    np.testing.assert_array_equal(engine.predict([words]).logits, engine.predict([{"words": words}]).logits)
    assert engine.tag([]) == []
    assert engine.tag([[]])[0].tags == []


def test_the_same_answers_in_any_batch_and_stream(engine: pfengine.Engine) -> None:
    rows: list[Any] = [*TEXTS, TEXTS[0].split()] * 3
    alone = [vars(engine.tag([row])[0]) for row in rows]
    assert [vars(one) for one in engine.tag(rows, batch_size=4)] == alone
    assert [vars(one) for one in engine.tag(rows, batch_tokens=20)] == alone

    def endless() -> Iterator[Any]:
        while True:
            yield from rows

    stream = engine.stream_tags(endless(), batch_tokens=64)
    assert [vars(next(stream)) for _ in rows] == alone


def test_thresholds_of_a_call_and_of_rows(engine: pfengine.Engine) -> None:
    full = engine.tag(TEXTS, criterion="never")
    assert {layer for found in full for layer in found.exit_layers} == {engine.num_layers}
    own = engine.tag([{"text": TEXTS[0], "threshold": 0.9}, {"words": ["the", "film"], "threshold": 0.4}, TEXTS[1]])
    assert vars(own[0]) == vars(engine.tag(TEXTS[0], threshold=0.9)[0])
    assert vars(own[1]) == vars(engine.tag([["the", "film"]], threshold=0.4)[0])
    beside = engine.tag([TEXTS[0], ["the", "film"]], threshold=[0.9, 0.4])
    assert [vars(one) for one in beside] == [vars(one) for one in own[:2]]


BAD: list[tuple[Any, str]] = [
    (3, "is of type int"),
    (["a", 3], "'words' has at 1 what is of type int"),
    ({"input_ids": [1, 2]}, "is token ids, which have no characters"),
    (("a", "b"), "is a pair of texts"),
    ({"text": "a", "text_pair": "b"}, "is a pair of texts"),
    ({"words": "a b"}, "it must be a list of strings"),
]


@pytest.mark.parametrize(("row", "said"), BAD)
def test_a_bad_row_costs_itself_alone(engine: pfengine.Engine, row: Any, said: str) -> None:
    first, bad, last = engine.tag([TEXTS[0], row, TEXTS[1]], on_error="return")
    assert bad["row"] == 1
    assert said in bad["error"]
    assert [vars(first), vars(last)] == [vars(one) for one in engine.tag(TEXTS[:2])]
    with pytest.raises(pfengine.InputError, match="row 1"):
        engine.tag([TEXTS[0], row])


def test_a_long_list_of_words_is_cut_with_a_warning(engine: pfengine.Engine) -> None:
    words = ["good", "film"] * 50
    with pytest.warns(UserWarning, match="1 of 1 rows had more than 64 tokens"):
        (found,) = engine.tag([words])
    assert (len(found.tags), found.first_word) == (62, 0)
    assert engine.tag([words], truncation="error", on_error="return")[0]["row"] == 0
    other = copy.copy(engine)
    other.tokenizer = copy.copy(engine.tokenizer)
    other.tokenizer.backend = type(engine.tokenizer.backend).from_str(engine.tokenizer.backend.to_str())
    other.tokenizer.backend.enable_truncation(64, direction="left")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (last,) = other.tag([words], threshold=0.99)
    assert last.first_word == 38
    assert all(one["words"][0] >= 38 for one in last)
    assert [last.text[start:end] for start, end in last.spans] == words[38:]


def test_what_does_not_fit_is_said(engine: pfengine.Engine, text_checkpoint: Path) -> None:
    with pytest.raises(pfengine.ConfigError, match="classifies whole rows and does not tag their words; use classify"):
        pfengine.load(text_checkpoint).tag("a")
    with pytest.raises(pfengine.ConfigError, match="on_error is 'skip'"):
        engine.tag("a", on_error="skip")  # type: ignore[arg-type]
    with pytest.raises(pfengine.ConfigError, match="truncation is 'cut'"):
        engine.tag("a", truncation="cut")  # type: ignore[arg-type]


def test_answers_are_pickled_and_copied(engine: pfengine.Engine) -> None:
    (found,) = engine.tag(TEXTS[0])
    for other in (pickle.loads(pickle.dumps(found)), copy.copy(found), copy.deepcopy(found)):
        assert isinstance(other, Tagged)
        assert (other, vars(other)) == (found, vars(found))


def test_labels_without_a_prefix_are_types() -> None:
    assert scheme_of(["O", "PER", "B-LOC", "S-X", "LABEL_3"]) == ["O", "I-PER", "B-LOC", "S-X", "I-LABEL_3"]
