"""Answers as a user sees them, from logits: probabilities, arrays, and which rows have no answer."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors import InputError
from .exits.calibration import layer_speedup
from .tokenization import Row

# What makes a score of a logit, and the problem type that has each.
FUNCTIONS = {"sigmoid": "multi_label_classification", "softmax": "single_label_classification", "none": "regression"}


@dataclass(frozen=True)
class Predictions:
    """Answers for all rows of the input, as arrays.

    For a model that tags words there is an axis of words after the rows, as long as the row with most of them. Beyond a
    row's own words logits are nan and exit layers 0. Where no words are marked in a row of ids, every token is one,
    [CLS] and [SEP] too.
    """

    logits: np.ndarray  # float32 [rows, labels]
    exit_layers: np.ndarray  # int64 [rows], 1-based; in a cascade how many layers a row went through in all models
    num_layers: int  # of the model; in a cascade of its last one, which alone takes full depth
    problem_type: str
    models: np.ndarray | None = None  # int64 [rows], 1-based: which model of a cascade answered; None for one model

    @functools.cached_property
    def probabilities(self) -> np.ndarray:
        """float32 [rows, labels]: softmax or sigmoid of the logits, or (regression) the logits, by problem_type."""
        return probabilities(self.logits, self.problem_type)

    @functools.cached_property
    def label_ids(self) -> np.ndarray:
        """int64 [rows]: the label with the largest logit."""
        return self.logits.argmax(-1)

    @property
    def layer_speedup(self) -> float:
        """sum(n m_i) / sum(i m_i) over the m_i rows (or words) that left after layer i; nan without rows.

        Eq. 15 of the Past-Future paper.
        """
        return layer_speedup(self.exit_layers[self.exit_layers > 0], self.num_layers)


def probabilities(logits: np.ndarray, problem_type: str) -> np.ndarray:
    """float32 [..., labels] of logits of the same shape, as `Predictions.probabilities`."""
    match problem_type:
        case "regression":
            return logits
        case "multi_label_classification":
            with np.errstate(all="ignore"):  # exp(-logit) = inf gives 0, which is right
                return 1.0 / (1.0 + np.exp(-logits))
    with np.errstate(all="ignore"):  # exp(-inf) gives 0, which is right; a row without an answer gives nan
        powers = np.exp(logits - np.maximum.reduce(logits, -1, keepdims=True))
        powers /= np.add.reduce(powers, -1, keepdims=True)
        return powers


def results(
    labels: Sequence[str], scores: np.ndarray, exit_layers: np.ndarray, models: np.ndarray | None, top_k: int | None
) -> Iterator[Any]:
    """The answers to rows as `Engine.classify` gives them, one after the other.

    scores: float32 [rows, labels]; exit_layers: int64 [rows]; models: int64 [rows] of a cascade, else None.
    """
    also = zip(exit_layers.tolist(), [None] * len(scores) if models is None else models.tolist(), strict=True)
    if top_k == 1:
        best = scores.argmax(-1)
        for i, score, of in zip(best.tolist(), scores[np.arange(len(best)), best].tolist(), also, strict=True):
            yield _answer(labels[i], score, *of)
        return
    for order, row, of in zip(np.argsort(-scores, kind="stable")[:, :top_k], scores, also, strict=True):
        yield [_answer(labels[i], score, *of) for i, score in zip(order.tolist(), row[order].tolist(), strict=True)]


def _answer(label: str, score: float, exit_layer: int, model: int | None) -> dict[str, Any]:
    found = {"label": label, "score": score, "exit_layer": exit_layer}
    return found if model is None else found | {"model": model}


def has_answer(logits: np.ndarray) -> np.ndarray:
    """Is the largest logit finite? [..., labels] -> bool [...].

    A logit of -inf beside finite ones is an answer: its label has probability 0.
    """
    finite = np.isfinite(logits)
    if finite.all():  # in a fifth of the time
        return np.logical_and.reduce(finite, -1)
    with np.errstate(all="ignore"):
        found: np.ndarray = np.isfinite(np.maximum.reduce(logits, -1))
    return found


def mark_unanswered(window: Sequence[Row | InputError], answered: np.ndarray, precision: str) -> list[Row | InputError]:
    """The window, with an error in the place of each row for which `answered`, bool [rows], is false."""
    if answered.all():
        return list(window)
    advice = "check its weights" if precision == "fp32" else "try precision='fp32'"
    reason = f"has no answer: the model's numbers overflow in {precision}, and its logits are nan or infinite; {advice}"
    return [
        row if fine or isinstance(row, InputError) else InputError(row.row_id, reason)
        for row, fine in zip(window, answered.tolist(), strict=True)
    ]


def raise_first(window: Sequence[Row | InputError]) -> list[Row]:
    """The rows of a window; raises the first error in it."""
    rows: list[Any] = list(window)
    for row in rows:
        if type(row) is not Row and isinstance(row, InputError):
            raise row
    return rows
