"""The default of `pytest bench/ --benchmark-only`: latency and throughput beside the peers, in under 4 minutes."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest

from .overview import CASES, NAMES, Case, Overview

pytestmark = pytest.mark.timeout(900)  # the suite has a shorter limit of its own
READINGS: deque[float] = deque()


def replayed() -> float:
    """A clock that gives pytest-benchmark the times of the interleaved rounds."""
    return READINGS.popleft()


@pytest.mark.benchmark(timer=replayed)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.model}-{case.batch}")
def test_overview(benchmark: Any, overview: Overview, case: Case, name: str) -> None:
    rounds = overview.measured(case)
    if name not in rounds:
        pytest.skip(overview.missing.get((name, case), "there is none for this model"))
    benchmark.group = f"{case.model}, batch {case.batch}"
    benchmark.extra_info |= overview.record(case, name)
    READINGS.clear()
    READINGS.extend(reading for seconds in rounds[name] for reading in (0.0, seconds))
    benchmark.pedantic(lambda: None, rounds=len(rounds[name]))
