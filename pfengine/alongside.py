"""Numbers given beside the rows, one per row, read as the rows are."""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import Any

from .errors import ConfigError
from .rows import MISSING, Given, Knob, is_single


def is_per_row(value: Any) -> bool:
    """Is it an iterable of numbers rather than one?"""
    if value is None or isinstance(value, (numbers.Number, str, bytes, bytearray, Mapping, set, frozenset)):
        return False
    try:
        iter(value)
    except TypeError:  # an array or a tensor without dimensions too
        return False
    return True


def check_count(inputs: Any, name: str, values: Any) -> None:
    """ConfigError where it is known beforehand that there is not one value per row."""
    rows = 1 if is_single(inputs) else len(inputs) if isinstance(inputs, Sized) else None
    if rows is not None and isinstance(values, Sized) and len(values) != rows:
        raise ConfigError(f"{name} has {len(values)} values for {rows} rows; give one per row, or one number for all")


def with_numbers(rows: Iterator[Any], name: str, values: Iterable[Any]) -> Iterator[Given]:
    """Each row with its number. A row for which there is none left is that row's error; ConfigError after the last row
    where numbers are left."""
    tolist = getattr(values, "tolist", None)  # of a tensor, whose items are tensors
    rest, count = iter(tolist() if tolist is not None else values), 0
    for row in rows:
        yield Given(row, Knob(name, next(rest, MISSING)))
        count += 1
    if next(rest, MISSING) is not MISSING:
        raise ConfigError(f"{name} has more values than the {count} rows there are; give one per row")
