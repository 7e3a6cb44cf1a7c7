"""Contestants timed in interleaved rounds, so that a drift of the machine's speed affects all of them alike."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .knobs import ROUNDS


@dataclass
class Rounds:
    answers: dict[str, Any] = field(default_factory=dict)  # of the warm-up round
    seconds: dict[str, list[float]] = field(default_factory=dict)  # one per round

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name])

    def speedup(self, name: str, base: str) -> float | None:
        """How many times as fast as `base` `name` is, in each round; None where `base` was not timed."""
        if base not in self.seconds:
            return None
        return statistics.median(b / t for b, t in zip(self.seconds[base], self.seconds[name], strict=True))


def interleave(
    calls: Mapping[str, Callable[[], Any]],
    check: Callable[[dict[str, Any]], Any],
    rounds: int = ROUNDS,
    seconds: float = math.inf,
    settle: bool = False,
) -> Rounds:
    """Time every contestant once per round, after a warm-up round whose answers `check` gets.

    `check` raises where nothing should be timed, or returns the names of contestants that should not be. At least one
    round is timed. No further round begins if, at the pace of the last one, it would end more than `seconds` after the
    start. settle: call each once more, untimed, before it is timed: the threads of the one before may still be awake.
    """
    start = began = time.perf_counter()
    result = Rounds(answers={name: call() for name, call in calls.items()})
    refused = check(result.answers) or ()
    timed = {name: call for name, call in calls.items() if name not in refused}
    result.seconds = {name: [] for name in timed}
    for done in range(rounds):
        before = time.perf_counter()
        if done and before + (before - began) > start + seconds:
            break
        began = before
        for name, call in timed.items():
            if settle:
                call()
            before = time.perf_counter()
            call()
            result.seconds[name].append(time.perf_counter() - before)
    return result
