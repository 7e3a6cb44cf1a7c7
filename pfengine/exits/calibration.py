"""Thresholds for layer speed-ups, from held-out rows whose logits at every exit are known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from .asking import asked
from .criteria import Criterion

SPEEDUPS = (1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0)


def exits_taken(criterion: Criterion, logits: np.ndarray, exit_layers: Sequence[int]) -> np.ndarray:
    """The exit layer of each row, as the engine would take it: logits [exits, rows, labels] -> int64 [rows].

    exit_layers: 1-based, the last is the full model's.
    """
    rows = logits.shape[1]
    ask = asked(criterion)
    row_ids, state = torch.arange(rows, dtype=torch.int64, device="cpu"), None
    taken = torch.full((rows,), exit_layers[-1], dtype=torch.int64, device="cpu")
    gone = torch.zeros(rows, dtype=torch.bool, device="cpu")
    for layer, values in zip(exit_layers[:-1], logits, strict=False):
        leave, state = ask(layer, torch.from_numpy(values), state, row_ids)
        taken[leave & ~gone] = layer
        gone |= leave
    return taken.numpy()


def layer_speedup(taken: np.ndarray, num_layers: int) -> float:
    """sum(n m_i) / sum(i m_i) over the m_i rows that left at layer i (Past-Future, eq. 15); nan without rows.

    taken: each row's exit layer, 1-based, int64 [rows].
    """
    return num_layers * len(taken) / int(taken.sum()) if len(taken) else float("nan")


def answers_at(logits: np.ndarray, exit_layers: Sequence[int], taken: np.ndarray) -> np.ndarray:
    """Each row's logits at the exit it takes: [exits, rows, labels] and [rows] -> [rows, labels]."""
    return logits[np.searchsorted(exit_layers, taken), np.arange(len(taken))]


def threshold_for(criterion: Criterion, logits: np.ndarray, exit_layers: Sequence[int], speedup: float) -> float:
    """The slowest threshold that reaches a layer speed-up on these rows; inf where none does.

    criterion: at any threshold; its `candidates` are searched.
    """
    candidates = criterion.candidates(torch.from_numpy(logits))

    def reached(index: int) -> bool:
        taken = exits_taken(criterion.with_threshold(candidates[index]), logits, exit_layers)
        return layer_speedup(taken, exit_layers[-1]) >= speedup

    low, high = 0, len(candidates) - 1
    if not candidates or not reached(high):
        return float("inf")
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if reached(middle) else (middle + 1, high)
    return candidates[low]


def calibration_table(
    criterion: Criterion, logits: np.ndarray, labels: np.ndarray | None, exit_layers: Sequence[int]
) -> list[dict[str, Any]]:
    """Points {threshold, layer_speedup, agreement, [accuracy], rows} for those of SPEEDUPS that can be reached.

    logits: [exits, rows, labels] of held-out rows; labels: int64 [rows], None where they are not known. agreement:
    share of rows answered as at full depth. Thresholds that give the same speed-up are one point.
    """
    table: list[dict[str, Any]] = []
    rows, full = logits.shape[1], logits[-1].argmax(-1)
    for speedup in SPEEDUPS if len(exit_layers) > 1 and rows else ():
        threshold = threshold_for(criterion, logits, exit_layers, speedup)
        if not np.isfinite(threshold):
            break
        taken = exits_taken(criterion.with_threshold(threshold), logits, exit_layers)
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
