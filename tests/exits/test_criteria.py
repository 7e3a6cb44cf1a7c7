"""Criteria: what they decide, and their text form."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pfengine import ConfigError
from pfengine.exits import Criterion, Entropy, Never, Replay, parse
from pfengine.exits.criteria import entropy

IDS = torch.arange(3)
LOGITS = torch.tensor([[8.0, 0.0], [1.0, 0.0], [0.0, 0.0]])  # entropies 0.003, 0.582, 0.693


def exact(row: list[float]) -> float:
    """By the definition, in float64; p ln p = 0 at p = 0."""
    top = max(row)
    weights = [math.exp(value - top) for value in row]
    return -sum(w / sum(weights) * math.log(w / sum(weights)) for w in weights if w > 0)


@given(st.integers(1, 9).flatmap(lambda n: st.lists(st.floats(-40, 40, width=32), min_size=n, max_size=n)))
def test_entropy_is_its_definition(row: list[float]) -> None:
    value = entropy(torch.tensor([row])).item()
    assert value == pytest.approx(exact(row), abs=2e-6, rel=2e-6)
    assert -1e-6 <= value <= math.log(len(row)) + 1e-6


@pytest.mark.parametrize(
    "row", [[200.0, 0.0, 0.0], [1e4, -1e4], [3e38, -3e38], [0.0, -1e30, -1e38], [150.0] + [0.0] * 30]
)
def test_saturated_rows_leave(row: list[float]) -> None:
    """The official code computes nan here, so that its surest rows never leave."""
    logits = torch.tensor([row])
    assert entropy(logits).item() == pytest.approx(0, abs=1e-6)
    leave, _ = Entropy(1e-3)(1, logits, None, IDS[:1])
    assert leave.tolist() == [True]


def test_entropy_of_half_precision_logits_is_computed_in_float32() -> None:
    logits = torch.tensor([[3.0, 1.0, -2.0]], dtype=torch.bfloat16)
    assert entropy(logits).dtype == torch.float32
    assert entropy(logits).item() == pytest.approx(exact([3, 1, -2]), abs=1e-6)


def test_entropy_comparison_is_strict() -> None:
    own = entropy(LOGITS)
    for row, value in enumerate(own.tolist()):
        leave, state = Entropy(value)(1, LOGITS, None, IDS)
        assert state is None
        assert not leave[row]
        above = float(np.nextafter(np.float32(value), np.float32(np.inf)))
        assert Entropy(above)(1, LOGITS, None, IDS)[0][row]
    assert Entropy(0.6)(4, LOGITS, None, IDS)[0].tolist() == [True, True, False]
    assert Entropy(-1)(1, LOGITS, None, IDS)[0].tolist() == [False] * 3
    assert Entropy(1e300)(1, LOGITS, None, IDS)[0].tolist() == [True] * 3
    assert Entropy(0.6)(1, LOGITS[:0], None, IDS[:0])[0].shape == (0,)


def test_replay() -> None:
    replay = Replay([3, 1, 2])
    assert replay(1, LOGITS, None, IDS)[0].tolist() == [False, True, False]
    assert replay(2, LOGITS, None, IDS)[0].tolist() == [False, True, True]
    assert replay(2, LOGITS[:2], None, torch.tensor([2, 0]))[0].tolist() == [True, False]
    for layers in (np.array([3, 1, 2], dtype=np.int32), torch.tensor([3, 1, 2]), (3, 1, 2)):
        assert Replay(layers)(1, LOGITS, None, IDS)[0].tolist() == [False, True, False]
    assert all(replay.tests(layer) for layer in (1, 2, 3))


@pytest.mark.parametrize("layers", [[0], [1, -1], [[1, 2]], 3, "abc", [1.5], [None], None, ["1"]], ids=repr)
def test_replay_takes_layers_only(layers: Any) -> None:
    with pytest.raises(ConfigError, match="layer"):
        Replay(layers)


def test_never_needs_no_logits() -> None:
    assert not any(Never().tests(layer) for layer in range(1, 13))


@pytest.mark.parametrize(
    ("text", "kind", "threshold"),
    [
        ("entropy:0.3", Entropy, 0.3),
        ("entropy:0", Entropy, 0.0),
        ("entropy:-2", Entropy, -2.0),
        ("entropy:1e-3", Entropy, 1e-3),
        (" entropy:0.3\n", Entropy, 0.3),
        ("never", Never, None),
        ("replay:3,5,2", Replay, None),
        ("replay: 3, 5, 2", Replay, None),
    ],
)
def test_text_and_object_mean_the_same(text: str, kind: type[Criterion], threshold: float | None) -> None:
    rule = parse(text)
    assert type(rule) is kind
    assert rule.threshold == threshold
    if kind is Replay:
        assert rule.layers.tolist() == [3, 5, 2]  # type: ignore[attr-defined]
    again = parse(repr(rule))
    assert type(again) is kind
    assert again.threshold == threshold


def test_threshold_beside_the_text() -> None:
    assert parse("entropy", 0.25).threshold == 0.25
    assert parse("entropy:0.5", 0.25).threshold == 0.25
    assert parse("entropy", 1).threshold == 1.0


@pytest.mark.parametrize(
    ("text", "threshold", "message"),
    [
        ("", None, "one of beem, .* entropy, .* replay"),
        ("entropie:0.3", None, "one of beem, .* entropy, .* replay"),
        ("Entropy:0.3", None, "unknown"),
        (None, 0.3, "is of type NoneType; give text"),
        (3, None, "is of type int; give text"),
        (b"entropy:0.3", None, "is of type bytes; give text"),
        ("entropy", None, "needs a threshold"),
        ("entropy:", None, "needs a threshold"),
        ("entropy:low", None, "'low' is not a number"),
        ("entropy:0.3:0.4", None, "not a number"),
        ("entropy:0_3", None, "not a number"),
        ("patience", None, "needs a threshold: 'patience:3'"),
        ("patience:0", None, "integer >= 1"),
        ("patience:1.5", None, "integer >= 1"),
        ("entropy:nan", None, "nan"),
        ("entropy:inf", None, "inf"),
        ("entropy", float("nan"), "nan"),
        ("entropy", "0.3", "'0.3'"),
        ("entropy", True, "True"),
        ("never:0.3", None, "no threshold"),
        ("never", 0.3, "no threshold"),
        ("replay", None, "replay:3,5,2"),
        ("replay:", None, "replay:3,5,2"),
        ("replay:1,,2", None, "replay:3,5,2"),
        ("replay:1,two", None, "replay:3,5,2"),
        ("replay:1.5", None, "replay:3,5,2"),
        ("replay:0", None, "layer"),
        ("replay:1,2", 0.3, "no threshold"),
    ],
)
def test_text_that_makes_no_sense(text: str, threshold: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(text, threshold)


@pytest.mark.parametrize("threshold", [float("nan"), float("-inf"), None, "0.3", True, [0.3]])
def test_thresholds_are_finite_numbers(threshold: Any) -> None:
    with pytest.raises(ConfigError, match="finite number"):
        Entropy(threshold)


@pytest.mark.parametrize("threshold", [np.float32(0.25), np.float64(0.25), np.int64(1), 1, 0.25], ids=repr)
def test_numpy_numbers_are_numbers(threshold: Any) -> None:
    assert Entropy(threshold).threshold == float(threshold)


def test_a_subclass_without_a_rule_says_so() -> None:
    class Mute(Criterion):
        pass

    with pytest.raises(TypeError, match="Mute must define __call__"):
        Mute()(1, LOGITS, None, IDS)
