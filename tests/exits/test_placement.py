"""Which layers to test: costs add up as they should, and the set is the cheapest there is."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from pfengine.exits import Entropy
from pfengine.exits.placement import Costs, Price, judge, place

from .test_calibration import random_logits


def price(row: list[float], call: float = 0.0) -> Price:
    return Price(np.array(row), np.full(len(row), call))


def costs(layers: int, exit: float = 0.25) -> Costs:
    return Costs(price([1.0] * layers), price([exit] * layers), 8, 0.0)


def test_seconds_by_hand() -> None:
    priced = Costs(price([1, 2, 3]), price([10, 20, 30]), 4, 0.5)
    # layers 2 and 3 tested
    assert priced.seconds((2, 3), np.array([2, 3])) == pytest.approx(0.5 + ((1 + 22) + (1 + 22 + 33)) / 2)


def test_a_call_is_paid_while_a_row_is_left() -> None:
    priced = Costs(price([0, 0, 0], 8.0), price([0, 0, 0], 4.0), 4, 0.0)
    # all four rows enter layer 1 and 2, of four taken at random one in two is left at layer 3: 1 - 1 / 2^4
    expected = (8 + (8 + 4) + (8 + 4) * 15 / 16) / 4
    assert priced.seconds((2, 3), np.array([2, 3])) == pytest.approx(expected)


def test_an_exit_that_lets_nobody_go_is_dropped() -> None:
    logits = random_logits(0, 5, 400)
    logits[0] = 0.0  # layer 1 is never sure
    found = place(Entropy(0.0), logits, [1, 2, 3, 4, 5], costs(5), agreement=0.9)
    assert found is not None
    assert 1 not in found.exit_layers
    every = judge(Entropy(0.0), logits, [1, 2, 3, 4, 5], (1, 2, 3, 4, 5), costs(5), 0.9)
    assert every is not None
    assert found.seconds < every.seconds
    assert min(found.agreement, every.agreement) >= 0.9


def test_free_heads_are_all_worth_having_dear_ones_are_not() -> None:
    logits = random_logits(1, 4, 500)
    free = place(Entropy(0.0), logits, [1, 2, 3, 4], costs(4, 0.0), agreement=0.8)
    dear = place(Entropy(0.0), logits, [1, 2, 3, 4], costs(4, 5.0), agreement=0.8)
    assert free is not None
    assert dear is not None
    assert len(free.exit_layers) >= len(dear.exit_layers)
    assert len(dear.exit_layers) == 2


@pytest.mark.parametrize("exits", [4, 13])
def test_the_set_is_the_cheapest_or_cheaper_than_all(exits: int) -> None:
    layers = list(range(1, exits + 1))
    logits = random_logits(2, exits, 200)
    found = place(Entropy(0.0), logits, layers, costs(exits), agreement=0.85)
    assert found is not None
    if exits == 4:
        sets = [s for k in (1, 2, 3) for s in itertools.combinations(layers[:-1], k)]
        judged = [judge(Entropy(0.0), logits, layers, (*s, 4), costs(4), 0.85) for s in sets]
        assert found.seconds == min(j.seconds for j in judged if j is not None)
    else:  # too many sets: dropped one by one, never for the worse
        every = judge(Entropy(0.0), logits, layers, tuple(layers), costs(exits), 0.85)
        assert every is not None
        assert found.seconds <= every.seconds


def test_agreement_that_cannot_be_kept() -> None:
    logits = np.zeros((2, 50, 2), np.float32)
    logits[0, :, 0], logits[1, :, 1] = 9, 9
    found = place(Entropy(0.0), logits, [1, 2], costs(2), agreement=0.99)
    assert found is None or found.layer_speedup == 1.0
