"""Rows of token ids read many at a time: one conversion and one check for all of them, instead of several a row.

Only rows in the plainest form are read here, a dict of lists. All others, and every row with something wrong, are left
to `rows.parse`, which names what is wrong.
"""

from __future__ import annotations

import array
import itertools
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
        masked = key == _MASK and not found.all()  # is any token? Asked of all rows at once, as it is hardly ever so
        for j, start, end, fine_part in zip(having, starts, starts[1:], fine, strict=False):
            good[j] = good[j] and fine_part
            if key == _TYPES:
                types[j] = found[start:end]
            elif masked:
                good[j] = good[j] and bool(found[start:end].all())
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
    for part in row.values():  # noqa: SIM110, as `all` of a generator takes three times as long
        if type(part) is not list or len(part) != length:
            return False
    return True


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
        suspects = [j for j in _lists_with(unsigned <= 1, bounds) if good[j]]  # only there can a bool be
        if bool in set(map(type, itertools.chain.from_iterable(lists[j] for j in suspects))):
            for j in suspects:
                good[j] = bool not in set(map(type, lists[j]))
    return flat, bounds, good


def _lists_with(marks: np.ndarray, bounds: list[int]) -> list[int]:
    """The lists in which any number is marked. Lists without numbers, which could not be read, may be among them."""
    if len(bounds) <= 2 or not len(marks):
        return [0] if marks.any() else []
    starts = np.minimum(bounds[:-1], len(marks) - 1)
    return np.logical_or.reduceat(marks, starts).nonzero()[0].tolist()
