"""How much of a layer speed-up is wall-clock speed-up: exits at layers given beforehand, against exits off."""

from __future__ import annotations

import functools
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

import pfengine
from pfengine.exits import Replay

from . import engines, report
from .engines import contestant, disagreeing
from .interleave import interleave
from .knobs import CACHE, HIDDEN, PRECISIONS, ROWS, BatchSize, batch_name, batch_sizes
from .models import EXIT_HEADS, LAYERS, random_checkpoint
from .rows import fixed_batches, layer_speedup, make_rows, replay_layers

OFF, PEER = "exits off", "OpenVINO int8"
SPEEDUPS = {f"replay {speedup:g}x": speedup for speedup in (1.5, 2.0, 3.0, 4.0)}
STREAM = 4  # times as many rows, as a stream is longer than one of its batches
BESIDE_PEER = "replay 3x"  # in a stream
BATCHES: dict[str, tuple[BatchSize, ...]] = {
    "authors": (None, 32, 1),
    "authors, every second layer": (1,),  # a single row pays most for an exit
    "folded": (None, 32, 1),
}
NAMES = (OFF, *SPEEDUPS, PEER)

pytestmark = pytest.mark.timeout(3600)  # the first test may convert the checkpoint for the peer


@functools.cache
def measured(hidden: int, precision: str, head: str, batch_size: BatchSize) -> dict[str, Any]:
    rows = make_rows(STREAM * ROWS if batch_size is None else ROWS)
    try:
        engine = pfengine.load(random_checkpoint(CACHE, hidden, head), precision=precision)
    except pfengine.ConfigError as error:
        engines.SKIPPED[f"pfengine {precision}"] = str(error)
        pytest.skip(str(error))
    inputs = [{"input_ids": row} for row in rows]
    layers = {name: replay_layers(rows, speedup, EXIT_HEADS[head][1]) for name, speedup in SPEEDUPS.items()}
    # made beforehand, so that making lists is not timed
    order = [list(range(len(rows)))] if batch_size is None else list(fixed_batches(rows, batch_size))

    def replayed(given: np.ndarray | None) -> Callable[[], np.ndarray]:
        batches = [
            ([inputs[i] for i in batch], "never" if given is None else Replay(given[batch].tolist())) for batch in order
        ]

        def run() -> np.ndarray:
            """Exit layers in the rows' order."""
            out = np.empty(len(rows), np.int64)
            for batch, (texts, rule) in zip(order, batches, strict=True):
                out[batch] = engine.predict(texts, criterion=rule).exit_layers
            return out

        return run

    calls: dict[str, Callable[[], Any]] = {OFF: replayed(None)}
    calls |= {name: replayed(given) for name, given in layers.items()}
    peer = contestant(PEER, hidden) if batch_size is None else None
    reference = contestant(engines.REFERENCE, hidden) if peer else None
    if peer and reference:
        expected = reference.run(rows, None)
        calls[PEER] = partial(peer.run, rows, None)

    def check(answers: dict[str, Any]) -> set[str]:
        np.testing.assert_array_equal(answers[OFF], LAYERS)
        for name, given in layers.items():
            np.testing.assert_array_equal(answers[name], given)
        return disagreeing({engines.REFERENCE: expected, PEER: answers[PEER]}) if PEER in answers else set()

    rounds = interleave(calls, check)
    records = {}
    for name in rounds.seconds:
        layer = 1.0 if name == PEER else layer_speedup(rounds.answers[name])
        speedup = rounds.speedup(name, OFF)
        assert speedup is not None
        records[name] = {
            "hidden": hidden,
            "batch_size": batch_name(batch_size),
            "precision": engines.precision(PEER) if name == PEER else precision,
            "head": "classifier" if name == PEER else head,
            "contestant": name,
            "rows": len(rows),
            "median_seconds": rounds.median(name),
            "rows_per_second": len(rows) / rounds.median(name),
            "layer_speedup": layer,
            "wall_clock_speedup": speedup,
            "wall_clock_over_layer_speedup": speedup / layer,
            "speedup_over_openvino": rounds.speedup(name, PEER) if name == BESIDE_PEER else None,
        }
    report.TABLES["replay"] += records.values()
    return {"calls": calls, "records": records}


@pytest.mark.parametrize(
    ("head", "batch_size", "name"),
    [
        pytest.param(head, size, name, id=f"{head}-{batch_name(size)}-{name}")
        for head, sizes in BATCHES.items()
        for size in batch_sizes(*sizes)
        for name in NAMES
        if name != PEER or size is None
    ],
)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("hidden", HIDDEN)
def test_replay(benchmark: Any, hidden: int, precision: str, head: str, batch_size: BatchSize, name: str) -> None:
    run = measured(hidden, precision, head, batch_size)
    engines.stop_unless_timed(name, run["records"])
    benchmark.group = f"replay, hidden {hidden}, {precision}, {head}, batch {batch_name(batch_size)}"
    benchmark.extra_info |= run["records"][name]
    benchmark.pedantic(run["calls"][name], rounds=1, warmup_rounds=0)
