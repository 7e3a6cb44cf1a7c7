"""Interleaved rounds of all contestants, and the table at the end of the run."""

from __future__ import annotations

import functools
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pfengine.evaluation import describe_machine
from pfengine.exits.calibration import layer_speedup

from .peers import contestants, open_checkpoint, read_texts

ROUNDS = int(os.environ.get("PFENGINE_BENCH_ROUNDS", "5"))
RESULTS: dict[int, list[dict[str, Any]]] = {}


@functools.cache
def measured(batch_size: int) -> dict[str, Any]:
    """Every contestant on the same rows, one round after the other, after a round that checks their answers."""
    ckpt, texts = open_checkpoint(), read_texts()
    calls = contestants(ckpt, batch_size)
    answers = {name: call(texts) for name, call in calls.items()}
    check(answers)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            start = time.perf_counter()
            call(texts)
            seconds[name].append(time.perf_counter() - start)
    base = seconds["pfengine, exits off"]
    rows = []
    for name, times in seconds.items():
        rows.append(
            {
                "contestant": name,
                "batch_size": batch_size,
                "median_seconds": statistics.median(times),
                "rows_per_second": len(texts) / statistics.median(times),
                "layer_speedup": layer_speedup(answers[name][1], ckpt.backbone.num_layers),
                # pair by pair, so that a drift of the machine's speed cancels
                "wall_clock_speedup": statistics.median(b / t for b, t in zip(base, times, strict=True)),
            }
        )
    RESULTS[batch_size] = rows
    return {"calls": calls, "texts": texts, "rows": {row["contestant"]: row for row in rows}}


def check(answers: dict[str, Any]) -> None:
    """No timing unless all contestants give the same answers."""
    on, off = answers["pfengine, exits on"], answers["pfengine, exits off"]
    np.testing.assert_array_equal(answers["pfengine, replay"][1], on[1])
    np.testing.assert_allclose(answers["pfengine, replay"][0], on[0])
    np.testing.assert_allclose(answers["transformers eager"][0], off[0], atol=2e-4)
    loop = answers["research loop, batch 1"]
    np.testing.assert_array_equal(loop[1], on[1])
    np.testing.assert_allclose(loop[0], on[0], atol=2e-4)


@pytest.fixture
def interleaved() -> Any:
    return measured


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not RESULTS:
        return
    write = terminalreporter.write_line
    write("")
    write("fp32, speed-ups against 'pfengine, exits off' of the same batch size, medians of interleaved rounds")
    write(f"{'batch':>5}  {'contestant':<24} {'rows/s':>8} {'layer speed-up':>15} {'wall-clock speed-up':>20}")
    for batch_size in sorted(RESULTS):
        for row in RESULTS[batch_size]:
            write(
                f"{batch_size:>5}  {row['contestant']:<24} {row['rows_per_second']:>8.1f} "
                f"{row['layer_speedup']:>15.2f} {row['wall_clock_speedup']:>20.2f}"
            )
    if path := os.environ.get("PFENGINE_BENCH_JSON"):
        report = {"machine": describe_machine(), "rounds": ROUNDS, "rows": len(read_texts()), "results": RESULTS}
        Path(path).write_text(json.dumps(report, indent=2) + "\n")
