"""Throughput without exits, in fixed batches and in a stream, beside the peers and below the GEMM roof."""

from __future__ import annotations

import functools
from functools import partial
from typing import Any

import pytest

from . import engines, report
from .engines import NAMES, contestants, disagreeing, openvino_peer, precision
from .interleave import interleave
from .knobs import HIDDEN, ROWS, BatchSize, batch_name, batch_sizes
from .roof import gemm_gflops
from .rows import encoder_flops, make_rows

pytestmark = pytest.mark.timeout(3600)  # the first test of a size converts the checkpoint for every peer


@functools.cache
def measured(hidden: int, batch_size: BatchSize) -> dict[str, Any]:
    rows = make_rows(max(ROWS, batch_size or 0))  # at least one batch
    calls = {name: partial(each.run, rows, batch_size) for name, each in contestants(hidden).items()}
    rounds = interleave(calls, disagreeing)
    records = {}
    for name in rounds.seconds:
        seconds = rounds.median(name)
        gflops = 1e-9 * encoder_flops(rows, hidden) / seconds
        records[name] = {
            "hidden": hidden,
            "batch_size": batch_name(batch_size),
            "contestant": name,
            "precision": precision(name),
            "rows": len(rows),
            "median_seconds": seconds,
            "rows_per_second": len(rows) / seconds,
            "tokens_per_second": sum(map(len, rows)) / seconds,
            "gflops": gflops,
            "share_of_roof": gflops / gemm_gflops(precision(name))["roof"],
            "speedup_over_openvino": rounds.speedup(name, openvino_peer(name)),
        }
    report.TABLES["full_depth"] += records.values()
    return {"calls": calls, "records": records}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("batch_size", batch_sizes(8, 32, 128, None), ids=batch_name)
@pytest.mark.parametrize("hidden", HIDDEN)
def test_full_depth(benchmark: Any, hidden: int, batch_size: BatchSize, name: str) -> None:
    run = measured(hidden, batch_size)
    engines.stop_unless_timed(name, run["records"])
    benchmark.group = f"full depth, hidden {hidden}, batch {batch_name(batch_size)}"
    benchmark.extra_info |= run["records"][name]
    benchmark.pedantic(run["calls"][name], rounds=1, warmup_rounds=0)
