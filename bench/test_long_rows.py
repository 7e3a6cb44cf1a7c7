"""Long rows at full depth, all of one length so that nothing is padded, and long rows among short ones."""

from __future__ import annotations

import functools
from functools import partial
from typing import Any

import pytest

from . import engines, report
from .conversions import FAMILY
from .engines import NAMES, beside_peers, contestants, disagreeing
from .interleave import interleave
from .knobs import HIDDEN, Model
from .rows import Row, make_rows, rows_of_length

pytestmark = pytest.mark.timeout(3600)  # the first test of a model converts the checkpoint for every peer

MODERN = FAMILY + "modernbert"
SHAPES: dict[str, tuple[int, int]] = {"128": (128, 8), "256": (256, 4), "512": (512, 2), "2048": (2048, 1)}
SHORT = 30
MIXED = f"two of 512 among {SHORT} short"  # one batch for pfengine; peers, which pad, get the short rows by themselves


def cases() -> list[tuple[Model, str]]:
    bert = [(hidden, shape) for hidden in HIDDEN for shape in ("128", "256", "512", MIXED)]
    return [*bert, *((MODERN, shape) for shape in ("128", "512", "2048"))]


def rows_of_shape(shape: str) -> list[Row]:
    if shape == MIXED:
        return [*make_rows(SHORT), *rows_of_length(512, 2)]
    return rows_of_length(*SHAPES[shape])


@functools.cache
def measured(model: Model, shape: str) -> dict[str, Any]:
    rows = rows_of_shape(shape)
    calls = {}
    for name, each in contestants(model).items():
        batch_size = SHORT if shape == MIXED and not each.streams else len(rows)
        calls[name] = partial(each.run, rows, batch_size)
    rounds = interleave(calls, disagreeing, settle=True)
    records = {
        name: {
            "model": f"BERT {model}" if isinstance(model, int) else model.removeprefix(FAMILY),
            "shape": shape,
            "contestant": name,
            "rows": len(rows),
            "tokens": sum(map(len, rows)),
            "median_seconds": rounds.median(name),
            "tokens_per_second": sum(map(len, rows)) / rounds.median(name),
        }
        | found
        for name, found in beside_peers(rounds).items()
    }
    report.TABLES["long_rows"] += records.values()
    return {"calls": calls, "records": records}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("model", "shape"), cases(), ids=lambda part: str(part).replace(" ", "-"))
def test_long_rows(benchmark: Any, model: Model, shape: str, name: str) -> None:
    run = measured(model, shape)
    engines.stop_unless_timed(name, run["records"])
    benchmark.group = f"long rows, {model}, {shape}"
    benchmark.extra_info |= run["records"][name]
    benchmark.pedantic(run["calls"][name], rounds=1, warmup_rounds=0)
