"""Accuracy, layer speed-up, wall-clock speed-up and exit-layer histogram of a checkpoint at several thresholds."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import data
from ..api import BATCH_TOKENS, Engine, Predictions, load
from ..data import Example
from ..errors import ConfigError
from ..exits import Criterion, Never
from ..tokenization import Row
from .machine import describe_machine


@dataclass(frozen=True)
class Setting:
    """One row of the table; the first is full depth."""

    name: str  # "full depth", "threshold 0.3", "speedup 2"
    threshold: float | None
    accuracy: float
    standard_error: float
    layer_speedup: float
    wall_clock_speedup: float  # median seconds at full depth / median seconds here, runs interleaved
    seconds: float  # median for all rows, tokenisation included
    exit_layers: dict[int, int]  # layer -> rows that left there


@dataclass(frozen=True)
class Report:
    checkpoint: str
    data: str
    rows: int
    mean_tokens: float
    precision: str
    batch_tokens: int
    batch_size: int | None
    repeats: int
    machine: dict[str, Any]
    settings: list[Setting]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def evaluate(
    path: str | os.PathLike[str],
    source: str | Path,
    *,
    thresholds: Sequence[float] = (),
    speedups: Sequence[float] = (),
    precision: str = "auto",
    batch_tokens: int = BATCH_TOKENS,
    batch_size: int | None = None,
    repeats: int = 3,
    progress: Callable[[Iterable[Any], int], Iterable[Any]] | None = None,
) -> Report:
    """Evaluate a checkpoint on labelled rows.

    source: a file, or a directory with a `dev` split. thresholds, speedups: settings beside full depth; neither: every
    point of the checkpoint's calibration table. repeats: timed runs of each setting, in turn; medians are reported.
    progress: wraps the runs, given how many there are.

    Raises ConfigError for data or settings that do not fit, CheckpointError for the checkpoint.
    """
    if repeats < 1:
        raise ConfigError(f"repeats is {repeats}; it must be at least 1")
    engine = load(path, precision=precision, criterion="never")
    if engine.model.config.problem_type != "single_label_classification":
        raise ConfigError(f"evaluate reports accuracy, which problem_type {engine.model.config.problem_type!r} has not")
    examples = data.read(source)
    labels = np.array(data.label_ids(examples, engine.labels, str(source)))
    choices = _choices(engine, thresholds, speedups)
    results: list[Predictions | None] = [None] * len(choices)
    seconds: list[list[float]] = [[] for _ in choices]
    runs = [index for _ in range(repeats) for index in range(len(choices))]
    _run(engine, choices[0][1], examples[:64], batch_tokens, batch_size)  # first calls build oneDNN's kernels
    for index in progress(runs, len(runs)) if progress is not None else runs:
        start = time.perf_counter()
        results[index] = _run(engine, choices[index][1], examples, batch_tokens, batch_size)
        seconds[index].append(time.perf_counter() - start)
    medians = [float(np.median(times)) for times in seconds]
    settings = [
        _setting(name, rule, result, labels, medians[0] / median, median)
        for (name, rule), result, median in zip(choices, results, medians, strict=True)
        if result is not None
    ]
    tokens = sum(
        len(row.ids) for row in engine.tokenizer.encode(enumerate(e.row for e in examples)) if isinstance(row, Row)
    )
    return Report(
        checkpoint=os.fspath(path),
        data=Path(source).name,
        rows=len(examples),
        mean_tokens=tokens / len(examples),
        precision="fp32" if precision == "auto" else precision,
        batch_tokens=batch_tokens,
        batch_size=batch_size,
        repeats=repeats,
        machine=describe_machine(),
        settings=settings,
    )


def _choices(engine: Engine, thresholds: Sequence[float], speedups: Sequence[float]) -> list[tuple[str, Any]]:
    calibration = engine.checkpoint.engine.calibration
    if not thresholds and not speedups and len(engine.exit_layers) > 1:
        speedups = [point["layer_speedup"] for point in calibration]
    choices: list[tuple[str, Any]] = [("full depth", Never())]
    choices += [(f"threshold {t:g}", engine.choose(threshold=t)) for t in thresholds]
    choices += [(f"speedup {s:.3g}", engine.choose(speedup=s)) for s in speedups]
    return choices


def _run(
    engine: Engine, rule: Any, examples: Sequence[Example], batch_tokens: int, batch_size: int | None
) -> Predictions:
    rows = (example.row for example in examples)
    return engine.predict(rows, criterion=rule, batch_tokens=batch_tokens, batch_size=batch_size)


def _setting(
    name: str, rule: Any, result: Predictions, labels: np.ndarray, wall_clock: float, seconds: float
) -> Setting:
    accuracy = float((result.label_ids == labels).mean())
    layers, counts = np.unique(result.exit_layers, return_counts=True)
    return Setting(
        name=name,
        threshold=rule.threshold if isinstance(rule, Criterion) else None,
        accuracy=accuracy,
        standard_error=float(np.sqrt(accuracy * (1 - accuracy) / len(labels))),
        layer_speedup=result.layer_speedup,
        wall_clock_speedup=wall_clock,
        seconds=seconds,
        exit_layers={int(layer): int(count) for layer, count in zip(layers, counts, strict=True)},
    )
