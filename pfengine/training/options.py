"""What an option of a training run is: its meaning, and the values it takes."""

from __future__ import annotations

import contextlib
import math
import numbers
import os
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import numpy as np

from ..registry import Registry


class Limits(NamedTuple):
    """Which numbers an option takes."""

    text: str  # as an error says it
    fits: Callable[[Any], bool]
    whole: bool = False


def given(options: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Those of these options that have a value."""
    return {name: options[name] for name in names if options.get(name) is not None}


MAX_COUNT, MAX_SEED = 2**31 - 1, 2**32 - 1  # those of numpy
COUNT = Limits(f"an integer > 0, at most {MAX_COUNT}", lambda v: 0 < v <= MAX_COUNT, whole=True)
SEED = Limits(f"an integer from 0 to {MAX_SEED}", lambda v: 0 <= v <= MAX_SEED, whole=True)
EPOCHS = Limits("a number > 0, at most 1e6", lambda v: 0 < v <= 1e6)
NOT_NEGATIVE = Limits("a number >= 0", lambda v: 0 <= v < math.inf)
SPEEDUP = Limits("a number >= 1", lambda v: 1 <= v < math.inf)
POSITIVE = Limits("a number > 0", lambda v: 0 < v < math.inf)
SHARE = Limits("a number in [0, 1)", lambda v: 0 <= v < 1)


class Option(NamedTuple):
    """What an option means, for `--help`, and which numbers or names it takes; without either, any text.

    default: of an option that a system declares itself; those of all systems have theirs in `TrainingConfig`. many:
    does it take a tuple of values, on the command line with commas between? path: of a file or directory that the run
    reads, such that an interrupted run is not resumed with another one?
    """

    help: str
    limits: Limits | None = None
    choices: Collection[str] = ()
    default: Any = None
    many: bool = False
    path: bool = False

    def parse(self, text: str) -> Any:
        """The value that a text on the command line stands for, still unchecked."""
        parts = [part.strip() for part in text.split(",")] if self.many else [text]
        if self.limits is not None:
            with contextlib.suppress(ValueError):
                return self._as_given([int(part) if self.limits.whole else float(part) for part in parts])
        return self._as_given(parts)

    def read(self, name: str, value: Any) -> Any:
        """The value as it is kept: Python's numbers, which JSON takes, and tuples. ValueError says what is wrong."""
        parts: Any = value if self.many else [value]
        if self.path and isinstance(value, os.PathLike):
            parts = [os.fspath(value)]
        if not isinstance(parts, (list, tuple)) or not parts or not all(map(self._takes, parts)):
            raise ValueError(f"{name} is {value!r}; {'each must be' if self.many else 'it must be'} {self._what()}")
        if self.limits is None:
            return self._as_given(list(parts))
        return self._as_given([int(part) if self.limits.whole else float(part) for part in parts])

    def _as_given(self, parts: list[Any]) -> Any:
        return tuple(parts) if self.many else parts[0]

    def _takes(self, part: Any) -> bool:
        if self.limits is None:
            return isinstance(part, str) and (not self.choices or part in self.choices)
        kind = numbers.Integral if self.limits.whole else numbers.Real
        return not isinstance(part, (bool, np.bool_)) and isinstance(part, kind) and self.limits.fits(part)

    def _what(self) -> str:
        if self.limits is not None:
            return self.limits.text
        known = self.choices.known if isinstance(self.choices, Registry) else ", ".join(self.choices)
        return f"one of {known}" if self.choices else "text"


def read_own(own: Mapping[str, Option], given: Mapping[str, Any], system: str) -> tuple[dict[str, Any], list[str]]:
    """Values for options that a system declares itself, and what is wrong with them."""
    found, faults = {}, []
    for name, value in given.items():
        if name not in own:
            takes = f"of its own it takes {', '.join(own)}" if own else "it has none of its own"
            faults.append(f"{name} is {value!r}, an option that system {system!r} does not take; {takes}")
            continue
        try:
            found[name] = own[name].read(name, value)
        except ValueError as error:
            faults.append(str(error))
    return found, faults
