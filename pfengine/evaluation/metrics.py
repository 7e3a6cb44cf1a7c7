"""The metrics of GLUE and of label sets, by scikit-learn and scipy; those of taggers are in `tagged`."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping

import numpy as np

from ..errors import ConfigError
from .tagged import TagMetric

RESAMPLES = 200


def _sklearn(name: str) -> Callable[[np.ndarray, np.ndarray], float]:
    def score(answers: np.ndarray, truth: np.ndarray) -> float:
        import sklearn.metrics

        if name == "f1":  # of label 1, as GLUE has it for MRPC and QQP; of all labels where there are more
            average = "binary" if max(truth.max(initial=0), answers.max(initial=0)) < 2 else "macro"
            return float(sklearn.metrics.f1_score(truth, answers, average=average, zero_division=0.0))
        return float(sklearn.metrics.accuracy_score(truth, answers))

    return score


def _scipy(name: str) -> Callable[[np.ndarray, np.ndarray], float]:
    def score(answers: np.ndarray, truth: np.ndarray) -> float:
        import scipy.stats

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about equal answers, which have no correlation: nan
            return float(getattr(scipy.stats, name)(answers, truth).statistic)

    return score


def _of_sets(average: str) -> Callable[[np.ndarray, np.ndarray], float]:
    def score(answers: np.ndarray, truth: np.ndarray) -> float:
        import sklearn.metrics

        return float(sklearn.metrics.f1_score(truth, answers, average=average, zero_division=0.0))

    return score


def _subset_accuracy(answers: np.ndarray, truth: np.ndarray) -> float:
    return float((answers == truth).all(1).mean())


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": _sklearn("accuracy"),
    "f1": _sklearn("f1"),
    "pearson": _scipy("pearsonr"),
    "spearman": _scipy("spearmanr"),
    "micro_f1": _of_sets("micro"),
    "macro_f1": _of_sets("macro"),
    "subset_accuracy": _subset_accuracy,
}


Metrics = tuple[str, ...] | Mapping[str, TagMetric]
"""The leading one first: names of METRICS, or a tagger's, which know the rows that words are of."""


def measure(metrics: Metrics, answers: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Each metric of answers against the truth: label ids, or numbers for regression, [rows]; bool [rows, labels]."""
    known = metrics if isinstance(metrics, Mapping) else METRICS
    try:
        return {name: known[name](answers, truth) for name in metrics}
    except ImportError:
        raise ConfigError("metrics need scikit-learn and scipy: pip install 'pfengine[train]'") from None


def leading(metrics: Metrics) -> str | TagMetric:
    return next(iter(metrics.values())) if isinstance(metrics, Mapping) else metrics[0]


def standard_error(metric: str | TagMetric, answers: np.ndarray, truth: np.ndarray) -> float:
    """The standard error of one metric over randomly drawn rows.

    It is exact for accuracy of rows, else from 200 bootstrap samples; nan where no sample has a value, such as the
    correlation of equal answers.
    """
    if not isinstance(metric, str):
        return metric.standard_error(answers)
    if metric in ("accuracy", "subset_accuracy"):
        share = METRICS[metric](answers, truth)
        return float(np.sqrt(share * (1 - share) / len(truth)))
    return deviation(resampled(metric, answers, truth))


def deviation(scores: np.ndarray) -> float:
    """The standard deviation of those that have a value; nan where none has."""
    known = scores[~np.isnan(scores)]
    return float(known.std()) if len(known) else float("nan")


@functools.lru_cache(1)  # a comparison asks for those of the same rows again and again
def _samples(rows: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Rows drawn for each of 200 samples, and how often each row is in each: [rows], and float64 [200, rows]."""
    draw = np.random.default_rng(0)
    samples = [draw.integers(0, rows, rows) for _ in range(RESAMPLES)]
    return samples, np.array([np.bincount(part, minlength=rows) for part in samples], np.float64)


def resampled(metric: str, answers: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The metric on each of 200 bootstrap samples of the rows, float64 [200]; the same samples for all of equal length.

    nan where a sample has no value.
    """
    samples, counts = _samples(len(truth))
    if metric in ("pearson", "spearman"):
        return np.array([METRICS[metric](answers[part], truth[part]) for part in samples])
    if truth.ndim == 2 and metric != "subset_accuracy":
        common, either = counts @ (answers & truth), counts @ answers + counts @ truth  # by label
        if metric == "micro_f1":
            common, either = common.sum(1, keepdims=True), either.sum(1, keepdims=True)
        shares: np.ndarray = (2 * common / np.maximum(either, 1)).mean(1)
        return shares
    right = answers == truth if truth.ndim == 1 else (answers == truth).all(1)
    if metric in ("accuracy", "subset_accuracy"):
        found: np.ndarray = counts @ right / len(truth)
        return found
    labels = np.arange(max(truth.max(initial=0), answers.max(initial=0), 1) + 1)
    labels = labels[1:] if len(labels) == 2 else labels  # as in METRICS
    given, wanted = answers[:, None] == labels, truth[:, None] == labels
    total = counts @ given + counts @ wanted
    with np.errstate(invalid="ignore"):
        scores = np.where(total > 0, 2 * (counts @ (given & wanted)) / total, np.nan if len(labels) > 1 else 0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a label that is in no sample
        means: np.ndarray = np.nanmean(scores, 1)
    return means
