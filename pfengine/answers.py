"""Answers as a user sees them, from logits: probabilities, arrays, and which rows have no answer."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .errors import InputError
from .exits.calibration import layer_speedup
from .tokenization import Row


@dataclass(frozen=True)
class Predictions:
    """Answers for all rows of the input, as arrays."""

    logits: np.ndarray  # float32 [rows, labels]
    exit_layers: np.ndarray  # int64 [rows], 1-based
    num_layers: int
    problem_type: str

    @functools.cached_property
    def probabilities(self) -> np.ndarray:
        """float32 [rows, labels]: softmax or sigmoid of the logits, or (regression) the logits, by problem_type."""
        return probabilities(self.logits, self.problem_type)

    @functools.cached_property
    def label_ids(self) -> np.ndarray:
        """int64 [rows]: the label with the largest logit."""
        return self.logits.argmax(1)

    @property
    def layer_speedup(self) -> float:
        """sum(n m_i) / sum(i m_i) over the m_i rows that left after layer i (Past-Future, eq. 15); nan without rows."""
        return layer_speedup(self.exit_layers, self.num_layers)


def probabilities(logits: np.ndarray, problem_type: str) -> np.ndarray:
    """float32 [rows, labels] to float32 [rows, labels], as `Predictions.probabilities`."""
    match problem_type:
        case "regression":
            return logits
        case "multi_label_classification":
            with np.errstate(all="ignore"):  # exp(-logit) = inf gives 0, which is right
                return 1.0 / (1.0 + np.exp(-logits))
    with np.errstate(all="ignore"):  # exp(-inf) gives 0, which is right; a row without an answer gives nan
        powers = np.exp(logits - np.maximum.reduce(logits, 1, keepdims=True))
        powers /= np.add.reduce(powers, 1, keepdims=True)
        return powers


def judged(window: Sequence[Row | InputError], logits: np.ndarray, precision: str) -> Sequence[Row | InputError]:
    """The window, with an error in the place of each row that has no answer: one with a nan, or without a finite logit.

    logits: [rows, labels] or [exits, rows, labels]. A logit of -inf beside finite ones is an answer: probability 0.
    """
    with np.errstate(all="ignore"):
        answered = np.isfinite(np.maximum.reduce(logits, -1))
    answered = answered if logits.ndim == 2 else answered.all(0)
    if answered.all():
        return window
    advice = "check its weights" if precision == "fp32" else "try precision='fp32'"
    reason = f"has no answer: the model's numbers overflow in {precision}, and its logits are nan or infinite; {advice}"
    return [
        row if fine or isinstance(row, InputError) else InputError(row.row_id, reason)
        for row, fine in zip(window, answered.tolist(), strict=True)
    ]


def raise_first(window: Sequence[Row | InputError]) -> list[Row]:
    """The rows of a window; raises the first error in it."""
    rows = []
    for row in window:
        if isinstance(row, InputError):
            raise row
        rows.append(row)
    return rows
