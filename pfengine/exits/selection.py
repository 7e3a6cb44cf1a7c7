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
from ..messages import warn
from ..ops.rule import ExitRule
from ..rows import MISSING, Row
from .base import Criterion, Outputs, number
from .data import Binding, DataCriterion, is_data
from .fixed import Never, Replay
from .text import check_fits, has_knob, lacks_threshold, name_of, parse, parse_form

log = logging.getLogger("pfengine")
ENOUGH = 0.95  # of rows answered as at full depth; with less a speed-up is not chosen in silence


class CheckpointExits(NamedTuple):
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


def choose(
    checkpoint: CheckpointExits, criterion: Any, threshold: float | None, speedup: float | None, current: Any = None
) -> Any:
    """The criterion object (or the caller's callable) for a checkpoint.

    current: runs where no criterion is given; None: the checkpoint's own. A speed-up always stands for the
    checkpoint's own criterion, because its calibration table is of that one.

    Raises ConfigError where the options contradict each other or do not fit the model's outputs or exits, or where
    `speedup` is outside the calibration table. Warns where the table has less than `ENOUGH` agreement there.
    """
    if threshold is not None and speedup is not None:
        raise ConfigError("give threshold or speedup, not both")
    threshold = None if threshold is None else number("threshold", threshold)
    if speedup is not None:
        speedup = number("speedup", speedup)
        if criterion is not None:
            _check_table_is_of(checkpoint, criterion)
        if speedup == 1:
            return Never()
        threshold, criterion = threshold_at(checkpoint, speedup), checkpoint.criterion
    elif criterion is None:
        criterion = current
    if criterion is None:
        if checkpoint.criterion == "never" and threshold is not None:
            raise ConfigError(
                f"{checkpoint.path} has no criterion of its own; give one, such as criterion='entropy:0.3'"
            )
        if threshold is None and checkpoint.threshold is None and lacks_threshold(checkpoint.criterion):
            log.warning(
                "%s has the criterion %r but no threshold: it runs at full depth; give threshold= or speedup=",
                checkpoint.path, checkpoint.criterion,
            )  # fmt: skip
            return Never()
        criterion = checkpoint.criterion
    if isinstance(criterion, Never) and threshold is not None and checkpoint.criterion != "never":
        criterion = checkpoint.criterion  # loaded at full depth, asked for exits in this call
    if isinstance(criterion, str):
        text = checkpoint.named(criterion)
        whole = threshold is None and text.strip() == checkpoint.criterion
        criterion = parse(text, checkpoint.threshold if whole else threshold)
    else:
        criterion = _with_threshold(criterion, threshold)
    return _fitting(checkpoint, criterion)


def _fitting(checkpoint: CheckpointExits, criterion: Any) -> Any:
    """The criterion itself; ConfigError where it is not one, or makes no sense on these outputs and exits."""
    if isinstance(criterion, type):
        raise ConfigError(f"criterion is the class {criterion.__name__}; give an object of it")
    if not callable(criterion):
        raise ConfigError(
            f"criterion is of type {type(criterion).__name__}; give an object of pfengine.exits, a callable, or text"
        )
    if isinstance(criterion, Never):
        return criterion
    if len(checkpoint.exit_layers) == 1:
        raise ConfigError(
            f"{checkpoint.path} has no exit before its last layer: it runs at full depth, with criterion 'never'"
        )
    if isinstance(criterion, Criterion):
        check_fits(criterion, checkpoint.outputs)
    if isinstance(criterion, DataCriterion) and not isinstance(criterion, Replay):
        # checks the count of numbers per exit
        exit_rule = criterion.exit_rule(checkpoint.exit_layers[-1], checkpoint.exit_layers)
        if any(clause.signal == "learned" for clause in exit_rule.clauses) and not checkpoint.outputs.learned:
            raise ConfigError(f"criterion {shown(criterion)} compares a learned score, and this model's head adds none")
        if exit_rule.tokens is not None and not checkpoint.outputs.tags:
            raise ConfigError(f"criterion {shown(criterion)} reads tokens, and this model's head scores whole rows")
    return criterion


def _with_threshold(criterion: Any, threshold: float | None) -> Any:
    if threshold is None:
        return criterion
    if not isinstance(criterion, Criterion):
        raise ConfigError(f"criterion {shown(criterion)} takes no threshold")
    return criterion.with_threshold(threshold)


def _check_table_is_of(checkpoint: CheckpointExits, criterion: Any) -> None:
    requested = parse_form(checkpoint.named(criterion)) if isinstance(criterion, str) else criterion
    form = requested.form if isinstance(requested, DataCriterion) else None
    if form is None or checkpoint.criterion == "never" or form != form_of(checkpoint.criterion):
        raise ConfigError(
            f"speedup is looked up in the calibration table of {checkpoint.path}, which is of criterion "
            f"{checkpoint.criterion!r}; give threshold= with {shown(criterion)}"
        )


def form_of(text: str) -> str | None:
    """A criterion's text without its threshold; None where it is not data."""
    criterion = parse_form(text)
    return criterion.form if isinstance(criterion, DataCriterion) else None


def threshold_at(checkpoint: CheckpointExits, speedup: float) -> float:
    """The threshold for a layer speed-up, interpolated linearly between the points of the calibration table.

    For a criterion that counts exits it is the threshold of the nearest point, because it must be an integer.
    """
    points = sorted((point["layer_speedup"], point["threshold"]) for point in checkpoint.calibration)
    if not points:
        raise ConfigError(f"{checkpoint.path} has no calibration table; give threshold= instead of speedup=")
    low, high = points[0][0], points[-1][0]
    if not low <= speedup <= high:
        raise ConfigError(
            f"speedup is {speedup}; the calibration table of {checkpoint.path} covers {low:.2f} to {high:.2f}"
        )
    _warn_of_disagreement(checkpoint, speedup)
    criterion = parse_form(checkpoint.criterion)
    if isinstance(criterion, DataCriterion) and criterion.counts:
        return min(points, key=lambda point: abs(point[0] - speedup))[1]
    return float(np.interp(speedup, [s for s, _ in points], [t for _, t in points]))


def _warn_of_disagreement(checkpoint: CheckpointExits, speedup: float) -> None:
    """Warn where fewer than `ENOUGH` of the rows that it was calibrated on are answered as at full depth."""
    points = sorted((p["layer_speedup"], p["agreement"]) for p in checkpoint.calibration if "agreement" in p)
    if not points:
        return
    agreement = float(np.interp(speedup, [speed for speed, _ in points], [share for _, share in points]))
    if agreement < ENOUGH:
        # rounded, so that there are few such texts: Python keeps each that it has shown
        warn(
            f"at a layer speed-up of {speedup:.1f}, {checkpoint.path} answers {agreement:.0%} of the rows that it was "
            "calibrated on as at full depth; give a lower speedup where that is too little"
        )


@dataclass(frozen=True)
class Selection:
    """The criterion of one call, and what rows with their own threshold or speed-up run instead.

    criterion: for rows that have none. requested: the caller's criterion, or the engine's where the caller gave none.
    """

    checkpoint: CheckpointExits
    criterion: Any
    requested: Any

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
            criterion, value = self.per_row_criterion, number(name, value)
            if name == "speedup":
                _check_table_is_of(self.checkpoint, criterion)
                if value == 1:
                    return row._replace(threshold=math.nan)
                value = threshold_at(self.checkpoint, value)
            return row._replace(threshold=float(criterion.with_threshold(value).threshold))  # type: ignore[arg-type]
        except ConfigError as error:
            return InputError(row.row_id, str(error))

    @functools.cached_property
    def per_row_criterion(self) -> DataCriterion:
        """The criterion of rows with a threshold of their own; ConfigError where it takes no thresholds per row."""
        criterion = self.requested if isinstance(self.criterion, Never) else self.criterion
        if criterion is None or isinstance(criterion, Never):
            criterion = self.checkpoint.criterion  # loaded at full depth, asked for exits in this call
        if isinstance(criterion, str):
            criterion = parse_form(self.checkpoint.named(criterion))
        if not is_data(criterion) or not has_knob(type(criterion)):
            raise ConfigError(f"criterion {shown(criterion)} takes no thresholds per row")
        return _fitting(self.checkpoint, criterion)

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


def select(
    checkpoint: CheckpointExits, criterion: Any, threshold: Any, speedup: Any, current: Any, per_row: str | None
) -> Selection:
    """`choose`, for a call whose rows may have their own numbers.

    per_row: "threshold" or "speedup" where every row has one, and `threshold` and `speedup` are None.
    """
    if per_row is None:
        requested = current if criterion is None else criterion
        chosen = (
            current
            if criterion is None and threshold is None and speedup is None
            else choose(checkpoint, criterion, threshold, speedup, current)
        )
        return Selection(checkpoint, chosen, requested)
    selection = Selection(checkpoint, Never(), current if criterion is None else criterion)
    row_criterion = selection.per_row_criterion  # raises where there is none
    if per_row == "speedup":
        _check_table_is_of(checkpoint, row_criterion)
    return selection
