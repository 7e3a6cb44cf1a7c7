"""The base class of criteria, what a model's outputs offer them, and the table of criteria that text may name."""

from __future__ import annotations

import contextlib
import math
import numbers
from typing import Any, ClassVar, NamedTuple, TypeVar

from torch import Tensor

from ..errors import ConfigError, shown
from ..registry import Registry

CriterionState = Any  # None at first, then what the criterion returned: tensors whose first dimension is rows
SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"


class Outputs(NamedTuple):
    """What a model's exits give a criterion."""

    problem_type: str
    labels: int
    learned: bool = False  # does the head add a score of its own?
    tags: bool = False  # does it score every token, not every row?


class Criterion:
    """Base class. A user's own criterion may also be any callable with the signature of `__call__`.

    A criterion made of the engine's own signals derives from `DataCriterion` and runs as fast as ours. Any other is
    called after each tested exit.

    name: what its text begins with, once `register` has put it into the table; None for no text.
    threshold: the knob, None where there is none.
    problem_types, min_labels, learned, tags: the `Outputs` that it makes sense on.
    monotone: does no row leave later at a faster threshold? Then thresholds are searched by bisection; otherwise every
    candidate is tried.
    """

    name: ClassVar[str | None] = None
    threshold: float | tuple[float, ...] | None = None
    problem_types: tuple[str, ...] = (SINGLE, MULTI, REGRESSION)
    min_labels: int = 1
    learned: bool = False
    tags: bool | None = False  # None: for heads that tag and heads that do not
    monotone: bool = False

    def tests(self, layer: int) -> bool:
        """Does it read the logits after this layer? Where it does not, the head does not compute them."""
        return True

    def misfit(self, outputs: Outputs) -> str | None:
        """Why it cannot run on such outputs, for example "needs at least 2 labels"; None where it can."""
        if outputs.problem_type not in self.problem_types:
            return f"makes no sense for problem_type {outputs.problem_type!r}"
        if outputs.labels < self.min_labels:
            return f"needs at least {self.min_labels} labels, and this model has {outputs.labels}"
        if self.learned and not outputs.learned:
            return "needs a head that learns when to exit, and this model's head has no such score"
        if self.tags is not None and self.tags != outputs.tags:
            found = "scores every token" if outputs.tags else "scores whole rows"
            return f"is for heads that score {'every token' if self.tags else 'whole rows'}, and this model's {found}"
        return None

    def with_threshold(self, threshold: float) -> Criterion:
        """The same criterion at another threshold. Raises ConfigError where it has none or the value makes no sense."""
        raise ConfigError(f"criterion {shown(self)} takes no threshold")

    def candidates(self, logits: Tensor) -> list[float]:
        """All thresholds that differ in effect on rows with these logits [exits, rows, labels], slowest first."""
        raise ConfigError(f"criterion {shown(self)} cannot be calibrated")

    def grid(self, exits: int, labels: int) -> list[float]:
        """Thresholds fixed without looking at any row, slowest first. A guarantee is tested over these.

        At the first one no row leaves early, if there is such a threshold.
        """
        raise ConfigError(f"criterion {shown(self)} cannot be calibrated with a guarantee")

    @classmethod
    def from_text(cls, argument: str, threshold: float | None) -> Criterion:
        """The criterion of a text "name:argument". `threshold` replaces the one in the text.

        This implementation calls the class with one number, or with nothing where there is none.
        """
        if threshold is None and argument.strip():
            threshold = read_number(argument, f"{cls.name}:{argument}")
        return cls() if threshold is None else cls(threshold)  # type: ignore[call-arg]

    def __call__(
        self, layer: int, logits: Tensor, state: CriterionState, row_ids: Tensor
    ) -> tuple[Tensor, CriterionState]:
        """Which rows leave after `layer` (1-based).

        logits: float32 [rows, labels]; row_ids: int64 [rows], each row's number in the caller's input. A user's
        criterion gets copies. state: None at first, then what the last call returned, of the rows that are left.
        Returns bool [rows] and the new state: None, or tensors whose first dimension is rows, also nested in tuples.
        It runs in inference mode, without the caller's autocast and default device.
        """
        raise TypeError(f"{type(self).__name__} must define __call__(layer, logits, state, row_ids)")


CRITERIA: Registry[type[Criterion]] = Registry("criterion")
"""Criteria by the name that their text begins with, for `parse`. Filled by `register`."""

Kind = TypeVar("Kind", bound=type[Criterion])


def register(kind: Kind) -> Kind:
    """Class decorator: from now on texts that begin with `kind.name` stand for this criterion.

    A class may be registered again under its own name, as happens when its module is reloaded. Raises ValueError for a
    name that another class has, or that is not of small letters, digits, - and _, TypeError for what is no `Criterion`.
    """
    if not (isinstance(kind, type) and issubclass(kind, Criterion)):
        raise TypeError(f"{kind!r} is no subclass of Criterion")
    CRITERIA.add(kind.__dict__.get("name"), kind)
    return kind


def number(name: str, value: Any) -> float:
    """A finite number as a Python float. Raises ConfigError, which begins with `name`, for anything else."""
    try:
        real = math.nan if isinstance(value, bool) or not isinstance(value, numbers.Real) else float(value)
    except (OverflowError, ValueError):  # an integer of 400 digits
        real = math.nan
    if not math.isfinite(real):
        raise ConfigError(f"{name} is {shown(value)}; it must be a finite number")
    return real


def share(name: str, value: Any) -> float:
    """A number between 0 and 1, neither included, as a Python float. Raises ConfigError, which begins with `name`."""
    real = number(name, value)
    if not 0 < real < 1:
        raise ConfigError(f"{name} is {value!r}; it must be between 0 and 1")
    return real


def whole_number(name: str, value: Any) -> int:
    """An integer from 1 to 2^31 - 1. Raises ConfigError, which begins with `name`, for anything else."""
    real = number(name, value)
    if real != int(real) or not 1 <= real < 2**31:
        raise ConfigError(f"{name} is {shown(value)}; it must be an integer >= 1")
    return int(real)


def read_number(text: str, whole: str) -> float:
    """A number in a criterion's text, `whole`. Raises ConfigError where `text` is not a number."""
    value: float | None = None
    with contextlib.suppress(ValueError):
        value = float(text)
    if value is None or "_" in text:  # Python reads 0_3 as 3
        raise ConfigError(f"criterion {shown(whole)}: {shown(text)} is not a number")
    return value
