"""Tokens that leave, against plain torch: frozen as they are, renormalised by later layers, or updated like all."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from pfengine import extension
from pfengine.ops import cpu, cpu_rule, reference
from pfengine.ops.flight import Answers
from pfengine.ops.rule import Clause, ExitRule, TokenRule, values

from .alone import LABELS, LAYERS, AllAlone, make, pack, random_rows

if not extension.has_cpu():
    pytest.skip(extension.status(), allow_module_level=True)

LENGTHS = [1, 4, 12, 30, 2, 7, 3]
ALL = bytes([1] * LAYERS)
FROZEN = TokenRule("token", freezes=True)


def layers_of(draw: np.random.Generator, slots: int) -> Clause:
    """Layers after which tokens leave, given beforehand: rounding cannot move them."""
    return Clause("layer", ">=", draw.integers(1, LAYERS + 2, (1, slots)).astype(np.float32))


@pytest.mark.parametrize("options", [{}, {"blocks": 2}, {"adds_from": 0}], ids=str)
@pytest.mark.parametrize("renormalises", [False, True])
@pytest.mark.parametrize("tokens", [FROZEN, TokenRule("token"), TokenRule("row")], ids=str)
def test_plain_torch(tokens: TokenRule, renormalises: bool, options: dict[str, Any]) -> None:
    """fp32: five layers of sums of up to 50 terms, each rounded in its own order."""
    rows = random_rows(LENGTHS)
    slots = np.concatenate([[0], np.cumsum(LENGTHS)[:-1]])
    rule = ExitRule(ALL, (layers_of(np.random.default_rng(3), sum(LENGTHS)),), tokens)
    answers, expected = Answers(0, sum(LENGTHS), LABELS), Answers(0, sum(LENGTHS), LABELS)
    flight = make(cpu, "all", renormalises=renormalises, **options).carrier().start(pack(rows), slots, answers)
    alone = AllAlone(make(reference, "all", renormalises=renormalises, **options), rows, slots, expected)
    for until in range(1, LAYERS + 1):
        if not len(flight):
            break
        exit = flight.advance(rule, until)
        alone.advance(rule, until)
        if exit is not None:
            states = torch.cat([row.states() for row in alone.rows])
            torch.testing.assert_close(flight.states(), states, atol=1e-4, rtol=1e-4)
            assert exit.logits is not None
            torch.testing.assert_close(exit.logits, torch.cat([row.logits for row in alone.rows]), atol=1e-4, rtol=1e-4)
    np.testing.assert_array_equal(answers.exit_layers, expected.exit_layers)
    np.testing.assert_allclose(answers.logits, expected.logits, atol=1e-4, rtol=1e-4)
    assert len(set(answers.exit_layers)) > 2


def test_a_frozen_token_holds_its_neighbours_back() -> None:
    """Its uncertainty is read again after every layer, in the windows of those beside it (SENTEE/TOKEE's own code)."""
    model, rows = make(cpu, "all"), random_rows([9])
    answers = Answers(0, 9, LABELS)
    flight = model.carrier().start(pack(rows), np.zeros(1, np.int64), answers)
    flight.advance(ExitRule(ALL), 1)
    flight.leave(np.arange(9) == 4)
    before = flight.states()[4]
    exit = flight.advance(ExitRule(ALL), 2)
    assert exit is not None
    assert torch.equal(flight.states()[4], before)
    own = extension.signal("entropy", exit.logits)
    between = float((own[3] + own[4]) / 2)
    lower, higher = (3, 4) if own[3] < own[4] else (4, 3)
    alone = ExitRule(ALL, (Clause("entropy", "<", values(between)),), TokenRule("token"))
    window = alone._replace(tokens=TokenRule("token", window=3))
    bounds, slots = torch.tensor([0, 9]).int(), torch.arange(9)
    assert cpu_rule.decide(alone, 2, exit.logits, None, None, slots, bounds)[0][[lower, higher]].tolist() == [
        True,
        False,
    ]
    assert not cpu_rule.decide(window, 2, exit.logits, None, None, slots, bounds)[0][[3, 4]].any()


def test_a_row_leaves_with_its_last_token() -> None:
    rows, answers = random_rows([2, 3]), Answers(0, 5, LABELS)
    flight = make(cpu, "all").carrier().start(pack(rows), np.array([0, 2]), answers)
    flight.advance(ExitRule(ALL), 1)
    flight.leave(np.array([True, False, False, False, True]))
    assert (len(flight), answers.exit_layers.tolist()) == (2, [1, 0, 0, 0, 1])
    exit = flight.advance(ExitRule(ALL), 2)
    assert exit is not None
    assert exit.slots.tolist() == [0, 1, 2, 3, 4]  # those that have left too
    flight.leave(np.array([True, True, True, False, False]))
    assert (len(flight), answers.exit_layers.tolist()) == (1, [1, 2, 2, 0, 1])
    assert flight.slots().tolist() == [2]
    flight.leave(np.array([False, True, False]), answered=False)
    flight.advance(ExitRule(ALL), LAYERS)
    assert answers.exit_layers.tolist() == [1, 2, 2, 0, 1]
    assert np.isnan(answers.logits[3]).all()
