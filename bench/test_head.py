"""What heads and criterion cost beside the encoder: every exit tested and no row leaves, against no exits at all.

A tested exit costs more than its head. With three rows or more the layer is computed in two halves, so that rows which
leave save the second half. Bare exits after the same layers have almost no head: they cost the halves and the
criterion.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import pfengine

from . import engines, models, report
from .interleave import interleave
from .knobs import CACHE, HIDDEN, PRECISIONS, ROUNDS, ROWS, BatchSize, batch_name, batch_sizes
from .models import EXIT_HEADS, LAYERS, random_checkpoint
from .rows import fixed_batches, make_rows

ENCODER = "classifier"
BARE = {every: head for head, (options, every) in EXIT_HEADS.items() if options is models.BARE}  # by spacing
TESTED = "entropy:0"  # no entropy is below 0

pytestmark = pytest.mark.timeout(3600)


@functools.cache
def measured(hidden: int, precision: str, batch_size: BatchSize) -> dict[str, Any]:
    rows = make_rows(ROWS)
    order = [list(range(len(rows)))] if batch_size is None else list(fixed_batches(rows, batch_size))
    batches = [[{"input_ids": rows[i]} for i in batch] for batch in order]

    def call_of(head: str) -> Callable[[], np.ndarray]:
        engine = pfengine.load(random_checkpoint(CACHE, hidden, head), precision=precision, criterion="never")

        def run() -> np.ndarray:
            rule = "never" if head == ENCODER else TESTED
            return np.concatenate([engine.predict(batch, criterion=rule).exit_layers for batch in batches])

        return run

    def check(answers: dict[str, np.ndarray]) -> None:
        for layers in answers.values():
            np.testing.assert_array_equal(layers, LAYERS)

    try:
        calls = {head: call_of(head) for head in EXIT_HEADS}
    except pfengine.ConfigError as error:
        engines.SKIPPED[f"pfengine {precision}"] = str(error)
        pytest.skip(str(error))
    rounds = interleave(calls, check, rounds=3 * ROUNDS)  # a small difference of large numbers
    records = {}
    for head in calls:
        slowdown, bare = (rounds.speedup(ENCODER, one) for one in (head, BARE.get(EXIT_HEADS[head][1], ENCODER)))
        assert slowdown is not None
        assert bare is not None
        records[head] = {
            "hidden": hidden,
            "batch_size": batch_name(batch_size),
            "precision": precision,
            "head": head,
            "median_seconds": rounds.median(head),
            "share_of_encoder": slowdown - 1,
            "share_beyond_bare_exits": slowdown - bare,
        }
    report.TABLES["head"] += [record for head, record in records.items() if head != ENCODER]
    return {"calls": calls, "records": records}


@pytest.mark.parametrize("head", EXIT_HEADS)
@pytest.mark.parametrize("batch_size", [pytest.param(size, id=batch_name(size)) for size in batch_sizes(32, 1)])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("hidden", HIDDEN)
def test_head(benchmark: Any, hidden: int, precision: str, batch_size: BatchSize, head: str) -> None:
    run = measured(hidden, precision, batch_size)
    benchmark.group = f"head, hidden {hidden}, {precision}, batch {batch_name(batch_size)}"
    benchmark.extra_info |= run["records"][head]
    benchmark.pedantic(run["calls"][head], rounds=1, warmup_rounds=0)
