"""Judges of single exits: agreement with the full model, order of confidence by difficulty, calibration.

docs/judges.md says what each figure means and where its definition comes from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..exits.temperature import fit_temperature
from .metrics import Metrics, measure

BINS = 15


@dataclass(frozen=True)
class ExitQuality:
    """One exit, judged on all rows. None: not defined for this model; nan: not defined on these rows."""

    layer: int
    metrics: dict[str, float]  # the task's, the leading one first
    agreement: float | None  # share of rows with the full model's label
    deviation: float | None  # regression: mean |score - the full model's score|
    difficulty_inversion: float | None
    learned_inversion: float | None  # the same of the head's own score of being wrong
    calibration_error: float | None
    calibration_error_tempered: float | None  # with a temperature fitted to other rows
    temperature: float | None  # fitted to all rows


def judge_exits(
    logits: np.ndarray,
    truth: np.ndarray,
    exit_layers: Sequence[int],
    metrics: Metrics,
    learned: np.ndarray | None = None,
) -> list[ExitQuality]:
    """Every exit judged by its scores on labelled rows.

    logits: float32 [exits, rows, labels]; with one label they are scores of regression, which have no confidence: then
    only `metrics` and `deviation` are given. truth: label ids, or numbers for regression, [rows]; bool [rows, labels]
    where labels are given or not each by itself, and then only `metrics` and `agreement` are given. learned: float32
    [exits, rows], the head's own score of being wrong, nan after the last layer.
    """
    if logits.shape[2] == 1:
        scores = logits[..., 0]
        gaps = np.abs(scores - scores[-1]).mean(1, dtype=np.float64)
        return [
            ExitQuality(layer, measure(metrics, own, truth), None, float(gap), None, None, None, None, None)
            for layer, own, gap in zip(exit_layers, scores, gaps, strict=True)
        ]
    if truth.ndim == 2:
        sets = logits > 0
        same = (sets == sets[-1]).all(-1).mean(1)
        return [
            ExitQuality(layer, measure(metrics, own, truth), float(share), None, None, None, None, None, None)
            for layer, own, share in zip(exit_layers, sets, same, strict=True)
        ]
    answers = logits.argmax(-1)
    difficulty = (answers != truth).sum(0)
    found = []
    for i, layer in enumerate(exit_layers):
        inverted = None
        if learned is not None and not np.isnan(learned[i]).any():
            inverted = difficulty_inversion(-learned[i], difficulty)
        found.append(
            ExitQuality(
                layer=layer,
                metrics=measure(metrics, answers[i], truth),
                agreement=float((answers[i] == answers[-1]).mean()),
                deviation=None,
                difficulty_inversion=difficulty_inversion(log_odds(logits[i]), difficulty),
                learned_inversion=inverted,
                calibration_error=calibration_error(confidence(logits[i]), answers[i] == truth),
                calibration_error_tempered=_tempered(logits[i], truth),
                temperature=fit_temperature(logits[i], truth),
            )
        )
    return found


def difficulty_inversion(confidence: np.ndarray, difficulty: np.ndarray) -> float:
    """The Difficulty Inversion Score of CascadeBERT (Li et al., Findings of EMNLP 2021), between 0 and 1.

    confidence, difficulty: [rows]. Of all pairs of rows with different difficulty, the share in which the easier one
    has the higher confidence; equal confidence counts half. So 1 is the right order, 1/2 that of chance; nan where all
    rows are equally difficult. It sorts once per level of difficulty, of which n exits give at most n + 1.
    """
    levels, rows = np.unique(difficulty, return_counts=True)
    easier, twice, pairs = np.empty(0), 0, 0
    for level, count in zip(levels.tolist(), rows.tolist(), strict=True):
        own = confidence[difficulty == level]
        pairs += len(easier) * count
        # a row is below len - right, and level with right - left, of those that are easier
        left, right = (np.searchsorted(easier, own, side) for side in ("left", "right"))
        twice += 2 * len(easier) * count - int(left.sum()) - int(right.sum())
        easier = np.sort(np.concatenate([easier, own]), kind="stable")
    return twice / (2 * pairs) if pairs else float("nan")


def calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int = BINS) -> float:
    """The expected calibration error (Guo et al., ICML 2017, eq. 5).

    It is the sum over bins of (rows in the bin / rows) * |share of them that are right - their mean confidence|.
    confidence: [rows], in [0, 1]; right: bool [rows]. Bin b of `bins` holds the rows with a confidence in
    ((b - 1) / bins, b / bins].
    """
    place = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    gaps = np.bincount(place, weights=right.astype(np.float64) - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(confidence))


def confidence(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """max softmax(logits / temperature): [rows, labels] -> float64 [rows]."""
    x = logits.astype(np.float64) / temperature
    return 1 / np.exp(x - x.max(1, keepdims=True)).sum(1)


def log_odds(logits: np.ndarray) -> np.ndarray:
    """ln(p / (1 - p)) of the largest probability p: [rows, labels] -> float64 [rows].

    It rises with p, and tells apart confidences that are all 1 when they are rounded.
    """
    x = np.sort(logits.astype(np.float64), axis=1)
    second = x[:, -2]
    return x[:, -1] - second - np.log(np.exp(x[:, :-1] - second[:, None]).sum(1))


def _tempered(logits: np.ndarray, truth: np.ndarray) -> float:
    """The calibration error where each half of the rows has the temperature of the other half; nan for one row."""
    if len(truth) < 2:
        return float("nan")
    halves = np.array_split(np.random.default_rng(0).permutation(len(truth)), 2)
    tempered = np.empty(len(truth))
    for own, other in (halves, halves[::-1]):
        tempered[own] = confidence(logits[own], fit_temperature(logits[other], truth[other]))
    return calibration_error(tempered, logits.argmax(1) == truth)
