"""Whether rows leave where they left when the checkpoint was calibrated."""

from __future__ import annotations

import logging

import numpy as np
import pytest

import pfengine
from pfengine.serving.drift import FEWEST, Drift, expected_exits
from pfengine.serving.limits import Limits
from pfengine.serving.server import served

TABLE = [
    {"threshold": 0.1, "layer_speedup": 1.2, "exit_rows": [0, 50, 50]},
    {"threshold": 0.3, "layer_speedup": 2.0, "exit_rows": [80, 10, 10]},
]


def drawn(shares: list[float], rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).choice(len(shares), rows, p=shares) + 1


@pytest.mark.parametrize(
    ("threshold", "shares"),
    [(0.1, [0, 0.5, 0.5]), (0.2, [0.4, 0.3, 0.3]), (0.3, [0.8, 0.1, 0.1]), (0.31, None), (None, None)],
)
def test_shares_between_points(threshold: float | None, shares: list[float] | None) -> None:
    found = expected_exits(TABLE, threshold)
    assert found is None if shares is None else found == pytest.approx(shares)


def test_tables_of_older_checkpoints_say_nothing() -> None:
    assert expected_exits([{"threshold": 0.1, "layer_speedup": 1.2}], 0.1) is None
    drift = Drift(None, 0)
    drift.add(np.array([1, 2]))
    assert np.isnan(drift.index)


def test_the_same_texts_do_not_drift() -> None:
    drift = Drift(np.array([0.2, 0.3, 0.5]), 1000)
    drift.add(drawn([0.2, 0.3, 0.5], FEWEST - 1))
    assert np.isnan(drift.index)
    for seed in range(100):
        drift.add(drawn([0.2, 0.3, 0.5], 20, seed))
    assert 0 <= drift.index < 0.02


def test_the_index_is_that_of_its_definition() -> None:
    drift = Drift(np.array([0.25, 0.25, 0.5]), 400)
    drift.add(np.repeat([1, 2, 3], [300, 50, 50]))
    p = np.array([100.5, 100.5, 200.5]) / 401.5
    q = np.array([300.5, 50.5, 50.5]) / 401.5
    assert drift.index == pytest.approx(float(np.sum((q - p) * np.log(q / p))))


def test_other_texts_are_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    drift = Drift(np.array([0.2, 0.3, 0.5]), 1000)
    with caplog.at_level(logging.WARNING, "pfengine.serving"):
        for seed in range(100):
            drift.add(drawn([0.8, 0.1, 0.1], 20, seed))
        assert drift.index > 0.25
        assert len(caplog.records) == 1
        for seed in range(500):  # and back again
            drift.add(drawn([0.2, 0.3, 0.5], 20, seed))
        assert drift.index < 0.1
        assert len(caplog.records) == 1
        for seed in range(200):
            drift.add(drawn([0.8, 0.1, 0.1], 20, seed))
    assert len(caplog.records) == 2
    assert "calibrate again" in caplog.text


@pytest.mark.parametrize(
    ("options", "known"), [({}, True), ({"speedup": 3}, True), ({"criterion": "margin:0.5"}, False)]
)
def test_what_a_server_compares_with(sst2: pfengine.Engine, options: dict, known: bool) -> None:
    engine = pfengine.load("sst2", **options)
    expected = served("sst2", engine, Limits()).scheduler.totals.drift.expected
    assert (expected is not None) == known
    if expected is not None:
        layers = np.arange(1, 13)
        assert 12 / (expected * layers).sum() == pytest.approx(options.get("speedup", 2), abs=0.05)
