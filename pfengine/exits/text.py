"""Criteria as text: "entropy:0.3", "never", "replay:3,5,2", and without a threshold, "elbert:,8,0.1"."""

from __future__ import annotations

from ..errors import ConfigError, shown
from .base import CRITERIA, Criterion
from .data import DataCriterion


def name_of(text: str) -> str:
    return text.strip().partition(":")[0]


def parse(text: str, threshold: float | None = None) -> Criterion:
    """The criterion a text such as "entropy:0.3" stands for; `threshold` replaces the one in the text.

    Raises ConfigError where the name is unknown, the threshold is missing or makes no sense.
    """
    name, _, argument = text.strip().partition(":")
    return _find(name, text).from_text(argument, threshold)


def lacks_threshold(text: str) -> bool:
    """Is it a criterion of ours or registered as data, without the threshold it needs?"""
    name, _, argument = text.strip().partition(":")
    kind = _find(name, text)
    return has_knob(kind) and not argument.partition(",")[0].strip()


def has_knob(kind: type[Criterion]) -> bool:
    return issubclass(kind, DataCriterion) and kind.with_threshold is DataCriterion.with_threshold


def parse_form(text: str) -> Criterion:
    """`parse`, at a threshold of no meaning where the text has none: for searches, which replace it."""
    kind = _find(name_of(text), text)
    example = kind.example if issubclass(kind, DataCriterion) else 1.0
    return parse(text, example if lacks_threshold(text) else None)


def faults(criterion: str | None, threshold: float | None) -> list[str]:
    """What is wrong with a checkpoint's criterion; it may lack a threshold, which the caller gives then."""
    if criterion is None or criterion == "never":
        return [] if threshold is None else [f"'threshold' is {threshold}, but 'criterion' {criterion!r} takes none"]
    try:
        parse_form(criterion) if threshold is None else parse(criterion, threshold)
    except ConfigError as error:
        return [f"'criterion': {error}"]
    return []


def _find(name: str, text: str) -> type[Criterion]:
    if name not in CRITERIA:
        raise ConfigError(
            f"criterion {shown(text)} is unknown; there are {', '.join(sorted(CRITERIA))}, and those that your own "
            "modules register, once they are imported"
        )
    return CRITERIA[name]
