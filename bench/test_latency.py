"""Milliseconds per call of one row, without exits, beside the peers."""

from __future__ import annotations

import functools
from functools import partial
from typing import Any

import numpy as np
import pytest

from . import engines, report
from .engines import NAMES, contestants, disagreeing, openvino_peer, precision
from .interleave import interleave
from .knobs import HIDDEN, ROWS
from .rows import make_rows

pytestmark = pytest.mark.timeout(3600)  # the first test of a size converts the checkpoint for every peer


@functools.cache
def measured(hidden: int) -> dict[str, Any]:
    rows = make_rows(ROWS)
    field = contestants(hidden)
    laps: dict[str, list[float]] = {name: [] for name in field}
    calls = {name: partial(each.run, rows, 1, laps[name]) for name, each in field.items()}
    rounds = interleave(calls, disagreeing)
    records = {}
    for name in rounds.seconds:
        timed = 1e3 * np.array(laps[name][len(rows) :])  # without the warm-up round
        records[name] = {
            "hidden": hidden,
            "contestant": name,
            "precision": precision(name),
            "rows": len(rows),
            "p50_ms": float(np.percentile(timed, 50)),
            "p99_ms": float(np.percentile(timed, 99)),
            "rows_per_second": len(rows) / rounds.median(name),
            "speedup_over_openvino": rounds.speedup(name, openvino_peer(name)),
        }
    report.TABLES["latency"] += records.values()
    return {"calls": {name: partial(each.run, rows, 1) for name, each in field.items()}, "records": records}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("hidden", HIDDEN)
def test_latency(benchmark: Any, hidden: int, name: str) -> None:
    run = measured(hidden)
    engines.stop_unless_timed(name, run["records"])
    benchmark.group = f"latency, hidden {hidden}"
    benchmark.extra_info |= run["records"][name]
    benchmark.pedantic(run["calls"][name], rounds=1, warmup_rounds=0)
