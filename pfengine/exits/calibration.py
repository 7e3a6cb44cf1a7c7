"""Thresholds for layer speed-ups, from held-out rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from .criteria import entropy

SPEEDUPS = (1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 3.5, 4.0)


def entropy_exits(entropies: np.ndarray, exit_layers: Sequence[int], threshold: float) -> np.ndarray:
    """Exit layer of each row at a threshold: entropies [exits, rows], exit_layers 1-based -> int64 [rows]."""
    leaves = entropies < np.float32(threshold)
    leaves[-1] = True
    return np.asarray(exit_layers)[leaves.argmax(0)]


def threshold_for(entropies: np.ndarray, exit_layers: Sequence[int], speedup: float) -> float:
    """The smallest threshold that reaches a layer speed-up on these rows; inf where none does."""
    candidates = np.unique(entropies[:-1])
    low, high = 0, len(candidates) - 1

    def reached(index: int) -> bool:
        exits = entropy_exits(entropies, exit_layers, _above(candidates[index]))
        return exit_layers[-1] * len(exits) / exits.sum() >= speedup

    if not len(candidates) or not reached(high):
        return float("inf")
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if reached(middle) else (middle + 1, high)
    return _above(candidates[low])


def _above(value: np.float32) -> float:
    return float(np.nextafter(np.float32(value), np.float32(np.inf)))


def entropy_table(logits: np.ndarray, labels: np.ndarray, exit_layers: Sequence[int]) -> list[dict[str, Any]]:
    """Points {threshold, layer_speedup, accuracy, rows} for those of SPEEDUPS that can be reached.

    logits: [exits, rows, labels] of held-out rows; labels: int64 [rows]; exit_layers: 1-based.
    """
    signals = entropy(torch.from_numpy(logits)).numpy()
    table = []
    for speedup in SPEEDUPS:
        threshold = threshold_for(signals, exit_layers, speedup)
        if not np.isfinite(threshold):
            break
        exits = entropy_exits(signals, exit_layers, threshold)
        answers = logits[np.searchsorted(exit_layers, exits), np.arange(len(exits))].argmax(-1)
        table.append(
            {
                "threshold": threshold,
                "layer_speedup": exit_layers[-1] * len(exits) / int(exits.sum()),
                "accuracy": float((answers == labels).mean()),
                "rows": len(exits),
            }
        )
    return table
