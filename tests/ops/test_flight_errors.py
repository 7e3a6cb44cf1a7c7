"""What a flight is handed and cannot use: one error that says what, and the flight is as it was."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch

from pfengine import extension
from pfengine.ops import cpu
from pfengine.ops.flight import Answers
from pfengine.ops.rule import Clause, ExitRule, TokenRule, values

from .alone import LABELS, LAYERS, make, pack, random_rows

if not extension.has_cpu():
    pytest.skip(extension.status(), allow_module_level=True)

ALL = bytes([1] * LAYERS)
NEVER = ExitRule(ALL)
PATIENCE = ExitRule(ALL, (Clause("label_repeats", ">=", values(1), "running", times=values(9)),))


def start(reads: str = "first", rows: int = 3, **options: Any) -> Any:
    packed = pack(random_rows([2] * rows))
    slots = np.arange(rows) * (2 if reads == "all" else 1)
    return make(cpu, reads, **options).carrier().start(packed, slots, Answers(0, 6, LABELS))


START: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "types": ({"types": np.arange(0)}, ValueError, "types has 0 numbers, expected 3"),
    "apart": ({"positions": np.arange(6)[::2]}, TypeError, "incompatible constructor arguments"),
    "int64 bounds": ({"cu_seqlens": np.array([0, 2, 3])}, TypeError, "incompatible constructor arguments"),
    "fewer bounds": ({"cu_seqlens": np.array([0, 3], np.int32)}, ValueError, "cu_seqlens has 2 numbers, expected 3"),
    "more tokens": ({"cu_seqlens": np.array([0, 2, 4], np.int32)}, ValueError, "cu_seqlens"),
    "no token": ({"cu_seqlens": np.array([0, 3, 3], np.int32)}, ValueError, "cu_seqlens does not rise at row 1"),
    "a slot too far": ({"slots": np.array([0, 2])}, ValueError, "row 1 has the slot 2, expected 0 to 1"),
    "a slot below 0": ({"slots": np.array([-1, 0])}, ValueError, "row 0 has the slot -1, expected 0 to 1"),
    "labels": ({"logits": np.empty((2, 2), np.float32)}, ValueError, r"logits must be float32 \[2, 3\]"),
    "float64": ({"logits": np.empty((2, 3))}, TypeError, "incompatible constructor arguments"),
    "an id": ({"ids": np.arange(3) - 1}, IndexError, "token id -1 of token 0 is outside its table"),
}  # fmt: skip


@pytest.mark.parametrize("case", START)
def test_starting(case: str) -> None:
    change, error, text = START[case]
    arrays = {
        "ids": np.arange(3), "positions": np.array([0, 1, 0]), "types": np.zeros(3, np.int64),
        "cu_seqlens": np.array([0, 2, 3], np.int32), "slots": np.array([1, 0]),
        "logits": np.empty((2, 3), np.float32), "exit_layers": np.empty(2, np.int64),
    } | change  # fmt: skip
    answers = Answers(0, 2, LABELS)
    answers.logits, answers.exit_layers = arrays.pop("logits"), arrays.pop("exit_layers")
    slots = arrays.pop("slots")
    with pytest.raises(error, match=text):
        make(cpu).carrier().start(pack([])._replace(**arrays), slots, answers)


def test_slots_of_tokens() -> None:
    packed, carrier = pack(random_rows([2, 3])), make(cpu, "all").carrier()
    carrier.start(packed, np.array([3, 0]), Answers(0, 5, LABELS))
    with pytest.raises(ValueError, match="row 0 has the slot 4 and those of its words after it, expected 0 to 4"):
        carrier.start(packed, np.array([4, 0]), Answers(0, 5, LABELS))


TOKENS = TokenRule("token")
RULES: dict[str, tuple[dict[str, Any], ExitRule, str]] = {
    "layers": ({}, ExitRule(bytes(4)), "tested has 4 numbers, expected 5"),
    "slots": (
        {}, ExitRule(ALL, (Clause("entropy", "<", np.zeros((1, 5), np.float32)),)), "for 5 slots, expected 1 or the 6"
    ),
    "tokens of rows": ({}, ExitRule(ALL, (), TOKENS), "reads tokens, but the head does not score them"),
    "rows of tokens": (
        {"reads": "all"}, ExitRule(ALL, (Clause("entropy", "<", values(1)),)), "does not say how they are read"
    ),
    "learned": (
        {"learned": False}, ExitRule(ALL, (Clause("learned", "<", values(1)),)), "a learned score, which the exit after"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", RULES)
def test_rules_that_do_not_fit(case: str) -> None:
    options, rule, text = RULES[case]
    flight = start(**options)
    with pytest.raises(ValueError, match=text):
        flight.advance(rule, LAYERS)
    assert (flight.layer, len(flight)) == (0, 3)
    assert flight.advance(NEVER, 1) is not None


def test_a_rule_that_carries_other_numbers() -> None:
    flight = start()
    flight.advance(PATIENCE, 2)
    with pytest.raises(ValueError, match="carries other numbers from exit to exit than the rule before"):
        flight.advance(ExitRule(ALL, (Clause("entropy", "<", values(0.1), "running"),)), LAYERS)
    flight.advance(NEVER, 3)  # which carries none, and leaves them alone
    flight.advance(PATIENCE, LAYERS)
    assert not len(flight)


def test_going_back() -> None:
    flight = start()
    flight.advance(NEVER, 3)
    for until in (3, 2, 0, -1):
        with pytest.raises(ValueError, match=f"until is {until}, expected at least 4"):
            flight.advance(NEVER, until)


def test_leaving() -> None:
    flight = start(without=(2,))
    with pytest.raises(ValueError, match="no scores after layer 0"):
        flight.leave(np.ones(3, bool))
    flight.advance(NEVER, 2)
    with pytest.raises(ValueError, match="no scores after layer 2"):
        flight.leave(np.ones(3, bool))
    for wrong, error in [
        (np.ones(2, bool), ValueError), (np.ones((3, 1), bool), ValueError), (torch.ones(4).bool(), ValueError),
        (np.ones(3), ValueError), (torch.ones(3, dtype=torch.uint8), ValueError), ([True] * 3, TypeError),
        (None, TypeError),
    ]:  # fmt: skip
        with pytest.raises(error):
            flight.leave(wrong, answered=False)
    assert len(flight) == 3


def test_joining() -> None:
    model, answers = make(cpu).carrier(), Answers(0, 6, LABELS)

    def flight(first: int, carrier: Any = model, to: Answers = answers) -> Any:
        return carrier.start(pack(random_rows([2, 4])), np.arange(2) + first, to)

    one = flight(0)
    one.advance(PATIENCE, 2)
    with pytest.raises(ValueError, match="cannot join itself"):
        one.join(one)
    with pytest.raises(ValueError, match="not through the same model"):
        one.join(flight(2, make(cpu).carrier()))
    with pytest.raises(ValueError, match="do not have the same answers"):
        one.join(flight(2, to=Answers(0, 6, LABELS)))
    with pytest.raises(ValueError, match="after layer 2 and after layer 0, expected the same one"):
        one.join(flight(2))
    with pytest.raises(ValueError, match="cannot join one of CpuFlight"):
        one.join(None)
    other = flight(2)
    other.advance(ExitRule(ALL, (Clause("change", "<", values(0)),)), 2)
    with pytest.raises(ValueError, match="rules carry different numbers"):
        one.join(other)
    assert (len(one), len(other)) == (2, 2)
    one.advance(PATIENCE, LAYERS)
    other.advance(NEVER, LAYERS)
    assert answers.exit_layers.tolist() == [LAYERS] * 4 + [0] * 2


def test_one_thread_at_a_time() -> None:
    """Each call of two threads does its work, or says that the other one is at it."""
    flight = make(cpu, hidden=384).carrier().start(
        pack(random_rows([60] * 40)), np.arange(40), Answers(0, 40, LABELS)
    )  # fmt: skip
    errors: list[str] = []

    def go() -> None:
        try:
            flight.advance(NEVER, LAYERS)
        except RuntimeError as error:
            errors.append(str(error))

    threads = [threading.Thread(target=go) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors in ([], ["the flight is in use by another thread"])
    assert not len(flight)
