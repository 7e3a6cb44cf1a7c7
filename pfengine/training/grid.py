"""Grid search: one run per cell; the best is kept, and cells that exist already are not trained again."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from .. import checkpoint, data, destination, saving
from ..cascade_reader import open_checkpoint
from ..cascade_saving import copy
from .config import TrainingConfig
from .resume import check_same_run, hash_files
from .run import train

BATCH_SIZES = (16, 32, 128)  # the paper's
METRICS = ("span_f1", "accuracy", "pearson")  # of a point; the first that it has is its score
LEARNING_RATES = (1e-5, 2e-5, 3e-5, 5e-5)

log = logging.getLogger("pfengine")


def search(
    config: TrainingConfig,
    batch_sizes: tuple[int, ...] = BATCH_SIZES,
    learning_rates: tuple[float, ...] = LEARNING_RATES,
) -> tuple[Path, list[dict[str, Any]]]:
    """Train every cell of the grid, copy the best to `config.output`, return its path and all cells with their scores.

    A cell's score is the quality on the held-out rows at the layer speed-up `config.speedup` (at full depth for a
    model without exits). Cells are kept in `.NAME.grid` beside the output: started again, the search continues with the
    first cell that is missing, and an interrupted cell resumes from its last saved state.
    """
    output = Path(config.output)
    saving.check_writable(output)
    directory = destination.work_directory(output, "grid")
    described = config.record() | {"head": config.head(shared_pooler=False)}
    varied = ("batch_size", "learning_rate")
    files: list[str | Path] = [data.locate(config.data, "train"), *([config.held_out] if config.held_out else [])]
    inputs = {"data": hash_files(*files), "model": hash_files(*config.model_paths())}
    check_same_run(directory, {k: v for k, v in described.items() if k not in varied}, inputs, "a grid search")
    cells: list[dict[str, Any]] = []
    for batch_size in batch_sizes:
        for rate in learning_rates:
            path = directory / f"batch{batch_size}-lr{rate:g}"
            if not (path / checkpoint.MANIFEST).exists():
                log.info("grid: batch size %d, learning rate %g", batch_size, rate)
                train(replace(config, output=str(path), batch_size=batch_size, learning_rate=rate))
            cells.append({"batch_size": batch_size, "learning_rate": rate, **score(path, config.speedup)})
    best = max(cells, key=lambda cell: cell["score"])
    winner = directory / f"batch{best['batch_size']}-lr{best['learning_rate']:g}"
    return copy(winner, output), cells


def score(path: Path, speedup: float) -> dict[str, Any]:
    """Held-out quality of a trained checkpoint at the calibrated layer speed-up nearest to `speedup`."""
    manifest = open_checkpoint(path).checked().manifest
    if not manifest.calibration:
        return {"score": manifest.training.get("held_out_score", -1.0), "layer_speedup": 1.0}
    point = min(manifest.calibration, key=lambda p: abs(p["layer_speedup"] - speedup))
    found = next((point[name] for name in METRICS if name in point), -1.0)
    return {"score": found, "layer_speedup": point["layer_speedup"]}
