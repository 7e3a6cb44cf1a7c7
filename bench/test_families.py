"""Other encoder families at full depth, 32 rows and one row a call, beside the peers at their best precision."""

from __future__ import annotations

import functools
from functools import partial
from typing import Any

import pytest

from . import engines, report
from .conversions import FAMILY
from .engines import NAMES, beside_peers, contestants, disagreeing
from .interleave import interleave
from .knobs import ROWS, BatchSize, batch_name, batch_sizes
from .models import FAMILIES
from .rows import make_rows

pytestmark = pytest.mark.timeout(3600)  # the first test of a family converts its checkpoint for every peer


@functools.cache
def measured(kind: str, batch_size: BatchSize) -> dict[str, Any]:
    rows = make_rows(ROWS)
    calls = {name: partial(each.run, rows, batch_size) for name, each in contestants(FAMILY + kind).items()}
    rounds = interleave(calls, disagreeing)
    records = {
        name: {
            "family": kind,
            "batch_size": batch_name(batch_size),
            "contestant": name,
            "rows": len(rows),
            "rows_per_second": len(rows) / rounds.median(name),
        }
        | found
        for name, found in beside_peers(rounds).items()
    }
    report.TABLES["families"] += records.values()
    return {"calls": calls, "records": records}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("batch_size", batch_sizes(32, 1), ids=batch_name)
@pytest.mark.parametrize("kind", FAMILIES)
def test_families(benchmark: Any, kind: str, batch_size: BatchSize, name: str) -> None:
    run = measured(kind, batch_size)
    engines.stop_unless_timed(name, run["records"])
    benchmark.group = f"{kind}, batch {batch_name(batch_size)}"
    benchmark.extra_info |= run["records"][name]
    benchmark.pedantic(run["calls"][name], rounds=1, warmup_rounds=0)
