"""Thresholds for layer speed-ups, from held-out rows whose logits at every exit are known."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from ..errors import ConfigError, shown
from .asking import asked
from .base import Criterion
from .data import Bound, DataCriterion, is_data

SPEEDUPS = (1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0)


def exits_taken(
    criterion: Criterion,
    logits: np.ndarray,
    exit_layers: Sequence[int],
    *,
    learned: np.ndarray | None = None,
    bounds: np.ndarray | None = None,
    thresholds: np.ndarray | None = None,
) -> np.ndarray:
    """The exit layer of each row, as the engine would take it: logits [exits, rows, labels] -> int64 [rows].

    exit_layers: 1-based, the last is the full model's. learned: float32 [exits, rows], the score that some heads add.
    bounds: of a tag head, whose logits are [exits, tokens, labels]: row r has tokens bounds[r] to bounds[r + 1]; where
    tokens leave by themselves, layers of tokens are returned. thresholds: float [rows], one per row, nan for full
    depth; for criteria that are data.

    Raises ConfigError where the exits cannot be told from logits at full depth, as tokens that are frozen change the
    others'.
    """
    decide: Callable[..., Any] = asked(criterion)
    units, more = logits.shape[1], {}
    if is_data(criterion):
        assert isinstance(criterion, DataCriterion)
        tokens = criterion.tokens()
        if tokens is not None and tokens.freezes:
            raise ConfigError(f"criterion {shown(criterion)} freezes tokens: run it to know its exits")
        if tokens is not None and bounds is not None:
            units, more = (len(bounds) - 1 if tokens.unit == "row" else units), {"bounds": torch.from_numpy(bounds)}
        decide = Bound(criterion.bound(exit_layers[-1], exit_layers, 0, units, thresholds))
    row_ids, state = torch.arange(units, dtype=torch.int64, device="cpu"), None
    taken = torch.full((units,), exit_layers[-1], dtype=torch.int64, device="cpu")
    gone = torch.zeros(units, dtype=torch.bool, device="cpu")
    for i, layer in enumerate(exit_layers[:-1]):
        if learned is not None:
            more["learned"] = torch.from_numpy(learned[i])
        leave, state = decide(layer, torch.from_numpy(logits[i]), state, row_ids, **more)
        taken[leave & ~gone] = layer
        gone |= leave
    return taken.numpy()


def candidates_of(
    criterion: Criterion, logits: np.ndarray, exit_layers: Sequence[int], learned: np.ndarray | None = None
) -> list[float]:
    """`Criterion.candidates`, after these layers: logits [exits, rows, labels], learned [exits, rows]."""
    values = torch.from_numpy(logits)
    if type(criterion).candidates is not DataCriterion.candidates:
        return criterion.candidates(values)
    assert isinstance(criterion, DataCriterion)
    return criterion.candidates_at(values, exit_layers, None if learned is None else torch.from_numpy(learned))


def layer_speedup(taken: np.ndarray, num_layers: int) -> float:
    """sum(n m_i) / sum(i m_i) over the m_i rows that left at layer i (Past-Future, eq. 15); nan without rows.

    taken: each row's exit layer, 1-based, int64 [rows].
    """
    return num_layers * len(taken) / int(taken.sum()) if len(taken) else float("nan")


def answers_at(logits: np.ndarray, exit_layers: Sequence[int], taken: np.ndarray) -> np.ndarray:
    """Each row's logits at the exit it takes: [exits, rows, labels] and [rows] -> [rows, labels]."""
    return logits[np.searchsorted(exit_layers, taken), np.arange(len(taken))]


def threshold_for(
    criterion: Criterion,
    logits: np.ndarray,
    exit_layers: Sequence[int],
    speedup: float,
    learned: np.ndarray | None = None,
) -> float:
    """The slowest threshold that reaches a layer speed-up on these rows; inf where none does.

    criterion: at any threshold; its `candidates` are searched. Where it is `monotone` the search halves: it is assumed
    that no row leaves later at a faster threshold. Else every candidate is tried.
    """
    return _search(criterion, logits, exit_layers, learned)(speedup)


def _search(
    criterion: Criterion, logits: np.ndarray, exit_layers: Sequence[int], learned: np.ndarray | None
) -> Callable[[float], float]:
    """`threshold_for`, of several speed-ups on the same rows."""
    candidates = candidates_of(criterion, logits, exit_layers, learned)

    @functools.cache
    def reached(index: int) -> float:
        taken = exits_taken(criterion.with_threshold(candidates[index]), logits, exit_layers, learned=learned)
        return layer_speedup(taken, exit_layers[-1])

    def slowest(speedup: float) -> float:
        if not criterion.monotone:
            return next((each for i, each in enumerate(candidates) if reached(i) >= speedup), math.inf)
        low, high = 0, len(candidates) - 1
        if not candidates or reached(high) < speedup:
            return math.inf
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if reached(middle) >= speedup else (middle + 1, high)
        return candidates[low]

    return slowest


def calibration_table(
    criterion: Criterion,
    logits: np.ndarray,
    labels: np.ndarray | None,
    exit_layers: Sequence[int],
    learned: np.ndarray | None = None,
) -> list[dict[str, Any]]:
    """Points {threshold, layer_speedup, agreement, [accuracy], rows} for those of SPEEDUPS that can be reached.

    logits: [exits, rows, labels] of held-out rows; labels: int64 [rows], None where they are not known. agreement:
    share of rows answered as at full depth. learned: float32 [exits, rows], the score that some heads add. Thresholds
    that give the same speed-up are one point.
    """
    table: list[dict[str, Any]] = []
    rows, full = logits.shape[1], logits[-1].argmax(-1)
    if len(exit_layers) == 1 or not rows:
        return table
    slowest = _search(criterion, logits, exit_layers, learned)
    for speedup in SPEEDUPS:
        threshold = slowest(speedup)
        if not np.isfinite(threshold):
            break
        taken = exits_taken(criterion.with_threshold(threshold), logits, exit_layers, learned=learned)
        answers = answers_at(logits, exit_layers, taken).argmax(-1)
        point = {
            "threshold": threshold,
            "layer_speedup": layer_speedup(taken, exit_layers[-1]),
            "agreement": float((answers == full).mean()),
            "rows": rows,
        }
        if labels is not None:
            point["accuracy"] = float((answers == labels).mean())
        if not table or point["layer_speedup"] > table[-1]["layer_speedup"]:
            table.append(point)
    return table
