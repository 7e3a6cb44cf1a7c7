"""What is measured of a checkpoint at one setting, and over all thresholds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .curve import Oracle
from .judges import ExitQuality


@dataclass(frozen=True)
class Setting:
    """One row of the table. The first is the checkpoint at full depth."""

    checkpoint: str
    name: str  # "full depth", "threshold 0.3", "speedup 2"
    threshold: float | None
    metrics: dict[str, float]  # the task's, the leading one first
    standard_error: float  # of the leading metric
    layer_speedup: float  # against the layers of the checkpoint that is evaluated, for those beside it too
    wall_clock_speedup: float  # its median seconds at full depth / median seconds here, runs interleaved
    seconds: float  # median for all rows, tokenisation included
    exit_layers: dict[int, int]  # layer -> rows that left there; words of a tagger
    token_speedup: float | None = None  # of a tagger: the layer speed-up counted over all tokens that go through layers
    answers: list[float] | None = None  # where they were asked for: each row's label id, or score of regression

    @property
    def score(self) -> float:
        """The leading metric."""
        return next(iter(self.metrics.values()))


@dataclass(frozen=True)
class Curve:
    """What the scores of every exit say of one checkpoint.

    points: quality over all thresholds, empty where there is no exit before the last. oracle: None there and for
    regression. exits: each judged by itself.
    """

    checkpoint: str
    criterion: str
    points: list[dict[str, Any]]
    oracle: Oracle | None
    exits: list[ExitQuality]
