"""The errors pfengine raises on purpose: each says in one sentence what was wrong, where, and what to do."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from typing import Any

MOST_FAULTS, MOST_CHARACTERS = 10, 400  # faults in a message; characters in a fault


class PFEngineError(Exception):
    """Base of all errors that a user's input can cause. They pickle, whatever their constructors take."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (type(self), self.args, self.__dict__)


def _rebuilt(kind: type[PFEngineError], args: tuple[Any, ...], state: dict[str, Any]) -> PFEngineError:
    error = kind.__new__(kind, *args)  # sets args; the constructor would make a new message of them
    error.__dict__.update(state)
    return error


class CheckpointError(PFEngineError, ValueError):
    """A checkpoint directory that cannot be used. `faults` lists every fault; the message shows the first ten."""

    def __init__(self, path: Any, faults: Sequence[str]) -> None:
        self.path, self.faults = path, [_printable(fault) for fault in faults]
        head, more = f"{_printable(str(path))}: ", len(self.faults) - MOST_FAULTS
        lines = [f"  - {fault}" for fault in self.faults[:MOST_FAULTS]] + [f"  - and {more:,} more"] * (more > 0)
        super().__init__(
            head + self.faults[0]
            if len(self.faults) == 1
            else head + f"{len(self.faults):,} faults:\n" + "\n".join(lines)
        )


class ConfigError(PFEngineError, ValueError):
    """An option or a combination of options that cannot be met."""


class TrainingError(PFEngineError, RuntimeError):
    """A training run that cannot continue."""


class InputError(PFEngineError, ValueError):
    """A row that cannot be classified; `row` is its 0-based index in the input."""

    def __init__(self, row: int, reason: str) -> None:
        self.row, self.reason = row, reason
        super().__init__(f"row {row}: {reason}")


class InputTypeError(InputError, TypeError):
    """A row that is not text, a pair, or a dict of text or ids."""


def shown(value: Any) -> str:
    """repr(value) for a message: short, however large or deep the value is, and whatever its `__repr__` raises."""
    try:
        return _SHORT.repr(value)
    except Exception:
        return f"an object of type {type(value).__name__}"


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80


def _printable(text: str) -> str:
    """`text` in one line, of bounded length, and without characters that a terminal cannot show."""
    if len(text) > MOST_CHARACTERS:
        half = MOST_CHARACTERS // 2
        text = f"{text[:half]} ... {text[-half:]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
