"""A threshold with a promise: Learn-then-Test (Angelopoulos et al., 2021) with an exact binomial tail bound.

A row is at fault where its early answer breaks the promise. Let r be the share of such rows in the population, n the
number of held-out rows and k the number of those at fault. If r > limit, then k or fewer faults in n rows have a
probability of at most P(Bin(n, limit) <= k). That is the p-value of the threshold. Thresholds are tested in an order
fixed beforehand, from the slowest to the fastest. Testing stops at the first whose p-value exceeds 1 - confidence. So
the probability that any accepted threshold has r > limit is at most 1 - confidence (fixed-sequence testing). The rows
must be drawn from the same population as future rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..errors import ConfigError, PFEngineError, shown
from .base import Criterion
from .calibration import Simulation, alike, answers_at, layer_speedup

Promise = Literal["agreement", "accuracy"]


class TooFewRows(PFEngineError):
    """There are too few held-out rows to show the promise, even if none is at fault."""


class NotShown(PFEngineError):
    """No threshold of the criterion keeps the promise on the held-out rows."""


@dataclass(frozen=True)
class Guarantee:
    """What was promised, and the fastest threshold that was accepted."""

    promise: Promise
    limit: float  # largest share of rows at fault
    confidence: float
    threshold: float
    layer_speedup: float
    faults: int  # rows at fault at that threshold
    rows: int
    p_value: float
    tolerance: float | None = None  # of regression: how far a score may be from the one at full depth


def binomial_tail(faults: int, rows: int, limit: float) -> float:
    """P(Bin(rows, limit) <= faults)."""
    logs = [
        math.lgamma(rows + 1) - math.lgamma(k + 1) - math.lgamma(rows - k + 1)
        + k * math.log(limit) + (rows - k) * math.log1p(-limit)
        for k in range(faults + 1)
    ]  # fmt: skip
    return min(1.0, math.fsum(map(math.exp, logs)))


def rows_needed(limit: float, confidence: float) -> int:
    """The fewest rows that can show a share of at most `limit`: without a fault, (1 - limit)^n <= 1 - confidence."""
    return math.ceil(math.log(1 - confidence) / math.log1p(-limit))


def unrelated(answers: np.ndarray, labels: np.ndarray) -> str | None:
    """Why a full model's answers may be unrelated to the labels, both int64 [rows]; None where they are related.

    If the labels were assigned to the rows at random, the number of right answers would have a mean and a variance that
    follow from how often each label and each answer occurs (Hoeffding, 1951). The answers must be right three standard
    deviations more often than that mean. With only one answer or one label this cannot be told.
    """
    rows, kinds = len(labels), int(max(answers.max(), labels.max())) + 1
    answered, given = (np.bincount(part, minlength=kinds) / rows for part in (answers, labels))
    both = answered * given
    chance = float(both.sum())
    variance = rows**2 / max(1, rows - 1) * (chance + chance**2 - float(both @ (answered + given)))
    right = int((answers == labels).sum())
    if right > rows * chance + 3 * math.sqrt(max(0.0, variance)):
        return None
    for what, part in (("have the same label", labels), ("get the same answer", answers)):
        if len(set(part)) == 1:
            return f"all {rows} rows {what}, which cannot show that the labels fit the checkpoint"
    return (
        f"at full depth {right} of {rows} rows are right, where about {rows * chance:.0f} would be by chance: the "
        "labels probably do not fit the checkpoint"
    )


def guarantee(
    criterion: Criterion,
    logits: np.ndarray,
    labels: np.ndarray | None,
    exit_layers: Sequence[int],
    *,
    limit: float,
    confidence: float,
    learned: np.ndarray | None = None,
    tolerance: float | None = None,
    label_sets: bool = False,
    reference: np.ndarray | None = None,
) -> Guarantee:
    """The fastest threshold of `criterion.grid` for which P(share of rows at fault <= limit) >= confidence.

    logits: [exits, rows, labels] of held-out rows; learned: float32 [exits, rows], the score that some heads add.
    Without labels the promise is agreement: a row is at fault where its label is not that of the full model, with
    `label_sets` where its labels are not (see `alike`), or for regression, which has one label, where |score - score of
    the full model| > tolerance. With labels, int64 [rows], it
    is accuracy: a row is at fault where the full model is right and the early answer is not. Then accuracy falls by no
    more than `limit`; rows that only the early answer gets right do not count in its favour.

    reference: logits of another full model, float32 [rows, labels], which agreement is with instead.

    Raises ConfigError for numbers outside (0, 1), for regression without a tolerance, and for labels to which the full
    model's answers are unrelated, TooFewRows with the number that is needed, NotShown where no threshold keeps the
    promise.
    """
    for name, value in (("the share of rows at fault", limit), ("confidence", confidence)):
        if not 0 < value < 1:
            raise ConfigError(f"{name} is {value!r}; it must be between 0 and 1")
    rows, full = logits.shape[1], logits[-1].argmax(-1)
    alike(logits[-1], logits[-1], tolerance, label_sets)  # raises where there is none for scores
    needed = rows_needed(limit, confidence)
    if rows < needed:
        raise TooFewRows(
            f"{rows} held-out rows cannot show that at most {limit:.4g} of rows are at fault with confidence "
            f"{confidence:g}: at least {needed} are needed, more where there are faults"
        )
    if labels is not None and (doubt := unrelated(full, labels)) is not None:
        raise ConfigError(f"no accuracy can be promised: {doubt}")
    promise: Promise = "agreement" if labels is None else "accuracy"
    best, simulation = None, Simulation(logits, exit_layers, learned)
    for threshold in criterion.grid(len(exit_layers), logits.shape[2]):
        taken = simulation.exits(criterion.with_threshold(threshold))
        answers = answers_at(logits, exit_layers, taken)
        if labels is None:
            at_fault = ~alike(answers, logits[-1] if reference is None else reference, tolerance, label_sets)
        else:
            at_fault = (full == labels) & (answers.argmax(-1) != labels)
        faults = int(at_fault.sum())
        p_value = binomial_tail(faults, rows, limit)
        if p_value > 1 - confidence:
            break
        speedup = layer_speedup(taken, exit_layers[-1])
        best = Guarantee(promise, limit, confidence, threshold, speedup, faults, rows, p_value, tolerance)
    if best is None:  # where rows leave at every threshold, as by the window of ELBERT
        raise NotShown(
            f"no threshold of criterion {shown(criterion)} keeps the promise: at the slowest, {faults} of {rows} rows "
            f"are at fault, too many to show at most {limit:.4g} with confidence {confidence:g}; take other parameters "
            "or another criterion"
        )
    return best
