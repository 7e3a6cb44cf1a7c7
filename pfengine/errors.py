"""Every error pfengine raises on purpose: one sentence with what was wrong, where, and what to do."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from typing import Any

MOST_FAULTS, MOST_CHARACTERS = 10, 400  # of a message, and of each of its faults


class PFEngineError(Exception):
    """Base of all errors a user's input can cause."""


class CheckpointError(PFEngineError, ValueError):
    """A checkpoint directory that cannot be used; `faults` holds every fault found, the message the first ten."""

    def __init__(self, path: Any, faults: Sequence[str]) -> None:
        self.path, self.faults = path, [_printable(fault) for fault in faults]
        head, more = f"{_printable(str(path))}: ", len(self.faults) - MOST_FAULTS
        lines = [f"  - {fault}" for fault in self.faults[:MOST_FAULTS]] + [f"  - and {more:,} more"] * (more > 0)
        super().__init__(
            head + self.faults[0]
            if len(self.faults) == 1
            else head + f"{len(self.faults):,} faults:\n" + "\n".join(lines)
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.faults)


class ConfigError(PFEngineError, ValueError):
    """An option or a combination of options that cannot be met."""


class TrainingError(PFEngineError, RuntimeError):
    """A training run that cannot go on."""


class InputError(PFEngineError, ValueError):
    """A row that cannot be classified; `row` is its 0-based index in the input."""

    def __init__(self, row: int, reason: str) -> None:
        self.row, self.reason = row, reason
        super().__init__(f"row {row}: {reason}")


class InputTypeError(InputError, TypeError):
    """A row of a type that is no text, pair, or dict of text or ids."""


def shown(value: Any) -> str:
    """A value from a file as a message shows it, however large or deep it is."""
    return _SHORT.repr(value)


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80


def _printable(text: str) -> str:
    """In one line, of bounded length, and with nothing in it that a terminal cannot show."""
    if len(text) > MOST_CHARACTERS:
        half = MOST_CHARACTERS // 2
        text = f"{text[:half]} ... {text[-half:]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
