"""Learn-then-Test: the bound is exact, and the promise holds as often as it says."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

import pfengine
from pfengine.exits import Entropy, Patience
from pfengine.exits.calibration import answers_at, exits_taken
from pfengine.exits.guarantee import TooFewRows, binomial_tail, guarantee, rows_needed, unrelated

LAYERS = [1, 2, 3, 4]


def model(rows: int, draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Logits of exits that grow surer and more often right with depth, and labels."""
    labels = draw.integers(0, 2, rows)
    hardness = draw.random(rows)
    logits = np.zeros((4, rows, 2), np.float32)
    for i in range(4):
        margin = (i + 1) * (1.3 - hardness) * 2 + draw.standard_normal(rows) * (1.6 - 0.3 * i)
        logits[i, np.arange(rows), labels] = margin
    return logits, labels


def at_fault(logits: np.ndarray, labels: np.ndarray | None, threshold: float) -> float:
    taken = exits_taken(Entropy(threshold), logits, LAYERS)
    early, full = answers_at(logits, LAYERS, taken).argmax(-1), logits[-1].argmax(-1)
    return float(np.mean(early != full if labels is None else (full == labels) & (early != labels)))


@pytest.mark.parametrize("rows", [1, 7, 300, 20_000])
@pytest.mark.parametrize("limit", [0.001, 0.01, 0.2])
def test_tail_is_the_binomial_distributions(rows: int, limit: float) -> None:
    for faults in {0, 1, rows // 100, rows // 3, rows}:
        expected = scipy.stats.binom.cdf(faults, rows, limit)
        assert binomial_tail(faults, rows, limit) == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_rows_needed() -> None:
    assert rows_needed(0.01, 0.95) == 299
    logits, _ = model(298, np.random.default_rng(0))
    with pytest.raises(TooFewRows, match=r"298 held-out rows .* at least 299 are needed"):
        guarantee(Entropy(0.0), logits, None, LAYERS, limit=0.01, confidence=0.95)
    assert issubclass(TooFewRows, pfengine.PFEngineError)
    assert not issubclass(TooFewRows, pfengine.ConfigError)  # exit code 1, not 2
    found = guarantee(Entropy(0.0), np.concatenate([logits, logits], 1), None, LAYERS, limit=0.01, confidence=0.95)
    assert found.p_value <= 0.05


@pytest.mark.slow
@pytest.mark.parametrize(
    ("limit", "confidence", "labelled"),
    [
        (0.05, 0.9, False),
        (0.02, 0.8, True),
        pytest.param(0.05, 0.9, True, marks=pytest.mark.wide),
        pytest.param(0.02, 0.8, False, marks=pytest.mark.wide),
    ],
)
def test_the_promise_holds_as_often_as_it_says(limit: float, confidence: float, labelled: bool) -> None:
    """Thresholds from 400 fresh splits of 600 rows, judged on 40,000 rows of the same kind."""
    draw = np.random.default_rng(1)
    logits, labels = model(40_000, draw)
    risks: dict[float, float] = {}
    broken, speedups, trials = 0, [], 400
    for _ in range(trials):
        part = draw.choice(40_000, 600, replace=False)
        known = labels[part] if labelled else None
        found = guarantee(Entropy(0.0), logits[:, part], known, LAYERS, limit=limit, confidence=confidence)
        if found.threshold not in risks:
            risks[found.threshold] = at_fault(logits, labels if labelled else None, found.threshold)
        broken += risks[found.threshold] > limit
        speedups.append(found.layer_speedup)
    # one-sided: at most 1 - confidence of the splits, plus three standard deviations of a count of 400
    allowed = 1 - confidence
    assert broken / trials <= allowed + 3 * (allowed * (1 - allowed) / trials) ** 0.5
    assert broken > 0, "the bound is not so loose that it could never fail"
    assert np.median(speedups) > 1.2, "and it buys some speed"


def test_faults_are_counted_at_the_threshold_found() -> None:
    logits, labels = model(3000, np.random.default_rng(2))
    for known in (None, labels):
        found = guarantee(Entropy(0.0), logits, known, LAYERS, limit=0.03, confidence=0.95)
        assert found.promise == ("agreement" if known is None else "accuracy")
        assert found.faults / 3000 == pytest.approx(at_fault(logits, known, found.threshold))
        assert found.p_value == pytest.approx(scipy.stats.binom.cdf(found.faults, 3000, 0.03))
        assert found.p_value <= 0.05
        taken = exits_taken(Entropy(found.threshold), logits, LAYERS)
        assert found.layer_speedup == pytest.approx(4 * 3000 / taken.sum())


def test_nobody_may_leave() -> None:
    logits = np.zeros((4, 400, 2), np.float32)
    logits[:3, :, 0], logits[3, :, 1] = 9, 9  # every early answer is wrong, and sure
    found = guarantee(Entropy(0.0), logits, None, LAYERS, limit=0.01, confidence=0.95)
    assert (found.layer_speedup, found.faults) == (1.0, 0)
    found = guarantee(Patience(1), logits, None, LAYERS, limit=0.01, confidence=0.95)
    assert found.layer_speedup == 1.0


@pytest.mark.parametrize("bad", [{"limit": 0.0}, {"limit": 1.0}, {"confidence": 0.0}, {"confidence": 1.0}])
def test_numbers_are_checked(bad: dict[str, float]) -> None:
    logits, _ = model(10, np.random.default_rng(0))
    with pytest.raises(pfengine.ConfigError, match="between 0 and 1"):
        guarantee(Entropy(0.0), logits, None, LAYERS, **({"limit": 0.1, "confidence": 0.9} | bad))


def test_chance_is_that_of_labels_dealt_at_random() -> None:
    draw = np.random.default_rng(3)
    answers, labels = draw.integers(0, 5, 300), draw.choice(5, 300, p=[0.6, 0.1, 0.1, 0.1, 0.1])
    dealt = np.array([(answers == draw.permutation(labels)).sum() for _ in range(4000)])
    assert unrelated(answers, (answers + 1) % 5) == (
        "at full depth 0 of 300 rows are right, where about 60 would be by chance: "
        "the labels probably do not fit the checkpoint"
    )
    refused = np.array([unrelated(answers, draw.permutation(labels)) is not None for _ in range(4000)])
    assert refused.mean() > 0.99
    for right in range(300):  # rows in which the labels are the answers: from three deviations on they are believed
        mixed = np.where(np.arange(300) < right, answers, labels)
        if unrelated(answers, mixed) is None:
            break
    assert (answers == mixed).sum() == pytest.approx(dealt.mean() + 3 * dealt.std(), abs=6)


@pytest.mark.parametrize(
    ("answers", "labels", "fits"),
    [
        ([0, 1] * 100, [0, 1] * 100, True),
        ([0] * 197 + [1] * 3, [0] * 196 + [1] * 4, True),  # rare, and mostly found: no better than answering 0
        ([0] * 200, [0] * 190 + [1] * 10, False),  # one answer to all
        ([0] * 190 + [1] * 10, [0] * 200, False),  # one label for all
        ([1, 2, 3, 4] * 50, [0, 1, 2, 3] * 50, False),  # off by one
        ([0, 1] * 100, [1, 0] * 100, False),
        ([0], [0], False),
    ],
)
def test_labels_that_fit(answers: list[int], labels: list[int], fits: bool) -> None:
    assert (unrelated(np.array(answers), np.array(labels)) is None) == fits
