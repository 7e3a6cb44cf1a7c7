"""Criteria that are data: clauses over the engine's own signals, which every carrier of flights decides by itself."""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
from torch import Tensor

from ..errors import ConfigError, shown
from ..ops import decide
from ..ops.rule import Clause, ExitRule, TokenRule
from .base import SINGLE, Criterion, CriterionState, number, read_number, whole_number
from .candidates import candidates, grid
from .signals import signal

Numbers = float | tuple[float, ...]
"""One number for all exits, or one per exit. The last exit, which always answers, may be left out."""


_ONE = np.ones((1, 1), np.float32)


class Binding:
    """A criterion bound to a model's layers and exits: its numbers in the shapes that clauses need.

    binding(numbers): float32 [n, 1], the number of the exit after each layer; [1, 1] where all exits have the same one.
    threshold: the knob, float32 [1 or n, 1 or slots]. layers: the number of each layer, float32 [n, 1]. exits: how many
    tested exits there are up to each layer, float32 [n, 1]. num_layers: n.

    A criterion that is called by hand is bound to no model. Whatever depends on layers raises ConfigError then.
    """

    def __init__(
        self,
        criterion: DataCriterion,
        num_layers: int | None = None,
        exit_layers: Sequence[int] = (),
        threshold: np.ndarray | None = None,
    ) -> None:
        self._criterion, self._num_layers, self._exit_layers = criterion, num_layers, exit_layers
        if threshold is None:
            given: Any = criterion.threshold
            threshold = _ONE if given is None else self(given)
        self.threshold = threshold

    def __call__(self, numbers: Numbers) -> np.ndarray:
        if not isinstance(numbers, tuple):
            with np.errstate(over="ignore"):  # 1e300 is inf
                return np.full((1, 1), numbers, np.float32)
        count = len(self._exits)
        if len(numbers) not in (count, count - 1):
            raise ConfigError(
                f"criterion {shown(self._criterion)} has numbers for {len(numbers)} exits, and there are {count}; give "
                "one number per exit, or one for all"
            )
        following = np.searchsorted(self._exits, np.arange(1, self.num_layers + 1))  # the first at or after each layer
        with np.errstate(over="ignore"):
            return np.array(numbers, np.float32)[np.minimum(following, len(numbers) - 1)][:, None]

    @property
    def num_layers(self) -> int:
        if self._num_layers is None:
            raise ConfigError(
                f"criterion {shown(self._criterion)} depends on which layer and exit it is asked at; call what its "
                "`bind(num_layers, exit_layers)` gives"
            )
        return self._num_layers

    @property
    def _exits(self) -> Sequence[int]:
        return self._exit_layers if self.num_layers else ()

    @property
    def layers(self) -> np.ndarray:
        return np.arange(1, self.num_layers + 1, dtype=np.float32)[:, None]

    @property
    def exits(self) -> np.ndarray:
        return np.searchsorted(self._exits, self.layers[:, 0], "right").astype(np.float32)[:, None]


@dataclasses.dataclass(frozen=True)
class Bound:
    """A criterion bound to a model's layers, to be called by hand as `Criterion.__call__` says."""

    rule: ExitRule

    def __call__(
        self,
        layer: int,
        logits: Tensor,
        state: CriterionState,
        row_ids: Tensor,
        learned: Tensor | None = None,
        bounds: Tensor | None = None,
    ) -> tuple[Tensor, CriterionState]:
        """learned, bounds: as in `ops.decide.decide`; ConfigError where they are needed and missing."""
        if learned is None and any(clause.signal == "learned" for clause in self.rule.clauses):
            raise ConfigError("this criterion compares a learned score: give learned, float32 [rows]")
        if bounds is None and self.rule.tokens is not None:
            raise ConfigError("this criterion reads tokens: give bounds, int32 [rows + 1]")
        leave, state = decide.decide(self.rule, layer, logits, learned, state, row_ids, signal, bounds)
        return leave, state if state.shape[1] else None


class DataCriterion(Criterion):
    """A criterion made of clauses: a row leaves at the first tested exit where one of them holds.

    A subclass is a frozen dataclass whose first field is `threshold`, the knob. All fields are numbers and, in this
    order, the parameters of its text. A field of type int takes integers >= 1; a threshold of this type counts exits. A
    field of type `Numbers` may have one number per exit (joined by "/" in text). A field of type float | None may be
    left out.

        @register
        @dataclass(frozen=True)
        class Apart(DataCriterion):
            '''Leave where the two best labels are at least `threshold` apart at `times` consecutive exits.'''

            name = "apart"
            threshold: float
            times: int = 2

            def clauses(self, at: Binding) -> tuple[Clause, ...]:
                return (Clause("margin", ">=", at.threshold, "running", times=at(self.times)),)

    One direction of the threshold must be the faster one: as it moves that way, no row may leave later, whatever the
    other numbers are. example: a threshold that makes sense, for messages.
    """

    example: ClassVar[float] = 0.3
    problem_types: tuple[str, ...] = (SINGLE,)
    min_labels = 2
    monotone = True

    def clauses(self, at: Binding) -> tuple[Clause, ...]:
        """The clauses of its rule.

        at(numbers) is a field in the shape that a clause needs, a number per layer; at.threshold is the threshold, per
        layer and slot.
        """
        raise TypeError(f"{type(self).__name__} must define clauses(at)")

    def tokens(self) -> TokenRule | None:
        """How the signals of tokens are read, for heads that score every token; None for heads that score rows."""
        return None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__repr__" not in cls.__dict__:  # otherwise dataclass would generate one
            cls.__repr__ = DataCriterion.__repr__  # type: ignore[method-assign]
        if "__call__" in cls.__dict__ and "monotone" not in cls.__dict__:
            cls.monotone = False

    def __post_init__(self) -> None:
        if type(self).__hash__ is None:
            raise TypeError(f"{type(self).__name__} must be a frozen dataclass: @dataclass(frozen=True)")
        for name, field in _fields(type(self)).items():
            value = getattr(self, name)
            if value is None and field.optional:
                continue
            what = f"the {name} of {self.name}"
            if isinstance(value, tuple) and field.per_exit and value:
                object.__setattr__(self, name, tuple(number(what, each) for each in value))
            else:
                object.__setattr__(self, name, (whole_number if field.whole else number)(what, value))

    @property
    def form(self) -> str:
        """Its text without the threshold. A checkpoint stores the two separately."""
        return self._text("")

    def _text(self, knob: str | None = None) -> str:
        fields = _fields(type(self))
        parts = [_written(getattr(self, name)) for name in fields]
        if knob is not None:
            parts[0] = knob
        for field in reversed(list(fields.values())[1:]):
            if parts[-1] != _written(field.default):
                break
            parts.pop()
        return f"{self.name}:{','.join(parts)}".rstrip(":")

    def __repr__(self) -> str:
        return self._text()

    @classmethod
    def from_text(cls, argument: str, threshold: float | None) -> Criterion:
        fields, text = _fields(cls), f"{cls.name}:{argument}"
        given = [part.strip() for part in argument.split(",")] if argument.strip() else []
        if len(given) > len(fields):
            raise ConfigError(f"criterion {shown(text)} has {len(given)} numbers; {cls.name} takes {', '.join(fields)}")
        values = {
            name: _read(part, field, text) for (name, field), part in zip(fields.items(), given, strict=False) if part
        }
        knob = next(iter(fields))
        if threshold is not None:
            values[knob] = threshold
        if knob not in values:
            rest = ",".join(["", *given[1:]])
            example = _written(cls.example)
            raise ConfigError(
                f"criterion {(argument and text) or cls.name!r} needs a threshold: '{cls.name}:{example}{rest}', or "
                f"threshold={example}"
            )
        return cls(**values)

    def with_threshold(self, threshold: Any) -> DataCriterion:
        return dataclasses.replace(self, threshold=threshold)  # type: ignore[type-var]

    @property
    def counts(self) -> bool:
        """Is the knob a number of exits, an integer?"""
        return next(iter(_fields(type(self)).values())).whole

    def for_exits(self, exit_layers: Sequence[int], chosen: Sequence[int]) -> DataCriterion:
        """The same criterion where only `chosen` of `exit_layers` are tested: of numbers per exit it keeps theirs."""
        changed = {}
        for name in _fields(type(self)):
            value = getattr(self, name)
            if isinstance(value, tuple):
                Binding(self, exit_layers[-1], exit_layers, _ONE)(value)  # checks that there are as many as exits
                kept = [number for layer, number in zip(exit_layers, value, strict=False) if layer in chosen]
                changed[name] = tuple(kept)
        return dataclasses.replace(self, **changed) if changed else self  # type: ignore[type-var]

    def exit_rule(
        self,
        num_layers: int,
        exit_layers: Sequence[int],
        first_row: int = 0,
        slots: int = 1,
        thresholds: np.ndarray | None = None,
    ) -> ExitRule:
        """The rule for a model of `num_layers` with exits after `exit_layers`, the last layer among them.

        first_row, slots: the rows that run by this rule are rows first_row to first_row + slots - 1 of the input; row
        first_row has slot 0. thresholds: float [slots] or [num_layers, slots], in place of the criterion's own
        threshold; a row whose number is nan leaves after the last layer. Raises ConfigError where a field has not as
        many numbers as there are exits, or where a criterion that lists rows (`replay`) does not reach these.
        """
        if thresholds is None:
            return _bound_rule(self, num_layers, tuple(exit_layers))
        with np.errstate(over="ignore"):
            spread = np.atleast_2d(np.asarray(thresholds)).astype(np.float32)
        clauses = self.clauses(Binding(self, num_layers, exit_layers, spread))
        never = np.isnan(spread).any(0)
        if never.any():
            clauses = tuple(
                clause._replace(threshold=np.where(never, np.float32(np.nan), clause.threshold)) for clause in clauses
            )
        return ExitRule(_tested(self, num_layers, exit_layers), clauses, self.tokens())

    def bind(self, num_layers: int, exit_layers: Sequence[int]) -> Bound:
        """The criterion, to be called by hand after the exits of such a model."""
        return Bound(self.exit_rule(num_layers, exit_layers))

    def __call__(
        self, layer: int, logits: Tensor, state: CriterionState, row_ids: Tensor
    ) -> tuple[Tensor, CriterionState]:
        return Bound(_unbound_rule(self))(layer, logits, state, row_ids)

    def candidates(self, logits: Tensor) -> list[float]:
        """`Criterion.candidates`, for exits after layers 1, 2, 3 and so on; see also `candidates_at`."""
        return self.candidates_at(logits, range(1, len(logits) + 1))

    def candidates_at(
        self, logits: Tensor, exit_layers: Sequence[int], learned: Tensor | None = None, bounds: Tensor | None = None
    ) -> list[float]:
        """All thresholds that differ in effect on these rows, slowest first, and before them one that is slower still.

        logits: [exits, rows, labels]; learned: float32 [exits, rows], the head's own score; bounds: as in `decide`.
        """
        if self.counts:
            return [float(k) for k in range(len(logits) - 1, 0, -1)]
        return candidates(self._numbers(exit_layers), self.tokens(), logits, exit_layers, learned, bounds)

    def grid(self, exits: int, labels: int) -> list[float]:
        if self.counts:
            return [float(k) for k in range(exits, 0, -1)]
        return grid(self._numbers(range(1, exits + 1)), exits, labels)

    def _numbers(self, exit_layers: Sequence[int]) -> Callable[[np.ndarray], tuple[Clause, ...]]:
        """A function from thresholds by slot, float32 [1, P], to the clauses at them."""
        return lambda knobs: self.clauses(Binding(self, exit_layers[-1], exit_layers, knobs))


def is_data(criterion: Any) -> typing.TypeGuard[DataCriterion]:
    """Is it decided from its clauses alone? Not where a subclass overrides `__call__`."""
    return isinstance(criterion, DataCriterion) and type(criterion).__call__ is DataCriterion.__call__


@functools.lru_cache(maxsize=256)
def _bound_rule(criterion: DataCriterion, num_layers: int, exit_layers: tuple[int, ...]) -> ExitRule:
    clauses = criterion.clauses(Binding(criterion, num_layers, exit_layers))
    return ExitRule(_tested(criterion, num_layers, exit_layers), clauses, criterion.tokens())


@functools.lru_cache(maxsize=64)
def _unbound_rule(criterion: DataCriterion) -> ExitRule:
    return ExitRule(b"", criterion.clauses(Binding(criterion)), criterion.tokens())


def _tested(criterion: Criterion, num_layers: int, exit_layers: Sequence[int]) -> bytes:
    return bytes(layer in exit_layers and criterion.tests(layer) for layer in range(1, num_layers + 1))


class _Field(NamedTuple):
    default: Any
    whole: bool
    per_exit: bool
    optional: bool


def _fields(kind: Any) -> dict[str, _Field]:
    """The parameters of a criterion's text, in order."""
    return _read_fields(kind)


@functools.cache
def _read_fields(kind: Any) -> dict[str, _Field]:
    hints = typing.get_type_hints(kind)
    found = {}
    for field in dataclasses.fields(kind):
        types = typing.get_args(hints[field.name]) or (hints[field.name],)
        per_exit = any(typing.get_origin(each) is tuple for each in types)
        found[field.name] = _Field(field.default, int in types, per_exit, type(None) in types)
    return found


def _written(value: Any) -> str:
    if isinstance(value, tuple):
        return "/".join(map(_written, value))
    text = "" if value is None else repr(value)
    return text.removesuffix(".0")


def _read(part: str, field: _Field, text: str) -> Numbers:
    if field.per_exit and "/" in part:
        return tuple(read_number(each, text) for each in part.split("/"))
    return read_number(part, text)
