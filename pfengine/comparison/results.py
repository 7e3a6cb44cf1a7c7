"""What a comparison found: every run, the means over seeds, and quality at equal time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..strict_json import finite

Run = dict[str, Any]  # as `workshop.Workshop.run` gives it
FULL_DEPTH = "1x"


@dataclass(frozen=True)
class Point:
    """A contestant at one speed, means over its seeds. score: the leading metric, of 1.

    deviation: the standard deviation over seeds, None for one seed. standard_error: of one run, from the number of its
    rows. wall_clock_speedup: beside the full model at full depth, in the same run.
    """

    score: float
    deviation: float | None
    standard_error: float
    layer_speedup: float
    wall_clock_speedup: float


@dataclass(frozen=True)
class Comparison:
    """contestants: names in order. layers: of the encoder. options: what all were trained and measured with."""

    contestants: list[str]
    seeds: list[int]
    speedups: tuple[float, ...]
    layers: int
    options: dict[str, Any]
    runs: list[Run]

    @property
    def keys(self) -> list[str]:
        """Of the settings: full depth, and each speed."""
        return [FULL_DEPTH, *(f"{speed:g}x" for speed in self.speedups)]

    @property
    def metric(self) -> str:
        return next(iter(self.runs[0]["settings"][FULL_DEPTH]["metrics"]))

    def of(self, name: str) -> list[Run]:
        return [run for run in self.runs if run["contestant"] == name]

    def points(self, name: str) -> dict[str, Point]:
        """A contestant at each speed that it reaches with every seed."""
        runs, found = self.of(name), {}
        for key in self.keys:
            settings = [run["settings"][key] for run in runs if key in run["settings"]]
            if len(settings) < len(runs):
                continue
            scores = [score(setting) for setting in settings]
            mean = {
                field: float(np.mean([setting[field] for setting in settings]))
                for field in ("standard_error", "layer_speedup", "wall_clock_speedup")
            }
            spread = float(np.std(scores, ddof=1)) if len(scores) > 1 else None
            found[key] = Point(float(np.mean(scores)), spread, **mean)
        return found

    def at_time(self, name: str, speedup: float) -> float | None:
        """The leading metric at a wall-clock speed-up: between two measured speeds it is interpolated.

        A model that is faster than that at full depth answers as it does there. None where a seed does not reach it.
        """
        scores = []
        for run in self.of(name):
            measured = sorted((each["wall_clock_speedup"], score(each)) for each in run["settings"].values())
            times, values = zip(*measured, strict=True)
            if times[-1] < speedup:
                return None
            scores.append(float(np.interp(speedup, times, values)))
        return float(np.mean(scores))

    def to_json(self) -> dict[str, Any]:
        table = [
            {
                "contestant": name,
                "points": {key: point.__dict__ for key, point in self.points(name).items()},
                "at_time": {f"{speed:g}x": self.at_time(name, speed) for speed in self.speedups},
            }
            for name in self.contestants
        ]
        found: dict[str, Any] = finite(
            {
                "metric": self.metric, "layers": self.layers, "seeds": self.seeds, "options": self.options,
                "table": table, "runs": self.runs,
            }
        )  # fmt: skip
        return found


def score(setting: dict[str, Any]) -> float:
    """The leading metric of a setting; nan where it has no value."""
    value = next(iter(setting["metrics"].values()))
    return float("nan") if value is None else float(value)


def best(values: Sequence[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)
