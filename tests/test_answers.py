"""Answers of a window at once are those of its rows one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pfengine.answers import results

LABELS = ("a", "b", "c")
SCORES = np.array([[0.2, 0.5, 0.3], [0.4, 0.2, 0.4], [0.0, 0.0, 1.0], [np.nan, 0.1, 0.2]], np.float32)
LAYERS, MODELS = np.array([3, 12, 1, 0]), np.array([1, 2, 1, 2])


def one(i: int, label: int, models: bool) -> dict[str, Any]:
    found = {"label": LABELS[label], "score": float(SCORES[i, label]), "exit_layer": int(LAYERS[i])}
    return found | {"model": int(MODELS[i])} if models else found


@pytest.mark.parametrize("models", [False, True], ids=["one model", "a cascade"])
@pytest.mark.parametrize("top", [1, 2, 3, 7, None])
def test_best_labels_first_and_of_equal_ones_the_first(top: int | None, models: bool) -> None:
    found = list(results(LABELS, SCORES, LAYERS, MODELS if models else None, top))
    assert len(found) == len(SCORES)  # the last has no answer: whoever asks drops it
    for i, order in enumerate([(1, 2, 0), (0, 2, 1), (2, 0, 1)]):
        expected = [one(i, label, models) for label in order[:top]]
        assert found[i] == (expected[0] if top == 1 else expected)
        assert type((found[i] if top == 1 else found[i][0])["exit_layer"]) is int


@pytest.mark.parametrize("top", [1, None])
def test_no_rows(top: int | None) -> None:
    assert list(results(LABELS, SCORES[:0], LAYERS[:0], None, top)) == []
