"""Rows of token ids read many at a time: one conversion and one check for all of them, instead of several a row.

Only rows in the plainest form are read here, a dict of lists. All others, and every row with something wrong, are left
to `rows.parse`, which names what is wrong.
"""

from __future__ import annotations

import array
from collections.abc import Sequence
from typing import Any

import numpy as np

from .rows import Row

_IDS, _TYPES, _MASK = "input_ids", "token_type_ids", "attention_mask"
_KEYS = frozenset((_IDS, _TYPES, _MASK))


def read(rows: Sequence[tuple[int, Any]], max_length: int, vocab_size: int, type_vocab_size: int) -> list[Row | None]:
    """The rows of (row id, row) pairs that are dicts of lists of ids; None where a row is anything else, or is wrong.

    A row is what `rows.parse` makes of it. It has at most `max_length` ids, all below `vocab_size`; its types are below
    `type_vocab_size`, and its mask is 1 everywhere.
    """
    out: list[Row | None] = [None] * len(rows)
    places: list[int] = []
    ids: list[list[Any]] = []
    extended: list[int] = []
    for i, (_, row) in enumerate(rows):
        try:
            if type(row) is dict and type(one := row.get(_IDS)) is list and 0 < len(one) <= max_length:
                if len(row) > 1:
                    if not _fits(row, len(one), type_vocab_size):
                        continue
                    extended.append(len(places))
                places.append(i)
                ids.append(one)
        except Exception:
            continue
    if not places:
        return out
    numbers, bounds, good = _numbers(ids, vocab_size)
    types: list[np.ndarray | None] = [None] * len(places)
    for key, limit in ((_TYPES, type_vocab_size), (_MASK, 2)) if extended else ():
        having = [j for j in extended if key in rows[places[j]][1]]
        found, starts, fine = _numbers([rows[places[j]][1][key] for j in having], limit, bools=key == _MASK)
        for k, j in enumerate(having):
            part = found[starts[k] : starts[k + 1]]
            if key == _TYPES:
                types[j] = part
            good[j] = good[j] and fine[k] and (key == _TYPES or bool(part.all()))
    start = 0
    for i, end, part_types, fine_row in zip(places, bounds[1:], types, good, strict=True):
        if fine_row:
            out[i] = Row(rows[i][0], numbers[start:end], part_types, False)
        start = end
    return out


def _fits(row: dict[Any, Any], length: int, type_vocab_size: int) -> bool:
    """Is there nothing else in the row than lists of types and a mask, as long as the ids?"""
    if not row.keys() <= _KEYS or (_TYPES in row and not type_vocab_size):
        return False
    return all(type(part) is list and len(part) == length for part in row.values())


def _numbers(lists: Sequence[list[Any]], limit: int, bools: bool = False) -> tuple[np.ndarray, list[int], list[bool]]:
    """The lists one after the other, int64; where each begins and the last ends; is it all integers below `limit`?

    bools: are True and False integers, too?
    """
    good = [True] * len(lists)
    numbers = array.array("q")
    bounds = [0]
    for j, each in enumerate(lists):
        try:
            numbers.fromlist(each)
        except Exception:  # no integers, too large, or an item's own method raises
            good[j] = False
        bounds.append(len(numbers))
    flat = np.frombuffer(numbers, np.int64)
    unsigned = flat.view(np.uint64)  # where a negative number is larger than any limit
    if np.maximum.reduce(unsigned, initial=0) >= limit:
        for j in _lists_with(unsigned >= limit, bounds):
            good[j] = False
    if not bools and np.minimum.reduce(unsigned, initial=2) <= 1:
        for j in _lists_with(unsigned <= 1, bounds):  # only there can a bool be
            good[j] = good[j] and bool not in set(map(type, lists[j]))
    return flat, bounds, good


def _lists_with(marks: np.ndarray, bounds: list[int]) -> list[int]:
    """The lists in which any number is marked."""
    if len(bounds) == 2:
        return [0] if marks.any() else []
    return sorted(set((np.searchsorted(bounds, marks.nonzero()[0], "right") - 1).tolist()))
