"""The temperature of an exit: the number that its logits are divided by so that its probabilities can be believed."""

from __future__ import annotations

import numpy as np

COLDEST, HOTTEST = 0.01, 100.0
STEPS = 50  # halvings of the range of ln T, beyond float64's resolution of the result


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The T in [0.01, 100] with the least mean cross-entropy of softmax(logits / T) (Guo et al., ICML 2017, section 4).

    logits: [rows, labels] of one exit on held-out rows; labels: ids, int64 [rows]. The loss is convex in 1 / T and has
    the derivative mean(sum_c p_c x_c - x_label) there, whose zero is found by bisection. Where every row is right, the
    least loss is at T = 0, and the result is 0.01.
    """
    x = logits.astype(np.float64)
    x -= x.max(1, keepdims=True)
    own = x[np.arange(len(x)), labels].mean()
    low, high = np.log(1 / HOTTEST), np.log(1 / COLDEST)
    for _ in range(STEPS):
        middle = (low + high) / 2
        p = np.exp(np.exp(middle) * x)
        rises = ((p * x).sum(1) / p.sum(1)).mean() > own
        low, high = (low, middle) if rises else (middle, high)
    return float(np.exp(-(low + high) / 2))
