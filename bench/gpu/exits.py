"""Exits replayed at given layers, and what testing them costs when nobody leaves."""

from __future__ import annotations

import numpy as np
import torch

from pfengine.exits.calibration import layer_speedup

from .knobs import SIZES
from .on_device import on_device
from .results import Results
from .timing import interleaved, wall
from .work import Cell, Prediction, engine, exit_layers

OFF = "exits off"
HEAD_ROUNDS = 3  # times as many: a small difference of large numbers


def replay(cell: Cell, device: torch.device, results: Results) -> None:
    rows = cell.rows()
    runs = {OFF: Prediction(engine(cell.hidden, "authors", device), rows, cell.batch)}
    for speedup in SIZES.speedups:
        runs[f"{speedup:g}x"] = Prediction(runs[OFF].engine, rows, cell.batch, exit_layers(rows, speedup))
    layers = {}
    for name, run in runs.items():
        found = run().exit_layers
        np.testing.assert_array_equal(found, SIZES.layers if run.layers is None else run.layers, name)
        layers[name] = layer_speedup(found, SIZES.layers)
    rounds = interleaved({name: wall(run, device) for name, run in runs.items()})
    on_gpu = interleaved({name: on_device(run.batches(), device) for name, run in runs.items()})
    for name in runs:
        faster, faster_on_device = rounds.speedup(name, OFF), on_gpu.speedup(name, OFF)
        assert faster is not None
        assert faster_on_device is not None
        results.add("replay", {
            **cell._asdict(), "rows": len(rows), "contestant": name, "layer_speedup": layers[name],
            "seconds": rounds.median(name), "rows_per_second": len(rows) / rounds.median(name),
            "wall_clock_speedup": faster, "wall_clock_over_layer_speedup": faster / layers[name],
            "device_seconds": on_gpu.median(name), "device_over_layer_speedup": faster_on_device / layers[name],
        })  # fmt: skip


def head_share(device: torch.device, results: Results) -> None:
    """Every exit tested and nobody leaving, beside no exit tested, and beside an encoder without exits."""
    cell = Cell(SIZES.hidden[0], "SST-2", SIZES.goal_batch)
    rows = cell.rows()
    runs = {
        "every exit tested": Prediction(engine(cell.hidden, "authors", device), rows, cell.batch, None, "entropy:0"),
        "no exit tested": Prediction(engine(cell.hidden, "authors", device), rows, cell.batch),
        "no exits": Prediction(engine(cell.hidden, "classifier", device), rows, cell.batch),
    }
    for name, run in runs.items():
        np.testing.assert_array_equal(run().exit_layers, SIZES.layers, name)
    walls = interleaved({name: wall(run, device) for name, run in runs.items()}, HEAD_ROUNDS * SIZES.rounds)
    on_gpu = interleaved(
        {name: on_device(run.batches(), device) for name, run in runs.items()}, HEAD_ROUNDS * SIZES.rounds
    )
    every, *bases = runs
    for base in bases:
        record = {"what": "exit head", **cell._asdict(), "base": base}
        for clock, rounds in (("wall", walls), ("device", on_gpu)):
            slowdown = rounds.speedup(base, every)
            assert slowdown is not None
            record[f"{clock}_seconds"], record[f"{clock}_base_seconds"] = rounds.median(every), rounds.median(base)
            # a tested exit behind each layer but the last, over a layer
            record[f"{clock}_share_of_a_layer"] = (slowdown - 1) * SIZES.layers / (SIZES.layers - 1)
        results.add("single", record)
