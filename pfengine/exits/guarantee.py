"""A threshold with a promise: Learn-then-Test (Angelopoulos et al., 2021) with an exact binomial tail bound.

A threshold is at fault with a row where its early answer breaks the promise. Let r be the share of such rows among all
rows there will ever be, n the rows at hand and k those of them at fault. Were r > limit, no more than k faults in n
would be seen with probability at most P(Bin(n, limit) <= k): that is the p-value of the threshold. Thresholds are
tested in an order fixed beforehand, from the slowest to the fastest, and testing stops at the first whose p-value
exceeds 1 - confidence; so the probability that any accepted one has r > limit is at most 1 - confidence
(fixed-sequence testing). Rows must be drawn as those to come will be.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..errors import ConfigError, PFEngineError, shown
from .base import Criterion
from .calibration import Simulation, answers_at, layer_speedup

Promise = Literal["agreement", "accuracy"]


class TooFewRows(PFEngineError):
    """Held-out rows that could not show the promise even without a single fault."""


class NotShown(PFEngineError):
    """A promise that no threshold of the criterion keeps on the held-out rows."""


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
    """Why a full model's answers may have nothing to do with the labels, both int64 [rows]; None where they clearly do.

    Were the labels dealt to the rows at random, the answers right by chance would have a mean and a variance that
    follow from how often each label and each answer occurs (Hoeffding, 1951). Three standard deviations above that
    mean are asked for: where one answer or one label is all there is, nothing can be told.
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
) -> Guarantee:
    """The fastest threshold of `criterion.grid` for which P(share of rows at fault <= limit) >= confidence.

    logits: [exits, rows, labels] of held-out rows; learned: float32 [exits, rows], the score that some heads add.
    labels None promises agreement: a row is at fault where its label is not that of the full model. With labels it
    promises accuracy: a row is at fault where the full model is right and the early answer is not, so that accuracy
    falls by no more than `limit` (rows that only the early answer gets right are not set off against them).

    Raises ConfigError for numbers outside (0, 1) and for labels that the full model's answers have nothing to do with,
    TooFewRows with the number that is needed, NotShown where no threshold
    keeps the promise.
    """
    for name, value in (("the share of rows at fault", limit), ("confidence", confidence)):
        if not 0 < value < 1:
            raise ConfigError(f"{name} is {value!r}; it must be between 0 and 1")
    rows, full = logits.shape[1], logits[-1].argmax(-1)
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
        answers = answers_at(logits, exit_layers, taken).argmax(-1)
        at_fault = answers != full if labels is None else (full == labels) & (answers != labels)
        faults = int(at_fault.sum())
        p_value = binomial_tail(faults, rows, limit)
        if p_value > 1 - confidence:
            break
        speedup = layer_speedup(taken, exit_layers[-1])
        best = Guarantee(promise, limit, confidence, threshold, speedup, faults, rows, p_value)
    if best is None:  # where rows leave at every threshold, as by the window of ELBERT
        raise NotShown(
            f"no threshold of criterion {shown(criterion)} keeps the promise: at the slowest, {faults} of {rows} rows "
            f"are at fault, too many to show at most {limit:.4g} with confidence {confidence:g}; take other parameters "
            "or another criterion"
        )
    return best
