"""The deciding kernel is held to `ops.decide`: exits, signals, and what rows carry on."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

from pfengine.kernels.answers import answer
from pfengine.kernels.decide import Decided, ExitTest, Form
from pfengine.kernels.exit_head import exit_head
from pfengine.kernels.signals import NAMES, signals
from pfengine.ops import decide as definition
from pfengine.ops.cuda_rule import by_slot_shape, fill_by_slot, forms_of, numbers_of, width_of
from pfengine.ops.rule import COMPARISONS, MEMORIES, SIGNALS, Clause, ExitRule, values

LAYERS, SLOTS = 5, 11
WHERE = ("once", "layer", "slot", "layer and slot")
LEVELS = {  # near the middle of what random scores give
    "entropy": 0.7, "normalised_entropy": 0.6, "confidence": 0.6, "margin": 0.4, "energy": -2.5,
    "binary_confidence": 0.55, "label": 1.0, "label_0": 0.3, "label_repeats": 0.5, "change": 2.5, "learned": 0.5,
    "layer": 3.0,
}  # fmt: skip


def clause_of(number: int, signal: Any, memory: Any) -> Clause:
    """Pairs of signal and memory; the comparison and what numbers differ by go through their values beside them."""
    generator, turn = np.random.default_rng(number), SIGNALS.index(signal)
    level = {"votes": 1.5, "side": -0.1, "trend": 0.1, "range": 0.3}.get(memory, LEVELS[signal])
    shape = {"once": (1, 1), "layer": (LAYERS, 1), "slot": (1, SLOTS), "layer and slot": (LAYERS, SLOTS)}
    threshold = level + 0.3 * abs(level) * generator.standard_normal(shape[WHERE[(number * 3 // 4 + turn) % 4]])
    if signal in ("label", "layer", "label_repeats") and memory in ("none", "running"):
        threshold = np.round(threshold)  # equals are there
    times = generator.integers(1, 3, shape[WHERE[(number + 2) % 4]]).astype(np.float32)
    if memory == "sum":
        times = times[:, :1] * np.float32(0.7)
    return Clause(
        signal,
        COMPARISONS[(number + turn) % 4],
        threshold.astype(np.float32),
        memory,
        times=times,
        size=1 + number % 3,
        temperature=values(1) if number % 2 else generator.uniform(0.5, 2, (LAYERS, 1)).astype(np.float32),
    )


PAIRS = [
    (signal, memory)
    for signal, memory in itertools.product(SIGNALS, MEMORIES)
    if (memory == "votes") <= (signal == "label")
]
CLAUSES = [clause_of(number, *pair) for number, pair in enumerate(PAIRS)]
RULES = [tuple(CLAUSES[i::23]) for i in range(23)]  # of three clauses, and of two


def lane_of(rule: ExitRule, used: np.ndarray, device: torch.device, labels: int, **options: Any) -> list[ExitTest]:
    """What a lane hands to the kernel after each layer; SLOTS slots, of which these are used, as rows of a rule."""
    forms, numbers = forms_of(rule), torch.from_numpy(numbers_of(rule)).to(device)
    by_slot = np.full((*by_slot_shape(rule, forms), SLOTS), np.nan, np.float32)
    fill_by_slot(rule, forms, used, by_slot)
    vectors = torch.from_numpy(by_slot).to(device)
    states = [torch.full((SLOTS, width_of(forms, labels)), 7.0, device=device) for _ in range(2)]
    return [
        ExitTest(
            layer, forms, numbers[layer - 1], vectors[min(layer, len(vectors)) - 1] if len(vectors[0]) else None,
            states[layer % 2] if layer > 1 else None, states[1 - layer % 2], **options,
        )
        for layer in range(1, len(numbers) + 1)
    ]  # fmt: skip


@pytest.mark.filterwarnings("ignore:All-NaN")
@pytest.mark.parametrize("clauses", RULES, ids=lambda rule: "+".join(f"{c.signal}-{c.memory}" for c in rule))
def test_rules(draw: Any, count: Any, device: torch.device, clauses: tuple[Clause, ...]) -> None:
    labels = 3 if len(clauses[0].signal) % 4 == 0 else 17  # one row per program, or several
    rule, rows, used = ExitRule(bytes([1] * LAYERS), clauses), 9, 8
    slots = np.random.default_rng(5).permutation(SLOTS)[:rows]
    at = torch.from_numpy(np.arange(rows)[::-1].copy()).to(device)  # rows of the batch are slots of the lane
    state, learned = None, torch.rand(rows, device=device)
    eye, zero = torch.eye(labels, device=device), torch.zeros(labels, device=device)
    lane = lane_of(rule, slots, device, labels, learned=learned, slots=at)
    scores = draw(rows, labels)
    for test in lane:
        scores = scores + draw(rows, labels) if test.layer != 3 else scores
        scores[1, :2], scores[2, 0] = 3.0, scores[2, 0] if test.layer < 4 else math.nan
        out = Decided.empty(rows, labels, device, len(clauses))
        exit_head(scores, eye, zero, test, count(used), out=out)
        answers = torch.from_numpy(slots[at.cpu().numpy()])
        expected = out.logits.cpu()
        expected[used:] = 0
        torch.testing.assert_close(expected[[0, 1, 3, 7]], scores[[0, 1, 3, 7]].cpu(), atol=1e-6, rtol=0)
        leave, state = definition.decide(rule, test.layer, expected, learned.cpu(), state, answers)
        assert torch.equal(out.leave[:used].cpu(), leave[:used])
        assert test.state_out is not None
        kept = test.state_out[at].cpu()[:used]
        torch.testing.assert_close(kept, state[:used], atol=5e-6, rtol=1e-6, equal_nan=True)
        assert (test.state_out[SLOTS - 2 :] == 7).all()  # slots that nobody has


def test_rules_cover_pairs() -> None:
    shapes = {(1, 1), (LAYERS, 1), (1, SLOTS), (LAYERS, SLOTS)}
    for field, names in (("signal", SIGNALS), ("memory", MEMORIES)):
        found = {(getattr(c, field), how) for c in CLAUSES for how in (c.comparison, c.threshold.shape)}
        missing = set(itertools.product(names, [*COMPARISONS, *shapes])) - found
        assert not {pair for pair in missing if pair[0] != "votes"}  # which goes with one signal
    assert sum(map(len, RULES)) == len(PAIRS)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("labels", [1, 2, 40])
def test_signals(draw: Any, name: Any, labels: int) -> None:
    scores = draw(9, labels, scale=3.0)
    scores[0], scores[1, 0], scores[2, 0], scores[3, 0], scores[4, -1] = 1.0, 1e4, math.nan, math.inf, -math.inf
    for temperature in (1.0, 0.7):
        exact = definition.signal(name, scores.cpu(), temperature)
        found = signals(name, scores, temperature)
        torch.testing.assert_close(found.cpu(), exact, atol=5e-6, rtol=2e-6, equal_nan=True)


def test_answers_of_rows_that_others_let_go(draw: Any, count: Any, device: torch.device) -> None:
    gone = torch.tensor([1, 0, 1, 1, 0, 1], dtype=torch.bool, device=device)
    logits, slots = draw(9, 70), torch.tensor([4, 3, 7, 0, 1, 2], device=device)
    rows = torch.tensor([8, 7, 6, 5, 4, 3], dtype=torch.int32, device=device)
    to_logits, to_layers = torch.full((8, 70), 9.0, device=device), torch.zeros(8, dtype=torch.int64, device=device)
    answer(gone, logits, slots, count(5), 3, to_logits, to_layers, source_rows=rows)
    assert to_layers.tolist() == [3, 0, 0, 0, 3, 0, 0, 3]
    for slot, row in ((4, 8), (7, 6), (0, 5)):
        assert torch.equal(to_logits[slot], logits[row])
    assert (to_logits[[1, 2, 3, 5, 6]] == 9).all()


def test_wrong_arguments_are_refused() -> None:
    x, bias, used, form = torch.zeros(2, 3), torch.zeros(3), torch.ones(1, dtype=torch.int32), Form("entropy", "<")
    one = torch.zeros(1, 3)
    for test, text in (
        (ExitTest(1, (form,)), "1 clauses, but numbers is None"),
        (ExitTest(1, (form,), torch.zeros(1)), r"numbers is torch.float32 \[1\]"),
        (ExitTest(1, (form._replace(threshold=0),), one), "reads numbers by slot, of which there are 0"),
        (ExitTest(1, (form._replace(memory="running"),), one), "remembers, but state_out is None"),
        (ExitTest(1, (form._replace(signal="learned"),), one), "reads the learned score, but learned is None"),
        (ExitTest(1, to_logits=torch.zeros(2, 3)), "to both to_logits and to_layers"),
        (ExitTest(1, to_logits=torch.zeros(2, 4), to_layers=torch.zeros(2).long()), r"to_logits is .* \[2, 4\]"),
        (ExitTest(1, slots=torch.zeros(3).long()), r"slots is torch.int64 \[3\]"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=text):
            exit_head(x, torch.zeros(3, 3), bias, test, used)
    with pytest.raises(ValueError, match="signal is 'change'; it must be one of entropy"):
        signals("change", x)
