"""The exits of a trained checkpoint, measured once a batch size; and the report at the end of the run."""

from __future__ import annotations

import functools
from functools import partial
from typing import Any

import numpy as np
import pytest

from pfengine.exits.calibration import layer_speedup

from . import report
from .interleave import interleave
from .peers import contestants, open_checkpoint, read_texts


@functools.cache
def measured(batch_size: int) -> dict[str, Any]:
    """Every contestant on the same rows, one round after the other, after a round that checks their answers."""
    ckpt, texts = open_checkpoint(), read_texts()
    calls = contestants(ckpt, batch_size)
    rounds = interleave({name: partial(call, texts) for name, call in calls.items()}, check)
    rows = {
        name: {
            "contestant": name,
            "batch_size": batch_size,
            "median_seconds": rounds.median(name),
            "rows_per_second": len(texts) / rounds.median(name),
            "layer_speedup": layer_speedup(rounds.answers[name][1], ckpt.backbone.num_layers),
            "wall_clock_speedup": rounds.speedup(name, "pfengine, exits off"),
        }
        for name in calls
    }
    report.EXITS[batch_size] = list(rows.values())
    return {"calls": calls, "texts": texts, "rows": rows}


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
    report.write(len(read_texts()), terminalreporter.write_line)
