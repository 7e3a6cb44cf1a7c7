"""Taggers, judged by words and entities."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import pfengine
from pfengine.data import TaggedExample
from pfengine.evaluation.tagged import UNANSWERED, Words

LABELS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
TRUTH = [
    ["I-LOC", "O"], ["O", "B-LOC", "B-LOC"], ["B-LOC", "B-PER", "O", "B-LOC"], ["B-LOC"],
    ["I-LOC", "O", "B-LOC", "I-PER"], ["B-PER", "I-LOC", "O", "I-PER", "O", "O"], ["I-LOC"], ["O"],
    ["I-LOC", "B-PER", "I-PER", "B-PER"], ["B-PER", "B-LOC", "I-PER", "O", "B-LOC", "I-LOC"],
]  # fmt: skip
ANSWERS = [
    ["B-LOC", "O"], ["B-PER", "B-LOC", "B-LOC"], ["I-LOC", "B-PER", "B-LOC", "B-LOC"], ["B-LOC"],
    ["I-LOC", "O", "O", "O"], ["B-PER", "I-LOC", "O", "O", "O", "O"], ["I-PER"], ["I-LOC"],
    ["B-PER", "B-PER", "I-PER", "I-PER"], ["B-PER", "B-LOC", "I-PER", "O", "B-LOC", "I-LOC"],
]  # fmt: skip
# precision_score, recall_score and f1_score of seqeval 1.2.2, and the share of right words
EXPECTED = {"span_precision": 0.7, "span_recall": 0.666666666667, "span_f1": 0.682926829268, "accuracy": 0.65625}


def words() -> Words:
    examples = [TaggedExample(tuple("x" * len(tags)), tuple(tags)) for tags in TRUTH]
    return Words.of(examples, LABELS, "rows")


def ids(rows: list[list[str]]) -> np.ndarray:
    return np.array([LABELS.index(tag) for tags in rows for tag in tags])


def test_metrics_are_those_of_seqeval() -> None:
    every = words().metrics(tuple(EXPECTED))
    found = {name: metric(ids(ANSWERS), ids(TRUTH)) for name, metric in every.items()}
    assert found == pytest.approx(EXPECTED)
    assert list(words().metrics()) == ["span_f1", "accuracy"]
    assert [metric(ids(TRUTH), ids(TRUTH)) for metric in every.values()] == [1, 1, 1, 1]
    assert every["span_f1"](np.zeros(len(ids(TRUTH)), np.int64), ids(TRUTH)) == 0


def test_standard_errors_draw_rows() -> None:
    every = words().metrics(("span_f1", "accuracy"))
    assert all(0.02 < metric.standard_error(ids(ANSWERS)) < 0.2 for metric in every.values())
    assert all(metric.standard_error(ids(TRUTH)) == 0 for metric in every.values())


def test_labels_that_mark_no_entities() -> None:
    examples = [TaggedExample(("a", "b"), ("NOUN", "VERB"))]
    own = Words.of(examples, ("NOUN", "VERB"), "rows")
    assert list(own.metrics()) == ["accuracy"]
    assert own.score(np.eye(2, dtype=np.float32)) == {"accuracy": 1.0}
    with pytest.raises(pfengine.ConfigError, match="'span_f1' needs labels such as B-PER"):
        own.metrics(("span_f1",))
    with pytest.raises(pfengine.ConfigError, match="'f1' is not one of a tagger's, span_f1"):
        own.metrics(("f1",))


@pytest.mark.parametrize(("side", "kept"), [("right", [0, 1, 2, 4]), ("left", [1, 2, 3, 4])])
def test_words_that_were_cut_off_are_wrong(side: str, kept: list[int]) -> None:
    examples = [TaggedExample(("a",) * 4, ("O",) * 4), TaggedExample(("a",), ("O",))]
    own = Words.of(examples, LABELS, "rows", side)
    answered = np.array([[True, True, True], [True, False, False]])
    flat = own.flat(np.array([[1, 2, 3], [4, 9, 9]]), answered, UNANSWERED)
    expected = np.full(5, UNANSWERED)
    expected[kept] = [1, 2, 3, 4]
    np.testing.assert_array_equal(flat, expected)
    assert own.kept(answered).bounds.tolist() == [0, 3, 4]
    assert own.metrics(("accuracy",))["accuracy"](np.where(flat > 0, 0, flat), np.zeros(5)) == 0.8


def test_a_tag_that_the_model_lacks(tmp_path: Path) -> None:
    with pytest.raises(pfengine.ConfigError, match="rows, row 1: label 'B-ORG' is not one of O, B-PER"):
        Words.of([TaggedExample(("a",), ("O",)), TaggedExample(("a",), ("B-ORG",))], LABELS, "rows")
