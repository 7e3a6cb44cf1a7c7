"""Holding rows out, and what is said where that cannot be."""

from __future__ import annotations

import pytest

import pfengine
from pfengine import data
from pfengine.data import Example


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


@pytest.mark.parametrize(
    ("texts", "rows", "advice"),
    [
        ([f"text {i} of many" for i in range(50)], 1000, "holding out 1000 leaves none to train on: .* such as 5$"),
        ([f"text {i} of many" for i in range(4)], 4, "leaves none to train on: .* such as 1$"),
        (["one row"], 1, "1 rows; .* leaves none to train on: give more rows"),
        (["alike"] * 30, 3, "leaves none to calibrate on: give more rows"),
        ([""] * 30, 3, "leaves none to train on: give more rows"),
    ],
    ids=["too few", "all of them", "one row", "alike", "empty"],
)
def test_nothing_left_is_refused_with_a_number_that_does(texts: list[str], rows: int, advice: str) -> None:
    examples = [Example(text, None, str(i % 2)) for i, text in enumerate(texts)]
    with pytest.raises(pfengine.ConfigError, match=advice) as caught:
        data.split_off(examples, rows, 0, "f")
    number = str(caught.value).rpartition("such as ")[2]
    if number.isdigit():
        kept, held = data.split_off(examples, int(number), 0, "f")
        assert kept
        assert len(held) == int(number)


def test_fewer_rows_than_asked_for_are_said() -> None:
    examples = [Example(text, None, "0") for text in ("again", "again", "one of them", "another row")]
    with pytest.warns(UserWarning, match="2 rows of f are held out, not 5"):
        kept, held = data.split_off(examples, 5, 0, "f")
    assert [example.text for example in kept] == ["again", "again"]
    assert len(held) == 2
