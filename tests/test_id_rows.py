"""Rows of ids read together are what `parse` makes of each alone, and what is wrong with one costs no other row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pfengine import id_rows
from pfengine.errors import InputError
from pfengine.rows import Row, parse

VOCAB, TYPES, LONGEST = 9, 2, 6


class Raises(str):
    """A key whose hash is that of "input_ids", and which fails when it is compared."""

    __slots__ = ()

    def __hash__(self) -> int:
        return hash("input_ids")

    def __eq__(self, other: object) -> bool:
        raise OSError("gone")


def alone(row_id: int, row: Any) -> Row | None:
    """None where something is wrong with the row."""
    try:
        found = parse(row_id, row)
    except InputError:
        return None
    inside = isinstance(found, Row) and len(found.ids) <= LONGEST and found.ids.min() >= 0 and found.ids.max() < VOCAB
    if not inside or (found.types is not None and not (found.types.min() >= 0 and found.types.max() < TYPES)):
        return None
    return found


def same(found: Row, expected: Row) -> None:
    assert found.ids.dtype == expected.ids.dtype == np.int64
    np.testing.assert_array_equal(found.ids, expected.ids)
    assert (found.types is None) == (expected.types is None)
    if found.types is not None:
        assert found.types.dtype == np.int64
        np.testing.assert_array_equal(found.types, expected.types)
    assert found._replace(ids=None, types=None) == expected._replace(ids=None, types=None)  # type: ignore[arg-type]


ID = st.integers(0, VOCAB - 1)
BAD = st.sampled_from([-1, VOCAB, 2**63, -(2**70), True, 1.0, None, "1", [1]])
GOOD_ROW = st.lists(ID, min_size=1, max_size=LONGEST).map(lambda ids: {"input_ids": ids})
ROW = st.one_of(
    GOOD_ROW,
    st.lists(st.one_of(ID, BAD, st.just(np.int64(3))), max_size=LONGEST + 2).map(lambda ids: {"input_ids": ids}),
    st.fixed_dictionaries(
        {"input_ids": st.lists(ID, min_size=2, max_size=3)},
        optional={
            "token_type_ids": st.lists(st.one_of(st.integers(0, TYPES), BAD), min_size=2, max_size=3),
            "attention_mask": st.lists(st.one_of(st.just(1), st.integers(0, 1), BAD), min_size=2, max_size=3),
            "threshold": st.just(0.5),
            "label": st.just(1),
        },
    ),
    st.sampled_from(["text", None, {"input_ids": (1, 2)}, {"input_ids": np.array([1, 2])}, {"text": "a"}, {}, [1]]),
)


@given(st.lists(ROW, max_size=8))
def test_rows_are_as_each_alone(rows: list[Any]) -> None:
    numbered = list(enumerate(rows, start=3))
    found = id_rows.read(numbered, LONGEST, VOCAB, TYPES)
    assert len(found) == len(rows)
    for (row_id, row), one in zip(numbered, found, strict=True):
        if one is not None:
            expected = alone(row_id, row)
            assert expected is not None
            same(one, expected)


@given(st.lists(GOOD_ROW, min_size=1, max_size=5), BAD, st.data())
def test_plain_rows_are_read_whatever_is_beside_them(rows: list[Any], bad: Any, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(rows)))
    mixed = [*rows[:place], {"input_ids": [1, bad, 2]}, *rows[place:]]
    found = id_rows.read(list(enumerate(mixed)), LONGEST, VOCAB, TYPES)
    assert [one is None for one in found] == [i == place for i in range(len(mixed))]


def test_types_and_masks() -> None:
    ids, types, mask = [1, 2, 3], [0, 1, 1], [1, 1, 1]
    rows = [
        {"input_ids": ids, "token_type_ids": types, "attention_mask": mask},
        {"input_ids": ids},
        {"input_ids": ids, "attention_mask": mask},
        {"input_ids": ids, "token_type_ids": [0, 2, 0]},  # this and what follows is left to `parse`
        {"input_ids": ids, "attention_mask": [1, 1, 0]},
        {"input_ids": ids, "token_type_ids": types[:2]},
        {"input_ids": ids, "attention_mask": tuple(mask)},
        {"input_ids": ids, "threshold": None},
    ]
    found = id_rows.read(list(enumerate(rows)), LONGEST, VOCAB, TYPES)
    assert [one is not None for one in found] == [True] * 3 + [False] * 5
    for i in range(3):
        expected = alone(i, rows[i])
        assert found[i] is not None
        assert expected is not None
        same(found[i], expected)  # type: ignore[arg-type]
    without = id_rows.read(list(enumerate(rows)), LONGEST, VOCAB, 0)
    assert [one is not None for one in without] == [False, True, True] + [False] * 5


def test_a_key_that_raises_costs_no_other_row() -> None:
    found = id_rows.read([(0, {"input_ids": [1]}), (1, {Raises("x"): [1]}), (2, {"input_ids": [2]})], LONGEST, VOCAB, 2)
    assert found[1] is None
    assert found[0] is not None
    assert found[2] is not None


def test_the_numbers_are_copies() -> None:
    ids = [1, 2]
    (row,) = id_rows.read([(0, {"input_ids": ids})], LONGEST, VOCAB, TYPES)
    ids[0] = 5
    assert row is not None
    assert row.ids.tolist() == [1, 2]


@pytest.mark.parametrize("rows", [[], [(0, "text")], [(7, {"input_ids": []})]])
def test_nothing_to_read(rows: list[Any]) -> None:
    assert id_rows.read(rows, LONGEST, VOCAB, TYPES) == [None] * len(rows)
