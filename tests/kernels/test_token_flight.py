"""Flights of tag heads on the GPU do what `token_flight` does over the same kernels, however they are driven.

States have the same bits. Logits have not, as an exit is one kernel here, and two there.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pfengine import reader
from pfengine.model import build
from pfengine.ops import cuda, cuda_linear
from pfengine.ops.cuda_model import CudaModel
from pfengine.ops.cuda_token_flight import CudaTokenFlight
from pfengine.ops.flight import Answers, Carrier, Flight
from pfengine.ops.rule import Clause, ExitRule, TokenRule, values
from pfengine.token_flight import TokenFlight
from pfengine.tokenization import Row, pack
from pfengine.torch_flight import TorchCarrier
from tests.rows_of_words import row_of_words

Make = Callable[..., Path]
LENGTHS, LAYERS, LABELS = [1, 9, 3, 17, 1, 6], 4, 3  # words of each row
ROWS = range(len(LENGTHS))
WORDS, STARTS, ALL = sum(LENGTHS), np.cumsum([0, *LENGTHS]), bytes([1, 1, 1, 0])
SMALL = {
    "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24, "num_hidden_layers": LAYERS,
}  # fmt: skip
HALF = Clause("normalised_entropy", "<", values(0.6))
BY_SLOT = np.random.default_rng(4).uniform(0.3, 0.9, (LAYERS, WORDS)).astype(np.float32)
FROZEN = TokenRule("token", freezes=True)
RULES = {
    "row max": ExitRule(ALL, (HALF._replace(threshold=values(0.8)),), TokenRule("row", "max")),
    "row mean or margin": ExitRule(
        ALL, (HALF, Clause("margin", ">", BY_SLOT[:1], "side", size=2)), TokenRule("row", "mean")
    ),
    "row running": ExitRule(ALL, (Clause("label", "<=", values(1), "running", values(2)),), TokenRule("row")),
    "token": ExitRule(ALL, (HALF,), TokenRule("token")),
    "window": ExitRule(bytes([1, 0, 1, 0]), (HALF._replace(threshold=values(0.8)),), TokenRule("token", window=3)),
    "frozen": ExitRule(ALL, (HALF._replace(threshold=BY_SLOT),), FROZEN._replace(window=3)),
    "frozen by label": ExitRule(ALL, (Clause("label_repeats", ">=", values(1), "running"),), FROZEN),
    "frozen votes or change": ExitRule(
        ALL, (Clause("label", ">=", values(2), "votes"), Clause("change", "<", values(0.4))), FROZEN
    ),
    "frozen sum": ExitRule(ALL, (Clause("confidence", ">", values(1.3), "sum"),), FROZEN),
    "everybody": ExitRule(ALL, (Clause("layer", ">=", values(1)),), FROZEN),
    "nobody": ExitRule(ALL, (Clause("layer", ">", values(9)),), FROZEN),
}  # fmt: skip
QUICK = ("frozen votes or change",)
each_rule = pytest.mark.parametrize("name", [
    pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in RULES
])  # fmt: skip
Pair = tuple[CudaModel, TorchCarrier]
MARKED = [False]  # are words marked in the rows, or is every token one?


@pytest.fixture(
    scope="module",
    params=["renormalised, words", pytest.param("kept, tokens", marks=[pytest.mark.slow, pytest.mark.wide])],
)
def path(request: pytest.FixtureRequest, make_checkpoint: Make) -> Path:
    frozen, MARKED[0] = request.param.split(",")[0], request.param.endswith("words")
    return make_checkpoint("bert", labels=LABELS, head={"type": "tagger", "frozen": frozen}, config=SMALL)


@pytest.fixture
def pair(path: Path, device: torch.device) -> Pair:
    return carriers(path, device, torch.float32)


def carriers(path: Path, device: torch.device, dtype: torch.dtype) -> Pair:
    """Ours, and the definition over the same kernels."""
    model = build(reader.read(path), cuda, dtype, device)
    assert isinstance(model.carrier, CudaModel)
    slow = TorchCarrier(TokenFlight, model.encoder, model.head, model.exit_layers, LABELS, device)
    return model.carrier, slow


def started(carrier: Carrier, rows: Any, answers: Answers) -> Flight:
    draws = [(int(row), LENGTHS[row], np.random.default_rng(row)) for row in rows]
    if MARKED[0]:
        packed = pack([row_of_words(*each) for each in draws], CONFIG[0])
    else:
        packed = pack([Row(row, draw.integers(2, 90, n), None, False) for row, n, draw in draws], CONFIG[0])
    return carrier.start(packed, STARTS[list(rows)], answers)


CONFIG: list[Any] = []


@pytest.fixture(autouse=True)
def _config(path: Path) -> None:
    CONFIG[:] = [reader.read(path).backbone]


def answers_of(carrier: Carrier, rule: ExitRule, rows: Any = ROWS) -> Answers:
    answers = Answers(0, WORDS, LABELS)
    assert started(carrier, rows, answers).advance(rule, LAYERS) is None
    return answers


def check(ours: Answers, slow: Answers) -> None:
    np.testing.assert_array_equal(ours.exit_layers, slow.exit_layers)
    np.testing.assert_allclose(ours.logits, slow.logits, atol=2e-6, rtol=1e-6)  # sums of 16 products near 1


@each_rule
@pytest.mark.slow
def test_rules(pair: Pair, name: str) -> None:
    ours, slow = (answers_of(carrier, RULES[name]) for carrier in pair)
    check(ours, slow)
    expected = {"everybody": {1}, "nobody": {LAYERS}}.get(name)
    assert set(ours.exit_layers) == expected if expected else len(set(ours.exit_layers)) > 1


@pytest.mark.slow
def test_half_precision(path: Path, device: torch.device, dtype: torch.dtype) -> None:
    ours, slow = (answers_of(carrier, RULES["frozen"]) for carrier in carriers(path, device, dtype))
    check(ours, slow)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, pytest.param(2, marks=pytest.mark.wide)])
def test_int8(path: Path, device: torch.device, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """States go on in int8, too; the definition makes that of them anew for each layer."""
    monkeypatch.setattr(cuda_linear, "BESIDE_INT8", torch.float32)  # the interpreter's bf16 is wrong
    ours, slow = (drive(carrier, "frozen votes or change", seed)[0] for carrier in carriers(path, device, torch.int8))
    check(ours, slow)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["row max", "frozen votes or change"])
def test_alone_as_in_a_batch(pair: Pair, name: str) -> None:
    together = answers_of(pair[0], RULES[name])
    for row, (start, stop) in enumerate(zip(STARTS, STARTS[1:], strict=False)):
        alone = answers_of(pair[0], RULES[name], [row])
        np.testing.assert_array_equal(alone.exit_layers[start:stop], together.exit_layers[start:stop])
        np.testing.assert_array_equal(alone.logits[start:stop], together.logits[start:stop])


def drive(carrier: Carrier, name: str, seed: int) -> tuple[Answers, list[Any]]:
    """Stops, masks of the caller's and joins, drawn at random, and all that is seen on the way."""
    draw, rule, answers, seen = np.random.default_rng(seed), RULES[name], Answers(0, WORDS, LABELS), []
    parts = np.split(draw.permutation(len(LENGTHS)), [3])
    flights = [started(carrier, part, answers) for part in parts]
    joins = draw.integers(0, LAYERS)
    for layer in range(LAYERS):
        for flight in flights:
            if layer:
                scores = bool(draw.integers(4))
                exit = flight.advance(rule, layer, scores)
                if exit is not None:
                    seen += [len(flight), flight.slots(), flight.states(), exit.slots, exit.logits]
            if len(flight) and draw.integers(3):
                words = sum(LENGTHS[np.searchsorted(STARTS, slot)] for slot in flight.slots())
                gone = draw.random(words) < draw.choice([0.1, 0.4])
                answered = bool(layer) and exit is not None and exit.logits is not None and bool(draw.integers(2))
                flight.leave(torch.from_numpy(gone) if draw.integers(2) else gone, answered)
        if layer == joins and all(len(flight.slots()) for flight in flights):
            flights[0].join(flights.pop())
    for flight in flights:
        flight.advance(rule, LAYERS)
    return answers, seen


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2, *(pytest.param(seed, marks=pytest.mark.wide) for seed in (3, 4))])
def test_driven_at_random(pair: Pair, seed: int) -> None:
    name = list(RULES)[seed % len(RULES)]
    (ours, seen), (slow, expected) = (drive(carrier, name, seed) for carrier in pair)
    assert len(seen) == len(expected)
    for a, b in zip(seen, expected, strict=True):
        if isinstance(b, torch.Tensor) and b.shape[1:] == (LABELS,):
            torch.testing.assert_close(a, b, atol=2e-6, rtol=1e-6)
        elif isinstance(b, torch.Tensor):
            assert torch.equal(a, b)
        else:
            np.testing.assert_array_equal(a, b)
    check(ours, slow)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "first"), [("row running", True), ("frozen votes or change", False)])
def test_words_that_carry_nothing_yet_join(pair: Pair, name: str, first: bool) -> None:
    """Those of the flight that has waited are as before the first exit, whichever joins the other."""
    found = []
    for carrier in pair:
        answers = Answers(0, WORDS, LABELS)
        carries, waits, empty = (started(carrier, rows, answers) for rows in ([0, 3], [1, 2, 5], [4]))
        empty.leave(np.ones(1, bool), answered=False)
        carries.advance(RULES[name], 1)
        waits.advance(ExitRule(bytes(LAYERS)), 1)
        one, other = (carries, waits) if first else (waits, carries)
        one.join(other)
        empty.join(one)  # takes over
        assert (empty.layer, len(empty), len(one), len(other)) == (1, 5, 0, 0)
        empty.advance(RULES[name], LAYERS)
        found.append(answers)
    check(*found)
    assert len(set(found[0].exit_layers)) > 2


def test_what_does_not_fit_is_refused(pair: Pair) -> None:
    answers = Answers(0, WORDS, LABELS)
    flight = started(pair[0], [1, 2], answers)
    assert isinstance(flight, CudaTokenFlight)
    with pytest.raises(ValueError, match="the head scores every token, and the rule does not say how they are read"):
        flight.advance(ExitRule(ALL, (HALF,)), LAYERS)
    with pytest.raises(ValueError, match="there is no label of the row"):
        flight.advance(ExitRule(ALL, (Clause("change", "<", values(1)),), TokenRule("row")), LAYERS)
    with pytest.raises(ValueError, match=r"gone is torch.bool \[2\]; expected bool \[12\], one per word"):
        flight.leave(np.array([True, False]))
    flight.advance(ExitRule(bytes(LAYERS)), LAYERS)
    assert set(answers.exit_layers[STARTS[1] : STARTS[3]]) == {LAYERS}
