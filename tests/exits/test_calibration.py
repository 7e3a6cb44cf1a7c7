"""Thresholds for layer speed-ups, held against a search over all thresholds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pfengine.exits import Entropy, Patience
from pfengine.exits.calibration import SPEEDUPS, calibration_table, exits_taken, threshold_for
from pfengine.exits.criteria import entropy


def random_logits(seed: int, exits: int, rows: int, ties: bool = False, labels: int = 2) -> np.ndarray:
    draw = np.random.default_rng(seed)
    values = draw.standard_normal((exits, rows, labels)) * np.linspace(1, 4, exits)[:, None, None]
    return (np.round(values) if ties else values).astype(np.float32)


def entropy_exits(logits: np.ndarray, exit_layers: list[int], threshold: float) -> list[int]:
    out = []
    for row in entropy(torch.from_numpy(logits)).numpy().T:
        below = [exit_layers[i] for i, value in enumerate(row[:-1]) if value < np.float32(threshold)]
        out.append(below[0] if below else exit_layers[-1])
    return out


def patience_exits(logits: np.ndarray, exit_layers: list[int], patience: int) -> list[int]:
    out = []
    for labels in logits.argmax(-1).T:
        run, left = 0, exit_layers[-1]
        for i in range(1, len(labels) - 1):
            run = run + 1 if labels[i] == labels[i - 1] else 0
            if run >= patience:
                left = exit_layers[i]
                break
        out.append(left)
    return out


LAYERS = st.sets(st.integers(1, 12), min_size=1, max_size=6).map(sorted)


@given(LAYERS, st.integers(1, 12), st.booleans(), st.integers(0, 10**6), st.floats(-0.5, 1.5, width=32))
def test_exits_are_those_of_the_criterion(layers: list, rows: int, ties: bool, seed: int, threshold: float) -> None:
    logits = random_logits(seed, len(layers), rows, ties)
    assert exits_taken(Entropy(threshold), logits, layers).tolist() == entropy_exits(logits, layers, threshold)
    own = float(entropy(torch.from_numpy(logits))[0, 0])  # a threshold that is a row's own entropy: it stays
    assert exits_taken(Entropy(own), logits, layers).tolist() == entropy_exits(logits, layers, own)
    for patience in (1, 2, 3):
        expected = patience_exits(logits, layers, patience)
        assert exits_taken(Patience(patience), logits, layers).tolist() == expected


@settings(max_examples=60)
@given(LAYERS, st.integers(1, 12), st.booleans(), st.integers(0, 10**6), st.floats(1.01, 12))
def test_slowest_threshold_that_reaches_a_speedup(
    layers: list[int], rows: int, ties: bool, seed: int, speedup: float
) -> None:
    logits = random_logits(seed, len(layers), rows, ties)

    def reached(threshold: float) -> bool:
        return layers[-1] * rows / sum(entropy_exits(logits, layers, threshold)) >= speedup

    values = entropy(torch.from_numpy(logits[:-1])).numpy()
    above = sorted(float(np.nextafter(value, np.float32(np.inf))) for value in np.unique(values))
    expected = next((threshold for threshold in above if reached(threshold)), float("inf"))
    found = threshold_for(Entropy(0.0), logits, layers, speedup)
    assert found == expected
    if np.isfinite(found):
        assert not reached(float(np.nextafter(np.float32(found), np.float32(-np.inf))))


def test_saturated_rows_can_be_reached() -> None:
    logits = np.zeros((3, 4, 2), dtype=np.float32)
    logits[..., 0] = 1e4
    threshold = threshold_for(Entropy(0.0), logits, [1, 2, 3], 3.0)
    assert threshold > 0
    assert exits_taken(Entropy(threshold), logits, [1, 2, 3]).tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("layers", [[1, 2, 3, 4, 5, 6], [2, 3, 6], [6]])
def test_table(layers: list[int], labelled: bool) -> None:
    logits = random_logits(3, len(layers), 500)
    labels = np.random.default_rng(4).integers(0, 2, 500)
    table = calibration_table(Entropy(0.0), logits, labels if labelled else None, layers)
    reachable = 6 / layers[0]
    assert len(table) == (sum(speedup <= reachable for speedup in SPEEDUPS) if len(layers) > 1 else 0)
    for point, wanted in zip(table, SPEEDUPS, strict=False):
        exits = entropy_exits(logits, layers, point["threshold"])
        assert point["layer_speedup"] == pytest.approx(6 * 500 / sum(exits))
        assert point["layer_speedup"] >= wanted
        answers = np.array([logits[layers.index(layer), row].argmax() for row, layer in enumerate(exits)])
        assert point["agreement"] == pytest.approx(np.mean(answers == logits[-1].argmax(-1)))
        assert ("accuracy" in point) == labelled
        assert not labelled or point["accuracy"] == pytest.approx(np.mean(answers == labels))
        assert point["rows"] == 500
    thresholds = [point["threshold"] for point in table]
    assert thresholds == sorted(thresholds)
    if table:
        assert (table[0]["layer_speedup"], table[0]["agreement"]) == (1.0, 1.0), "it begins at full depth"


def test_table_of_patience_has_one_point_a_speedup() -> None:
    layers = [1, 2, 3, 4, 5, 6]
    logits = random_logits(0, 6, 300, labels=2)
    table: list[dict[str, Any]] = calibration_table(Patience(1), logits, None, layers)
    speedups = [point["layer_speedup"] for point in table]
    assert speedups == sorted(set(speedups))
    assert all(point["threshold"] == int(point["threshold"]) for point in table)
    assert [point["threshold"] for point in table] == sorted((p["threshold"] for p in table), reverse=True)


def test_no_rows() -> None:
    assert calibration_table(Entropy(0.0), np.zeros((3, 0, 2), np.float32), None, [1, 2, 3]) == []
