"""Measures one thing after the other while there is time; needs a GPU, or PFENGINE_GPU_DRY=1."""

from __future__ import annotations

import pytest

from . import knobs
from .plan import Item, plan
from .results import OUT_OF_TIME, Results

ITEMS = [pytest.param(item, id=item.what, marks=pytest.mark.timeout(item.limit, method="signal")) for item in plan()]
DEVICE = knobs.device()

pytestmark = pytest.mark.skipif(DEVICE is None, reason="there is no GPU, and PFENGINE_GPU_DRY=1 is not set")


@pytest.mark.parametrize("item", ITEMS)
def test_measure(item: Item, results: Results) -> None:
    assert DEVICE is not None
    if knobs.seconds_left() < item.needs:
        pytest.skip(OUT_OF_TIME)  # which is what the results say of it from the start
    with results.measuring(item.what):
        item.run(DEVICE, results)
