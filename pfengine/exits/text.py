"""Criteria as text: "entropy:0.3", "never", "replay:3,5,2"; without a threshold "elbert:,8,0.1"."""

from __future__ import annotations

import contextlib

from ..errors import ConfigError, shown
from .base import CRITERIA, Criterion, Outputs
from .data import DataCriterion


def name_of(text: str) -> str:
    return text.strip().partition(":")[0]


def parse(text: str, threshold: float | None = None) -> Criterion:
    """The criterion that a text such as "entropy:0.3" stands for. `threshold` replaces the one in the text.

    Raises ConfigError where it is no text, the name is unknown, or the threshold is missing or makes no sense.
    """
    if not isinstance(text, str):
        raise ConfigError(f"criterion is of type {type(text).__name__}; give text such as 'entropy:0.3'")
    name, _, argument = text.strip().partition(":")
    return _find(name, text).from_text(argument, threshold)


def lacks_threshold(text: str) -> bool:
    """Does the text leave out a threshold that its criterion needs?"""
    name, _, argument = text.strip().partition(":")
    kind = _find(name, text)
    return has_knob(kind) and not argument.partition(",")[0].strip()


def has_knob(kind: type[Criterion]) -> bool:
    return issubclass(kind, DataCriterion) and kind.with_threshold is DataCriterion.with_threshold


def parse_form(text: str) -> Criterion:
    """`parse`, with a placeholder where the text has no threshold: for searches, which replace it."""
    kind = _find(name_of(text), text)
    example = kind.example if issubclass(kind, DataCriterion) else 1.0
    return parse(text, example if lacks_threshold(text) else None)


def check_fits(criterion: Criterion, outputs: Outputs, text: str | None = None) -> None:
    """Raise ConfigError where it cannot run on such outputs: it says why, and which criteria of the table can.

    text: of the criterion where that is what the caller was given.
    """
    if reason := criterion.misfit(outputs):
        what = shown(criterion if text is None else text)
        raise ConfigError(f"criterion {what} {reason}; criteria that fit: {', '.join(fitting(outputs))}")


def fitting(outputs: Outputs) -> list[str]:
    """The names of the criteria that run on such outputs, at least with one choice of their parameters."""
    found = []
    for name in sorted(CRITERIA):
        for text in (name, f"{name}:,0.1"):  # patience of scores has a tolerance
            with contextlib.suppress(ConfigError):
                if parse_form(text).misfit(outputs) is None:
                    found.append(name)
                    break
    return found


def faults(criterion: str | None, threshold: float | None) -> list[str]:
    """What is wrong with a checkpoint's criterion. It may lack a threshold; then the caller must give one."""
    if criterion is None or criterion == "never":
        return [] if threshold is None else [f"'threshold' is {threshold}, but 'criterion' {criterion!r} takes none"]
    try:
        parse_form(criterion) if threshold is None else parse(criterion, threshold)
    except ConfigError as error:
        return [f"'criterion': {error}"]
    return []


def _find(name: str, text: str) -> type[Criterion]:
    if name not in CRITERIA:
        raise ConfigError(f"criterion {shown(text)} is unknown; it must be one of {CRITERIA.known}")
    return CRITERIA[name]
