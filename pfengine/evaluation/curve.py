"""Quality against layer speed-up over all thresholds, and the oracle, computed from the logits of every exit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..exits import Criterion
from ..exits.calibration import Simulation, answers_at, candidates_of, layer_speedup
from .metrics import Metrics, measure

POINTS = 40


@dataclass(frozen=True)
class Oracle:
    """Rows leave at the first exit that is right, or at the first layer where none is: no criterion does better."""

    metrics: dict[str, float]
    layer_speedup: float


def curve(
    criterion: Criterion,
    logits: np.ndarray,
    truth: np.ndarray,
    exit_layers: Sequence[int],
    metrics: Metrics,
    points: int = POINTS,
    learned: np.ndarray | None = None,
    bounds: np.ndarray | None = None,
) -> list[dict[str, Any]]:
    """Points {threshold, layer_speedup, metrics} from full depth to the fastest, at most `points`, evenly spaced.

    criterion: at any threshold. logits: [exits, rows, labels], with one label the scores of regression; truth: label
    ids, or numbers for regression, [rows], or of label sets bool [rows, labels]. learned: float32 [exits, rows], the
    score that some heads add. bounds: for a tag head, as in `exits_taken`; "rows" are then words.
    """
    candidates = candidates_of(criterion, logits, exit_layers, learned, bounds)
    simulation = Simulation(logits, exit_layers, learned, bounds)
    picked = np.unique(np.linspace(0, max(0, len(candidates) - 1), points).round().astype(int))
    out: list[dict[str, Any]] = []
    for i in picked[: len(candidates)]:
        taken = simulation.exits_of_all(criterion.with_threshold(candidates[i]))
        answers = answers_of(answers_at(logits, exit_layers, taken), label_sets=truth.ndim == 2)
        speedup = layer_speedup(taken, exit_layers[-1])
        out.append({"threshold": candidates[i], "layer_speedup": speedup, "metrics": measure(metrics, answers, truth)})
    return out


def answers_of(logits: np.ndarray, label_sets: bool = False) -> np.ndarray:
    """What metrics compare with the truth: label ids, or for regression the scores. [rows, labels] -> [rows].

    label_sets: labels are given or not each by itself; then it is bool [rows, labels].
    """
    answers: np.ndarray
    if label_sets:
        answers = logits > 0
    else:
        answers = logits[:, 0] if logits.shape[1] == 1 else logits.argmax(-1)
    return answers


def oracle(logits: np.ndarray, truth: np.ndarray, exit_layers: Sequence[int], metrics: Metrics) -> Oracle:
    """The upper bound of all criteria: logits [exits, rows, labels], truth as in `curve`, but for regression."""
    label_sets = truth.ndim == 2
    right = ((logits > 0) == truth).all(-1) if label_sets else logits.argmax(-1) == truth
    first = right.argmax(0)  # 0 where no exit is right
    taken = np.asarray(exit_layers)[first]
    answers = answers_of(logits[first, np.arange(len(truth))], label_sets)
    return Oracle(measure(metrics, answers, truth), layer_speedup(taken, exit_layers[-1]))
