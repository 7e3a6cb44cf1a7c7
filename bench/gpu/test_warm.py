"""Not measured: makes the checkpoints and compiles what pfengine launches, so that no measurement waits for it."""

from __future__ import annotations

import os

import pytest

from . import knobs
from .knobs import SIZES
from .work import Cell, Prediction, engine, exit_layers

DEVICE = knobs.device()

pytestmark = [
    pytest.mark.skipif(os.environ.get("PFENGINE_GPU_WARM") != "1", reason="asked for by PFENGINE_GPU_WARM=1"),
    pytest.mark.skipif(DEVICE is None, reason="there is no GPU"),
    pytest.mark.timeout(300),
]


@pytest.mark.parametrize("hidden", SIZES.hidden)
def test_warm(hidden: int) -> None:
    assert DEVICE is not None
    for batch in reversed(SIZES.batches):
        for lengths in ("SST-2", "fixed"):
            rows = Cell(hidden, lengths, batch).rows()
            Prediction(engine(hidden, "authors", DEVICE), rows, batch, exit_layers(rows, 2.0))()
            for head in ("authors", "classifier"):
                Prediction(engine(hidden, head, DEVICE), rows, batch)()
