"""Which criterion runs: the caller's, or the checkpoint's own, at a threshold given by hand or by layer speed-up."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ConfigError, shown
from .criteria import Criterion, Never, number, parse

if TYPE_CHECKING:
    from ..checkpoint import Checkpoint

log = logging.getLogger("pfengine")


def choose(ckpt: Checkpoint, criterion: Any, threshold: float | None, speedup: float | None) -> Any:
    """The criterion object (or the caller's callable) for a checkpoint.

    Raises ConfigError where the choice contradicts itself, the model's problem type or its exits, or where `speedup`
    is outside the calibration table.
    """
    if threshold is not None and speedup is not None:
        raise ConfigError("give threshold or speedup, not both")
    own = ckpt.manifest.criterion or "never"
    if isinstance(criterion, str) and criterion == own and threshold is None and speedup is None:
        threshold = ckpt.manifest.threshold  # the checkpoint's own by name: at its own threshold
    if speedup is not None:
        speedup = number("speedup", speedup)
        if speedup == 1:
            return Never()
        threshold, criterion = _calibrated(ckpt, speedup), own
    if criterion is None:
        if threshold is None:
            threshold = ckpt.manifest.threshold
            if threshold is None and own != "never" and ":" not in own:
                log.warning(
                    "%s has the criterion %r but no threshold: it runs at full depth; give threshold= or speedup=",
                    ckpt.path, own,
                )  # fmt: skip
                return Never()
        criterion = own
        if own == "never" and threshold is not None:
            raise ConfigError(f"{ckpt.path} has no criterion of its own; give one, such as criterion='entropy:0.3'")
    if isinstance(criterion, Never) and threshold is not None and own != "never":
        criterion = own  # loaded at full depth, asked for exits in this call
    rule = parse(criterion, threshold) if isinstance(criterion, str) else _with_threshold(criterion, threshold)
    if isinstance(rule, type):
        raise ConfigError(f"criterion is the class {rule.__name__}; give an object of it")
    if not callable(rule):
        raise ConfigError(
            f"criterion is of type {type(rule).__name__}; give an object of pfengine.exits, a callable, or text"
        )
    if isinstance(rule, Never):
        return rule
    if len(ckpt.manifest.exit_layers) == 1:
        raise ConfigError(
            f"{ckpt.path} has no exit before its last layer: it runs at full depth, with criterion 'never'"
        )
    if isinstance(rule, Criterion) and ckpt.backbone.problem_type not in rule.problem_types:
        raise ConfigError(f"criterion {shown(rule)} makes no sense for problem_type {ckpt.backbone.problem_type!r}")
    return rule


def _with_threshold(criterion: Any, threshold: float | None) -> Any:
    if threshold is None:
        return criterion
    if not isinstance(criterion, Criterion):
        raise ConfigError(f"criterion {shown(criterion)} takes no threshold")
    return criterion.with_threshold(threshold)


def _calibrated(ckpt: Checkpoint, speedup: float) -> float:
    """The threshold for a layer speed-up, linear between the points of the calibration table.

    Of a criterion that counts layers it is that of the nearest point: half a layer of patience there is none.
    """
    points = sorted((point["layer_speedup"], point["threshold"]) for point in ckpt.manifest.calibration)
    if not points:
        raise ConfigError(f"{ckpt.path} has no calibration table; give threshold= instead of speedup=")
    low, high = points[0][0], points[-1][0]
    if not low <= speedup <= high:
        raise ConfigError(f"speedup is {speedup}; the calibration table of {ckpt.path} covers {low:.2f} to {high:.2f}")
    if (ckpt.manifest.criterion or "").startswith("patience"):
        return min(points, key=lambda point: abs(point[0] - speedup))[1]
    return float(np.interp(speedup, [s for s, _ in points], [t for _, t in points]))
