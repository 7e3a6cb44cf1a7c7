"""Which criterion runs, for a call (`choose`) and per row (`Selection`).

It is the caller's or the checkpoint's own, at a threshold given as a number or by a layer speed-up.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ..errors import ConfigError, InputError, shown
from ..ops.rule import ExitRule
from ..rows import MISSING, Row
from .base import Criterion, Outputs, number
from .data import Binding, DataCriterion, is_data
from .fixed import Never, Replay
from .text import has_knob, lacks_threshold, name_of, parse, parse_form

log = logging.getLogger("pfengine")


class OwnExits(NamedTuple):
    """What a checkpoint says of its exits, and what they give criteria."""

    path: Any  # for messages
    criterion: str  # its text, with or without a threshold
    threshold: float | None
    exit_layers: tuple[int, ...]  # the last is the full model's
    calibration: Sequence[dict[str, Any]]
    outputs: Outputs

    def named(self, text: str) -> str:
        """The checkpoint's own text where only its name is given, so that parameters but the threshold are its own."""
        return self.criterion if text.strip() == name_of(self.criterion) else text


def choose(own: OwnExits, criterion: Any, threshold: float | None, speedup: float | None, current: Any = None) -> Any:
    """The criterion object (or the caller's callable) for a checkpoint.

    current: runs where no criterion is given; None: the checkpoint's own. A speed-up always stands for the checkpoint's
    own criterion, because its calibration table is of that one.

    Raises ConfigError where the options contradict each other or do not fit the model's outputs or exits, or where
    `speedup` is outside the calibration table.
    """
    if threshold is not None and speedup is not None:
        raise ConfigError("give threshold or speedup, not both")
    threshold = None if threshold is None else number("threshold", threshold)
    if speedup is not None:
        speedup = number("speedup", speedup)
        if criterion is not None:
            _check_table_is_of(own, criterion)
        if speedup == 1:
            return Never()
        threshold, criterion = threshold_at(own, speedup), own.criterion
    elif criterion is None:
        criterion = current
    if criterion is None:
        if own.criterion == "never" and threshold is not None:
            raise ConfigError(f"{own.path} has no criterion of its own; give one, such as criterion='entropy:0.3'")
        if threshold is None and own.threshold is None and lacks_threshold(own.criterion):
            log.warning(
                "%s has the criterion %r but no threshold: it runs at full depth; give threshold= or speedup=",
                own.path, own.criterion,
            )  # fmt: skip
            return Never()
        criterion = own.criterion
    if isinstance(criterion, Never) and threshold is not None and own.criterion != "never":
        criterion = own.criterion  # loaded at full depth, asked for exits in this call
    if isinstance(criterion, str):
        text = own.named(criterion)
        rule: Any = parse(text, own.threshold if text.strip() == own.criterion and threshold is None else threshold)
    else:
        rule = _with_threshold(criterion, threshold)
    return _fitting(own, rule)


def _fitting(own: OwnExits, rule: Any) -> Any:
    """The criterion itself; ConfigError where it is not one, or makes no sense on these outputs and exits."""
    if isinstance(rule, type):
        raise ConfigError(f"criterion is the class {rule.__name__}; give an object of it")
    if not callable(rule):
        raise ConfigError(
            f"criterion is of type {type(rule).__name__}; give an object of pfengine.exits, a callable, or text"
        )
    if isinstance(rule, Never):
        return rule
    if len(own.exit_layers) == 1:
        raise ConfigError(
            f"{own.path} has no exit before its last layer: it runs at full depth, with criterion 'never'"
        )
    if isinstance(rule, Criterion) and (reason := rule.misfit(own.outputs)):
        raise ConfigError(f"criterion {shown(rule)} {reason}")
    if isinstance(rule, DataCriterion) and not isinstance(rule, Replay):
        exit_rule = rule.exit_rule(own.exit_layers[-1], own.exit_layers)  # checks the count of numbers per exit
        if any(clause.signal == "learned" for clause in exit_rule.clauses) and not own.outputs.learned:
            raise ConfigError(f"criterion {shown(rule)} compares a learned score, and this model's head adds none")
        if exit_rule.tokens is not None and not own.outputs.tags:
            raise ConfigError(f"criterion {shown(rule)} reads tokens, and this model's head scores whole rows")
    return rule


def _with_threshold(criterion: Any, threshold: float | None) -> Any:
    if threshold is None:
        return criterion
    if not isinstance(criterion, Criterion):
        raise ConfigError(f"criterion {shown(criterion)} takes no threshold")
    return criterion.with_threshold(threshold)


def _check_table_is_of(own: OwnExits, criterion: Any) -> None:
    given = parse_form(own.named(criterion)) if isinstance(criterion, str) else criterion
    form = given.form if isinstance(given, DataCriterion) else None
    if form is None or own.criterion == "never" or form != _form(own.criterion):
        raise ConfigError(
            f"speedup is looked up in the calibration table of {own.path}, which is of criterion "
            f"{own.criterion!r}; give threshold= with {shown(criterion)}"
        )


def _form(text: str) -> str | None:
    rule = parse_form(text)
    return rule.form if isinstance(rule, DataCriterion) else None


def threshold_at(own: OwnExits, speedup: float) -> float:
    """The threshold for a layer speed-up, interpolated linearly between the points of the calibration table.

    For a criterion that counts exits it is the threshold of the nearest point, because it must be an integer.
    """
    points = sorted((point["layer_speedup"], point["threshold"]) for point in own.calibration)
    if not points:
        raise ConfigError(f"{own.path} has no calibration table; give threshold= instead of speedup=")
    low, high = points[0][0], points[-1][0]
    if not low <= speedup <= high:
        raise ConfigError(f"speedup is {speedup}; the calibration table of {own.path} covers {low:.2f} to {high:.2f}")
    rule = parse_form(own.criterion)
    if isinstance(rule, DataCriterion) and rule.counts:
        return min(points, key=lambda point: abs(point[0] - speedup))[1]
    return float(np.interp(speedup, [s for s, _ in points], [t for _, t in points]))


@dataclass(frozen=True)
class Selection:
    """The criterion of one call, and what rows with their own threshold or speed-up run instead.

    criterion: for rows that have none. given: the caller's criterion, or the engine's where the caller gave none.
    """

    own: OwnExits
    criterion: Any
    given: Any

    def resolved(self, window: Sequence[Row | InputError]) -> Sequence[Row | InputError]:
        """The window with `Row.threshold` filled in, nan for full depth. A bad number becomes that row's error."""
        if all(isinstance(row, InputError) or row.knob is None for row in window):
            return window
        return [self._resolve(row) if isinstance(row, Row) and row.knob is not None else row for row in window]

    def _resolve(self, row: Row) -> Row | InputError:
        assert row.knob is not None
        name, value = row.knob
        if value is MISSING:
            return InputError(row.row_id, f"has no {name}: the values given beside the rows ended before it")
        try:
            rule, value = self.per_row_criterion, number(name, value)
            if name == "speedup":
                _check_table_is_of(self.own, rule)
                if value == 1:
                    return row._replace(threshold=math.nan)
                value = threshold_at(self.own, value)
            return row._replace(threshold=float(rule.with_threshold(value).threshold))  # type: ignore[arg-type]
        except ConfigError as error:
            return InputError(row.row_id, str(error))

    @functools.cached_property
    def per_row_criterion(self) -> DataCriterion:
        """The criterion at which rows with their own thresholds run; ConfigError where it takes none per row."""
        rule = self.given if isinstance(self.criterion, Never) else self.criterion
        if rule is None or isinstance(rule, Never):
            rule = self.own.criterion  # loaded at full depth, asked for exits in this call
        if isinstance(rule, str):
            rule = parse_form(self.own.named(rule))
        if not is_data(rule) or not has_knob(type(rule)):
            raise ConfigError(f"criterion {shown(rule)} takes no thresholds per row")
        return _fitting(self.own, rule)

    def rule(
        self, num_layers: int, exit_layers: Sequence[int], first_row: int, window: Sequence[Row | InputError]
    ) -> ExitRule | Callable[..., Any]:
        """What a window of resolved rows runs: a rule as data, the first row at slot 0, or a user's callable."""
        numbered = [(i, row.threshold) for i, row in enumerate(window) if isinstance(row, Row)]
        chosen = [(i, threshold) for i, threshold in numbered if threshold is not None]
        criterion, thresholds = self.criterion, None
        if chosen:
            slots, values = zip(*chosen, strict=True)
            criterion = self.per_row_criterion
            usual = np.full((1, 1), np.nan, np.float32)
            if not isinstance(self.criterion, Never):
                usual = Binding(self.criterion, num_layers, exit_layers).threshold
            thresholds = np.repeat(usual, len(window), axis=1)
            with np.errstate(over="ignore"):
                thresholds[:, slots] = values
        if not is_data(criterion):
            return criterion
        return criterion.exit_rule(num_layers, exit_layers, first_row, len(window), thresholds)


def select(own: OwnExits, criterion: Any, threshold: Any, speedup: Any, current: Any, per_row: str | None) -> Selection:
    """`choose`, for a call whose rows may have their own numbers.

    per_row: "threshold" or "speedup" where every row has one, and `threshold` and `speedup` are None.
    """
    if per_row is None:
        given = current if criterion is None else criterion
        chosen = (
            current
            if criterion is None and threshold is None and speedup is None
            else choose(own, criterion, threshold, speedup, current)
        )
        return Selection(own, chosen, given)
    selection = Selection(own, Never(), current if criterion is None else criterion)
    rule = selection.per_row_criterion
    if per_row == "speedup":
        _check_table_is_of(own, rule)
    return selection
