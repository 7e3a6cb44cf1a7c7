"""Every error pfengine raises on purpose: one sentence with what was wrong, where, and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class PFEngineError(Exception):
    """Base of all errors a user's input can cause. They pickle, whatever their constructors take."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (type(self), self.args, self.__dict__)


def shown(value: Any) -> str:
    """repr(value) for a message: short, and whatever the value is; Python writes no integer of 5,000 digits."""
    try:
        text = repr(value)
    except Exception:
        return f"an object of type {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."


def _rebuilt(kind: type[PFEngineError], args: tuple[Any, ...], state: dict[str, Any]) -> PFEngineError:
    error = kind.__new__(kind, *args)  # which sets args; a constructor would make a message of them again
    error.__dict__.update(state)
    return error


class CheckpointError(PFEngineError, ValueError):
    """A checkpoint directory that cannot be used; `faults` holds every fault found, not only the first."""

    def __init__(self, path: Any, faults: Sequence[str]) -> None:
        self.path, self.faults = path, list(faults)
        head = f"{path}: "
        super().__init__(
            head + self.faults[0]
            if len(self.faults) == 1
            else head + f"{len(self.faults)} faults:\n" + "\n".join(f"  - {fault}" for fault in self.faults)
        )


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
