"""Labels of bf16 and int8 against fp32 of the same weights, pfengine's and the peers', on real sentences."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from pfengine import data

from . import engines, report
from .knobs import CALIBRATION, QUALITY
from .peers import read_texts
from .quality import NAMES, compare

CALIBRATION_ROWS = 300

pytestmark = pytest.mark.timeout(3600)  # the first test converts the checkpoint for the peers


def _sentences(file: str) -> list[str]:
    rows = [example.row for example in data.read(file)]
    assert all(isinstance(row, str) for row in rows), f"{file} has pairs; single sentences are wanted"
    return [str(row) for row in rows]


@functools.cache
def measured() -> dict[str, dict[str, Any]]:
    """Rows of PFENGINE_BENCH_QUALITY, a file with labels, or the sentences of test_exits."""
    examples = data.read(QUALITY) if QUALITY else []
    texts = _sentences(QUALITY) if QUALITY else read_texts()
    labels = [int(example.label) for example in examples if example.label is not None] or None
    calibration = _sentences(CALIBRATION) if CALIBRATION else texts
    records, skipped = compare(texts, labels, calibration[:CALIBRATION_ROWS])
    engines.SKIPPED.update(skipped)
    report.TABLES["quality"] += records
    return {record["contestant"]: record for record in records}


@pytest.mark.parametrize("name", NAMES)
def test_quality(benchmark: Any, name: str) -> None:
    records = measured()
    engines.stop_unless_timed(name, records)
    benchmark.group = "labels as fp32's"
    benchmark.extra_info |= records[name]
    benchmark.pedantic(lambda: None, rounds=1)  # nothing is timed here
    assert records["pfengine bf16"]["agreement"] >= 0.998
    if "pfengine int8" in records:
        assert records["pfengine int8"]["agreement"] >= 0.99
