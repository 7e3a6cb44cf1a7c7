"""Options that are whole numbers, of any integer type, and switches of the environment."""

from __future__ import annotations

import operator
import os
from typing import Any

import numpy as np

from .errors import ConfigError


def whole(name: str, value: Any, otherwise: str = "") -> int:
    """`value` as an int of at least 1. It may be an integer of Python, numpy or torch; ConfigError for anything else.

    otherwise: what else the option may be, for the error's text.
    """
    try:
        number = 0 if isinstance(value, (bool, np.bool_)) else operator.index(value)
    except TypeError:
        number = 0
    if number < 1:
        raise ConfigError(f"{name} is {value!r}; it must be a positive integer{otherwise}")
    return number


def wholes(name: str, values: Any) -> list[int]:
    """A list of such values, each as by `whole`."""
    try:
        return [whole(name, value) for value in values]
    except TypeError:
        raise ConfigError(f"{name} is {values!r}; it must be a list of positive integers") from None


def sizes(batch_tokens: int, batch_size: int | None) -> tuple[int, int | None]:
    """Both options as plain ints, checked by `whole`."""
    return whole("batch_tokens", batch_tokens), None if batch_size is None else whole("batch_size", batch_size)


def switch(name: str, default: bool) -> bool:
    """What an environment variable says: 1 or 0. Raises ConfigError for anything else."""
    value = os.environ.get(name) or str(int(default))
    if value not in ("0", "1"):
        raise ConfigError(f"{name} is {value!r}; it must be 0 or 1")
    return value == "1"
