"""What a comparison found: every run, the means over seeds, and quality at equal time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ..evaluation.metrics import METRICS, deviation, resampled
from ..strict_json import finite
from .contestants import FULL

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


class Difference(NamedTuple):
    """How much better a contestant is than another one at the other's time, of the leading metric; and the error.

    standard_error: over randomly drawn rows, the same for both, after the mean over seeds.
    """

    value: float
    standard_error: float


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
        parts = [mixture(run, speedup) for run in self.of(name)]
        if any(part is None for part in parts):
            return None
        return float(np.mean([sum(share * score(each) for share, each in part or ()) for part in parts]))

    @property
    def static(self) -> list[str]:
        """Contestants that are faster than the full model and answer at one speed only."""
        return [name for name in self.contestants if name != FULL and len(self.points(name)) == 1]

    def difference(self, name: str, other: str) -> Difference | None:
        """Of a contestant and a static one, at the time of the static one.

        None where the contestant is not that fast, where the seeds are not the same, and of taggers.
        """
        ours, theirs = self.of(name), self.of(other)
        if self.metric not in METRICS or [run["seed"] for run in ours] != [run["seed"] for run in theirs]:
            return None
        gaps, samples = [], []
        for run, rival in zip(ours, theirs, strict=True):
            setting = rival["settings"][FULL_DEPTH]
            parts = mixture(run, setting["wall_clock_speedup"])
            if parts is None:
                return None
            gaps.append(sum(share * score(each) for share, each in parts) - score(setting))
            truth = np.array(run["truth"])
            mixed = sum(share * resampled(self.metric, np.array(each["answers"]), truth) for share, each in parts)
            samples.append(mixed - resampled(self.metric, np.array(setting["answers"]), truth))
        return Difference(float(np.mean(gaps)), deviation(np.mean(samples, 0)))

    def to_json(self) -> dict[str, Any]:
        table = [
            {
                "contestant": name,
                "points": {key: point.__dict__ for key, point in self.points(name).items()},
                "at_time": {f"{speed:g}x": self.at_time(name, speed) for speed in self.speedups},
                "differences": {
                    other: None if (found := self.difference(name, other)) is None else found._asdict()
                    for other in self.static
                    if other != name
                },
            }
            for name in self.contestants
        ]
        result: dict[str, Any] = finite(
            {
                "metric": self.metric, "layers": self.layers, "seeds": self.seeds, "options": self.options,
                "table": table, "runs": [without_answers(run) for run in self.runs],
            }
        )  # fmt: skip
        return result


def without_answers(run: Run) -> Run:
    """For files: what one row got, over all runs, is much more than all the rest."""
    settings = {
        key: {name: value for name, value in each.items() if name != "answers"}
        for key, each in run["settings"].items()
    }  # fmt: skip
    return {key: value for key, value in run.items() if key != "truth"} | {"settings": settings}


def mixture(run: Run, speedup: float) -> list[tuple[float, dict[str, Any]]] | None:
    """The settings of a run that have a wall-clock speed-up together, with their shares; None where it is not reached.

    That is the slowest setting alone where it is faster.
    """
    measured = sorted(run["settings"].values(), key=lambda each: each["wall_clock_speedup"])
    times = [each["wall_clock_speedup"] for each in measured]
    if times[-1] < speedup:
        return None
    at = int(np.searchsorted(times, speedup))
    if at == 0 or times[at] == speedup:
        return [(1.0, measured[at])]
    share = (speedup - times[at - 1]) / (times[at] - times[at - 1])
    return [(1 - share, measured[at - 1]), (share, measured[at])]


def score(setting: dict[str, Any]) -> float:
    """The leading metric of a setting; nan where it has no value."""
    value = next(iter(setting["metrics"].values()))
    return float("nan") if value is None else float(value)


def best(values: Sequence[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)
