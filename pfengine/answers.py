"""Answers as a user sees them, from logits: probabilities, arrays, and which rows have none."""

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
        """float32 [rows, labels]: softmax, sigmoid or none of the logits, as problem_type says."""
        return probabilities(self.logits, self.problem_type)

    @functools.cached_property
    def label_ids(self) -> np.ndarray:
        """int64 [rows]: the label with the largest logit."""
        return self.logits.argmax(1)

    @property
    def layer_speedup(self) -> float:
        """As `exits.calibration.layer_speedup` has it; nan without rows."""
        return layer_speedup(self.exit_layers, self.num_layers)


def probabilities(logits: np.ndarray, problem_type: str) -> np.ndarray:
    match problem_type:
        case "regression":
            return logits
        case "multi_label_classification":
            with np.errstate(all="ignore"):  # exp(-logit) = inf gives the right 0
                return 1.0 / (1.0 + np.exp(-logits))
    with np.errstate(all="ignore"):  # and exp(-inf) the right 0; nan where a row has no answer
        powers = np.exp(logits - np.maximum.reduce(logits, 1, keepdims=True))
        powers /= np.add.reduce(powers, 1, keepdims=True)
        return powers


def judged(window: Sequence[Row | InputError], logits: np.ndarray, precision: str) -> Sequence[Row | InputError]:
    """The window with an error for each row that has no answer: [rows, labels], or [exits, rows, labels], with a nan.

    A label may have -inf, which is no probability at all, beside others that have some.
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
    rows = []
    for row in window:
        if isinstance(row, InputError):
            raise row
        rows.append(row)
    return rows
