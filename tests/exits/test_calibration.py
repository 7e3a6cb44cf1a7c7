"""Thresholds for layer speed-ups, held against a search over all thresholds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pfengine.exits import Entropy
from pfengine.exits.calibration import SPEEDUPS, entropy_exits, entropy_table, threshold_for
from pfengine.exits.criteria import entropy


def random_entropies(seed: int, exits: int, rows: int, ties: bool) -> np.ndarray:
    draw = np.random.default_rng(seed)
    values = draw.random((exits, rows), dtype=np.float32)
    return np.round(values, 1).astype(np.float32) if ties else values


def exits_by_loop(entropies: np.ndarray, exit_layers: list[int], threshold: float) -> list[int]:
    out = []
    for row in entropies.T:
        below = [exit_layers[i] for i, value in enumerate(row[:-1]) if value < np.float32(threshold)]
        out.append(below[0] if below else exit_layers[-1])
    return out


LAYERS = st.sets(st.integers(1, 12), min_size=1, max_size=6).map(sorted)


@given(LAYERS, st.integers(1, 12), st.booleans(), st.integers(0, 10**6), st.floats(-0.5, 1.5, width=32))
def test_exits_are_those_of_the_criterion(layers: list, rows: int, ties: bool, seed: int, threshold: float) -> None:
    values = random_entropies(seed, len(layers), rows, ties)
    expected = exits_by_loop(values, layers, threshold)
    assert entropy_exits(values, layers, threshold).tolist() == expected
    at_own = float(values[0, 0])  # a threshold that is a row's own entropy: it stays
    assert entropy_exits(values, layers, at_own).tolist() == exits_by_loop(values, layers, at_own)


@settings(max_examples=60)
@given(LAYERS, st.integers(1, 12), st.booleans(), st.integers(0, 10**6), st.floats(1.01, 12))
def test_smallest_threshold_that_reaches_a_speedup(
    layers: list[int], rows: int, ties: bool, seed: int, speedup: float
) -> None:
    values = random_entropies(seed, len(layers), rows, ties)

    def reached(threshold: float) -> bool:
        return layers[-1] * rows / sum(exits_by_loop(values, layers, threshold)) >= speedup

    above = sorted(float(np.nextafter(value, np.float32(np.inf))) for value in np.unique(values[:-1]))
    expected = next((threshold for threshold in above if reached(threshold)), float("inf"))
    found = threshold_for(values, layers, speedup)
    assert found == expected
    if np.isfinite(found):
        assert reached(found)
        assert not reached(float(np.nextafter(np.float32(found), np.float32(-np.inf))))


def test_saturated_rows_can_be_reached() -> None:
    values = np.zeros((3, 4), dtype=np.float32)
    threshold = threshold_for(values, [1, 2, 3], 3.0)
    assert threshold > 0
    assert entropy_exits(values, [1, 2, 3], threshold).tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("layers", [[1, 2, 3, 4, 5, 6], [2, 3, 6], [6]])
def test_table(layers: list[int]) -> None:
    draw = np.random.default_rng(3)
    logits = (draw.standard_normal((len(layers), 500, 2)) * np.linspace(1, 4, len(layers))[:, None, None]).astype(
        np.float32
    )
    labels = draw.integers(0, 2, 500)
    table = entropy_table(logits, labels, layers)
    reachable = 6 / layers[0] if len(layers) > 1 else 1
    assert len(table) == sum(speedup <= reachable for speedup in SPEEDUPS)
    for point, wanted in zip(table, SPEEDUPS, strict=False):
        signals = entropy(torch.from_numpy(logits)).numpy()
        exits = exits_by_loop(signals, layers, point["threshold"])
        assert point["layer_speedup"] == pytest.approx(6 * 500 / sum(exits))
        assert point["layer_speedup"] >= wanted
        answers = [logits[layers.index(layer), row].argmax() for row, layer in enumerate(exits)]
        assert point["accuracy"] == pytest.approx(np.mean(np.array(answers) == labels))
        assert point["rows"] == 500
        rule = Entropy(point["threshold"])  # as it will run
        leave = rule(layers[0], torch.from_numpy(logits[0]), None, torch.arange(500))[0].numpy()
        if len(layers) > 1:
            np.testing.assert_array_equal(leave, np.array(exits) == layers[0])
    thresholds = [point["threshold"] for point in table]
    assert thresholds == sorted(thresholds)
