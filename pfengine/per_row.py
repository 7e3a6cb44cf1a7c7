"""The criterion of one call, and thresholds or speed-ups per row."""

from __future__ import annotations

import itertools
import numbers
from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import Any

from .cascade_reader import CascadeCheckpoint
from .checkpoint import Checkpoint
from .errors import ConfigError
from .exits import Outputs
from .exits.selection import CheckpointExits, Selection, select
from .heads import HEADS
from .rows import MISSING, Given, Knob, is_single, rows_of

Number = float | Iterable[float] | None  # for all rows, or per row


def is_per_row(value: Any) -> bool:
    """Is it an iterable of numbers rather than one number?"""
    if value is None or isinstance(value, (numbers.Number, str, bytes, bytearray, Mapping, set, frozenset)):
        return False
    try:
        iter(value)
    except TypeError:  # an array or a tensor without dimensions too
        return False
    return True


def check_count(inputs: Any, name: str, values: Any) -> None:
    """Raise ConfigError where it is known beforehand that there is not one value per row."""
    rows = 1 if is_single(inputs) else len(inputs) if isinstance(inputs, Sized) else None
    if rows is not None and isinstance(values, Sized) and len(values) != rows:
        raise ConfigError(f"{name} has {len(values)} values for {rows} rows; give one per row, or one number for all")


def with_numbers(rows: Iterator[Any], name: str, values: Iterable[Any]) -> Iterator[Given]:
    """Each row with its number. A row without one becomes that row's error. Raises ConfigError where numbers are left
    over after the last row."""
    tolist = getattr(values, "tolist", None)  # the items of a tensor are tensors, not numbers
    rest, count = iter(tolist() if tolist is not None else values), 0
    for row in rows:
        yield Given(row, Knob(name, next(rest, MISSING)))
        count += 1
    if next(rest, MISSING) is not MISSING:
        raise ConfigError(f"{name} has more values than the {count} rows there are; give one per row")


def own_exits(ckpt: Checkpoint | CascadeCheckpoint, exit_layers: tuple[int, ...] | None = None) -> CheckpointExits:
    """What `exits.selection` reads of a checkpoint. exit_layers: those in use, None for the checkpoint's own.

    The exits of a cascade are the last layers of its models, whose layers are counted on.
    """
    backbone = ckpt.backbone
    if isinstance(ckpt, CascadeCheckpoint):
        ends = tuple(itertools.accumulate(each.backbone.num_layers for each in ckpt.models))
        outputs, own = Outputs(backbone.problem_type, backbone.num_labels), ckpt.manifest
        return CheckpointExits(
            ckpt.path, (own.criterion or "never").strip(), own.threshold, ends, own.calibration, outputs
        )
    written = ckpt.manifest
    head = HEADS[written.head["type"]]
    outputs = Outputs(backbone.problem_type, backbone.num_labels, head.learns(written.head), head.tags)
    used, criterion = exit_layers or written.exit_layers, (written.criterion or "never").strip()
    return CheckpointExits(ckpt.path, criterion, written.threshold, used, written.calibration, outputs)


def select_rows(
    checkpoint: CheckpointExits, current: Any, inputs: Any, criterion: Any, threshold: Number, speedup: Number
) -> tuple[Selection, Any]:
    """What the rows of `inputs` run, and the rows with the numbers that were given beside them.

    checkpoint: the exits of the engine's checkpoint; current: the engine's criterion, which runs where none is given.
    Raises ConfigError where the options contradict each other or do not fit the model.
    """
    per_row = [name for name, value in (("threshold", threshold), ("speedup", speedup)) if is_per_row(value)]
    if not per_row:
        return select(checkpoint, criterion, threshold, speedup, current, None), inputs
    if threshold is not None and speedup is not None:
        raise ConfigError("give threshold or speedup, not both")
    values: Any = speedup if threshold is None else threshold
    check_count(inputs, per_row[0], values)
    selection = select(checkpoint, criterion, None, None, current, per_row[0])
    return selection, with_numbers(rows_of(inputs), per_row[0], values)
