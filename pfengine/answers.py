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
    """Answers for all rows of the input, as arrays.

    A model that tags tokens has one more axis after the rows, as long as the longest row has tokens: beyond a row's own
    tokens logits are nan and exit layers 0.
    """

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
        return self.logits.argmax(-1)

    @property
    def layer_speedup(self) -> float:
        """sum(n m_i) / sum(i m_i) over the m_i rows (or tokens) that left at layer i; nan without rows."""
        return layer_speedup(self.exit_layers[self.exit_layers > 0], self.num_layers)


def probabilities(logits: np.ndarray, problem_type: str) -> np.ndarray:
    match problem_type:
        case "regression":
            return logits
        case "multi_label_classification":
            with np.errstate(all="ignore"):  # exp(-logit) = inf gives the right 0
                return 1.0 / (1.0 + np.exp(-logits))
    with np.errstate(all="ignore"):  # and exp(-inf) the right 0; nan where a row has no answer
        powers = np.exp(logits - np.maximum.reduce(logits, -1, keepdims=True))
        powers /= np.add.reduce(powers, -1, keepdims=True)
        return powers


def has_answer(logits: np.ndarray) -> np.ndarray:
    """Whose largest logit is a number: [..., labels] -> bool [...].

    A label may have -inf, which is no probability at all, beside others that have some.
    """
    with np.errstate(all="ignore"):
        found: np.ndarray = np.isfinite(np.maximum.reduce(logits, -1))
    return found


def mark_unanswered(window: Sequence[Row | InputError], answered: np.ndarray, precision: str) -> list[Row | InputError]:
    """The window with an error for each row where `answered`, bool [rows], is false."""
    if answered.all():
        return list(window)
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
