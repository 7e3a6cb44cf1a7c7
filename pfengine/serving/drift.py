"""Do rows leave where they left when the checkpoint was calibrated? The answer needs no labels."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

log = logging.getLogger("pfengine.serving")

HALF_LIFE = 1000  # rows after which an exit counts half
FEWEST = 300  # rows before which nothing is said
LARGE, SMALL = 0.25, 0.1  # above the first a warning is due, below the second another one may follow


def expected_exits(table: Sequence[dict[str, Any]], threshold: float | None) -> np.ndarray | None:
    """The share of calibration rows that left after each layer at a threshold, float64 [layers].

    table: the checkpoint's calibration; between two of its points shares are interpolated as the threshold is. None
    where the table has no counts, or the threshold is beyond it.
    """
    points = sorted((point["threshold"], point["exit_rows"]) for point in table if point.get("exit_rows"))
    if threshold is None or not points or not points[0][0] <= threshold <= points[-1][0]:
        return None
    shares = np.array([np.array(rows) / max(1, sum(rows)) for _, rows in points])
    return np.array([np.interp(threshold, [t for t, _ in points], column) for column in shares.T])


class Drift:
    """The population stability index of recent exit layers against those of the calibration.

    PSI = sum_i (q_i - p_i) ln(q_i / p_i), p_i the share of calibration rows that left after layer i, q_i that of recent
    rows. Below 0.1 is no change, above 0.25 a large one. Half a row is added to each count, so that none is 0.

    expected: p, from `calibrated` rows; None where it is unknown.
    """

    def __init__(self, expected: np.ndarray | None, calibrated: int) -> None:
        self.expected = None if expected is None else _smoothed(expected * calibrated)
        self.counts = np.zeros(0 if expected is None else len(expected))
        self.warned = False

    def add(self, layers: np.ndarray) -> None:
        """layers: 1-based, after which rows left, int64 [rows]."""
        if self.expected is None or not len(layers):
            return
        self.counts *= 0.5 ** (len(layers) / HALF_LIFE)
        self.counts += np.bincount(layers, minlength=len(self.counts) + 1)[1:]
        found = self.index
        if found > LARGE and not self.warned:
            log.warning(
                "rows leave after other layers than when the checkpoint was calibrated: the population stability "
                "index is %.2f; texts have changed, so calibrate again on recent ones",
                found,
            )
        self.warned = found > LARGE or (self.warned and found > SMALL)

    @property
    def index(self) -> float:
        """nan where it is unknown, or there are too few rows."""
        if self.expected is None or self.counts.sum() < FEWEST:
            return float("nan")
        recent = _smoothed(self.counts)
        return float(((recent - self.expected) * np.log(recent / self.expected)).sum())


def _smoothed(counts: np.ndarray) -> np.ndarray:
    raised = counts + 0.5
    shares: np.ndarray = raised / raised.sum()
    return shares
