"""Exits off, exits on, replay, transformers eager, and a loop as in research code, on the same rows."""

from __future__ import annotations

from typing import Any

import pytest

NAMES = (
    "pfengine, exits off",
    "pfengine, exits on",
    "pfengine, replay",
    "transformers eager",
    "research loop, batch 1",
)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("batch_size", [1, 8, 32])
def test_exits(benchmark: Any, interleaved: Any, batch_size: int, name: str) -> None:
    run = interleaved(batch_size)
    benchmark.group = f"batch {batch_size}"
    benchmark.extra_info |= run["rows"][name]
    benchmark.pedantic(run["calls"][name], args=(run["texts"],), rounds=1, warmup_rounds=0)
