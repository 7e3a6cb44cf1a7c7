"""Flights on the CPU: whatever is done to them, the answers of each row alone, layer by layer, to the bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import pfengine
from pfengine import extension
from pfengine.ops import cpu
from pfengine.ops.cpu_model import CpuFlight, CpuModel
from pfengine.ops.flight import Answers
from pfengine.ops.rule import Clause, ExitRule, TokenRule, values

from .alone import LABELS, LAYERS, AllAlone, Model, make, pack, random_rows

if not extension.has_cpu():
    pytest.skip(extension.status(), allow_module_level=True)

LENGTHS = [3, 1, 9, 33, 2, 66, 1, 5]
ALL = bytes([1] * LAYERS)
NEVER = ExitRule(ALL)
HEADS: dict[str, dict[str, Any]] = {
    "first": {}, "mean": {"reads": "mean"}, "all": {"reads": "all"}, "past": {"adds_from": 0},
    "mean, past, two blocks": {"reads": "mean", "adds_from": 0, "blocks": 2},
    "query": {"reads": "query"}, "query, past, some exits": {"reads": "query", "adds_from": 0, "without": (2,)},
    "all, past": {"reads": "all", "adds_from": 0}, "first, two blocks": {"blocks": 2},
    "first, some exits": {"without": (1, 3), "adds_from": 0},
    "first of all": {"reads": "first of all", "without": (2,)},
    "max of all, past, two blocks": {"reads": "max of all", "adds_from": 0, "blocks": 2},
    "all, frozen and normed": {"reads": "all", "renormalises": True},
    "all, frozen and normed, two blocks": {"reads": "all", "renormalises": True, "blocks": 2, "without": (2,)},
}  # fmt: skip
WINDOW = TokenRule("token", window=3, freezes=True)


def by_slot(draw: np.random.Generator, slots: int, reads: str = "first") -> ExitRule:
    """Units leave at layers of their own, and nowhere else."""
    layers = draw.integers(1, LAYERS + 2, (1, slots)).astype(np.float32)
    return ExitRule(ALL, (Clause("layer", ">=", layers),), TokenRule("token", freezes=True) if reads == "all" else None)


def rules(reads: str, slots: int, seed: int) -> list[ExitRule]:
    """Of all kinds; what is near a row's own signals makes some leave and some stay."""
    draw = np.random.default_rng(seed)
    some = draw.uniform(0.4, 1.0, (1, slots)).astype(np.float32)
    found: list[tuple[Clause, ...]] = [
        (),
        (Clause("entropy", "<", values(0.7)),),
        (Clause("label_repeats", ">=", values(1), "running", times=values(2)), Clause("confidence", ">", some)),
        (Clause("learned", "<", values(0.2)), Clause("change", "<", values(0.3), "running", times=values(1))),
        (Clause("label", ">=", values(3), "votes"), Clause("label_0", ">", values(0.1), "trend", size=2)),
    ]
    tokens = [None] * len(found) if reads != "all" else [
        TokenRule("token"), TokenRule("row", "mean"), TokenRule("token", freezes=True), WINDOW,
        TokenRule("token", window=5)]  # fmt: skip
    return [ExitRule(ALL, *parts) for parts in zip(found, tokens, strict=True)] + [by_slot(draw, slots, reads)]


class Both:
    """A flight, and its rows alone beside it; they are compared after whatever happens."""

    def __init__(
        self, model: Model, carrier: CpuModel, rows: list[np.ndarray], slots: np.ndarray, answers: Any
    ) -> None:
        self.answers, self.expected = answers
        self.flight = carrier.start(pack(rows), slots, self.answers)
        self.alone = AllAlone(model, rows, slots, self.expected)
        self.check(None)

    def advance(self, rule: ExitRule, until: int) -> None:
        exit = self.flight.advance(rule, until)
        self.alone.advance(rule, until)
        assert (exit is not None) == bool(self.alone.rows)
        if exit is not None:
            assert exit.layer == until
        self.check(exit)

    def leave(self, gone: np.ndarray, answered: bool = True) -> None:
        self.flight.leave(torch.from_numpy(gone) if answered else gone, answered)
        self.alone.leave(gone, answered)
        self.check(None)

    def join(self, other: Both) -> None:
        self.flight.join(other.flight)
        self.alone.join(other.alone)
        other.check(None)
        self.check(None)

    @property
    def units(self) -> int:
        return sum(len(row.slots) for row in self.alone.rows)

    def check(self, exit: Any) -> None:
        rows = self.alone.rows
        assert len(self.flight) == len(rows)
        assert self.flight.slots().tolist() == [int(row.slots[0]) for row in rows]
        same(torch.from_numpy(self.answers.exit_layers), torch.from_numpy(self.expected.exit_layers))
        same(torch.from_numpy(self.answers.logits), torch.from_numpy(self.expected.logits))
        if not rows:
            return
        assert self.flight.layer == rows[0].layer
        same(self.flight.states(), torch.cat([row.states() for row in rows]))
        if exit is not None:
            same(exit.slots, torch.cat([row.slots for row in rows]))
            assert (exit.logits is None) == (rows[0].logits is None)
            for name in ("logits", "learned"):
                parts = [getattr(row, name) for row in rows if getattr(row, name) is not None]
                if parts:
                    same(getattr(exit, name), torch.cat(parts))


def same(ours: Tensor, theirs: Tensor) -> None:
    np.testing.assert_array_equal(ours.numpy(), theirs.numpy())


def slots_of(rows: list[np.ndarray], reads: str) -> tuple[np.ndarray, int]:
    """Slots in another order than rows, with gaps, and how many there are."""
    sizes = [len(row) + 1 if reads == "all" else 2 for row in rows]
    starts = np.concatenate([[0], np.cumsum(sizes)])
    order = np.random.default_rng(len(rows)).permutation(len(rows))
    places = np.empty(len(rows), np.int64)
    at = 0
    for row in order:
        places[row], at = at, at + sizes[row]
    return places, int(starts[-1])


def started(model: Model, lengths: list[list[int]]) -> list[Both]:
    """Flights with the same answers."""
    carrier, batches = model.carrier(), [random_rows(some, seed) for seed, some in enumerate(lengths)]
    slots, count = slots_of([row for rows in batches for row in rows], model.reads)
    answers, flights, first = (Answers(0, count, LABELS), Answers(0, count, LABELS)), [], 0
    for rows in batches:
        flights.append(Both(model, carrier, rows, slots[first : first + len(rows)], answers))
        first += len(rows)
    return flights


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8], ids=str)
@pytest.mark.parametrize("head", HEADS)
def test_rows_as_alone(head: str, dtype: torch.dtype) -> None:
    model, turn = make(cpu, **HEADS[head], dtype=dtype), list(HEADS).index(head)
    for kind in (turn % 5, (turn + 2) % 5, 5):
        (flight,) = started(model, [LENGTHS])
        flight.advance(rules(model.reads, len(flight.answers.exit_layers), kind)[kind], LAYERS)
        left = flight.answers.exit_layers
        assert not len(flight.flight)
        assert (left > 0).sum() == (sum(LENGTHS) if model.reads == "all" else len(LENGTHS))
    assert len(set(left[left > 0])) > 2


@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.parametrize("head", HEADS)
def test_stops_at_every_layer(head: str, rows: int) -> None:
    """Tested or not, with more rows than are computed in two halves, or fewer."""
    model = make(cpu, **HEADS[head])
    for tested in (ALL, bytes(LAYERS), bytes([0, 1, 0, 0, 1])):
        (flight,) = started(model, [LENGTHS[:rows]])
        rule = rules(model.reads, len(flight.answers.exit_layers), 3)[1]._replace(tested=tested)
        for until in range(1, LAYERS + 1):
            if len(flight.flight):
                flight.advance(rule, until)
    (flight,) = started(model, [LENGTHS[:rows]])
    flight.advance(NEVER, LAYERS + 7)
    assert (flight.answers.exit_layers > 0).sum() == (sum(LENGTHS[:rows]) if model.reads == "all" else rows)


SEQUENCES = st.lists(
    st.tuples(
        st.sampled_from(["advance", "advance", "leave", "drop", "join"]), st.integers(0, 9), st.integers(0, 2**20)
    ),
    min_size=1,
    max_size=14,
)


@pytest.mark.parametrize("head", HEADS)
@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    SEQUENCES, st.integers(0, 5), st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=6), min_size=1, max_size=3)
)
def test_whatever_is_done(head: str, steps: list[tuple[str, int, int]], kind: int, lengths: list[list[int]]) -> None:
    model = make(cpu, **HEADS[head])
    flights = started(model, lengths)
    rule = rules(model.reads, len(flights[0].answers.exit_layers), kind)[kind]
    for step, which, seed in steps:
        flight, other = flights[which % len(flights)], flights[seed % len(flights)]
        layer, draw = flight.flight.layer, np.random.default_rng(seed)
        if step == "advance" and layer < LAYERS:
            flight.advance(rule, layer + 1 + seed % (LAYERS - layer))
        elif step == "join" and flight is not other and layer == other.flight.layer:
            flight.join(other)
        elif step in ("leave", "drop"):
            scored = layer > 0 and model.exits[layer - 1] is not None and len(flights) == 1
            flight.leave(draw.random(flight.units) < 0.4, answered=step == "leave" and scored)
    for flight in flights:
        flight.advance(rule, LAYERS)


@pytest.mark.parametrize("head", HEADS)
def test_joining_at_every_layer(head: str) -> None:
    """Half-done layers and whole ones, after rows have left by rule and by hand, and with a third flight on top."""
    model, turn = make(cpu, **HEADS[head]), list(HEADS).index(head)
    for layer in range(LAYERS):
        first, second, third = started(model, [[4, 2, 8, 1], [5, 1], [3, 3, 9]])
        kind = (layer + turn) % 6
        rule = rules(model.reads, len(first.answers.exit_layers), kind)[kind]
        for flight in (first, second, third):
            if layer:
                flight.advance(rule, layer)
        first.leave(np.arange(first.units) == 1, answered=False)
        first.join(second)
        first.join(third)
        first.advance(rule, LAYERS)


def test_scores_outlive_a_join() -> None:
    first, second = started(make(cpu), [[3, 4, 5], [6, 7, 8]])
    for flight in (first, second):
        flight.advance(NEVER, 2)
    first.join(second)
    first.leave(np.array([True, False, False, False, True, False]))
    first.advance(NEVER, LAYERS)


def test_rows_cancelled_leave_their_slots_as_they_are() -> None:
    for reads in ("first", "mean", "query", "all", "max of all"):
        (flight,) = started(make(cpu, reads), [[3, 4, 5, 6]])
        flight.advance(NEVER, 2)
        flight.leave(np.ones(flight.units, bool), answered=False)
        assert len(flight.flight) == 0
        assert not flight.answers.exit_layers.any()
        assert np.isnan(flight.answers.logits).all()
        assert flight.flight.advance(NEVER, LAYERS) is None


def test_an_empty_flight_takes_over_another() -> None:
    first, second = started(make(cpu, adds_from=0), [[3, 4, 5], [6, 7, 8]])
    first.leave(np.ones(3, bool), answered=False)
    second.advance(rules("first", len(first.answers.exit_layers), 0)[2], 3)
    first.join(second)
    first.advance(rules("first", len(first.answers.exit_layers), 0)[2], LAYERS)
    first.join(second)  # nothing


def test_any_number_of_threads() -> None:
    before = torch.get_num_threads()
    try:
        for head in ("past", "mean", "max of all, past, two blocks", "all, frozen and normed"):
            for threads in (1, 2, 5):
                torch.set_num_threads(threads)
                model = make(cpu, **HEADS[head])
                (flight,) = started(model, [LENGTHS])
                flight.advance(rules(model.reads, len(flight.answers.exit_layers), 1)[5], LAYERS)
    finally:
        torch.set_num_threads(before)


def test_no_rows() -> None:
    for head in HEADS.values():
        (flight,) = started(make(cpu, **head), [[]])
        assert flight.flight.advance(NEVER, LAYERS) is None
        assert flight.flight.states().shape == (0, 24)


def test_warmup() -> None:
    for head in HEADS.values():
        make(cpu, **head).carrier().warmup(pack(random_rows(LENGTHS)), NEVER)


def test_a_flight_keeps_what_it_reads() -> None:
    """Python may let go of model, answers and rule."""
    model, rows = make(cpu), random_rows(LENGTHS)
    answers = Answers(0, 8, LABELS)
    flight = model.carrier().start(pack(rows), np.arange(8), answers)
    logits, layers = answers.logits, answers.exit_layers
    del model, answers
    make(cpu, hidden=48), [np.full((8, LABELS), 7.0) for _ in range(99)]
    flight.advance(ExitRule(bytes([1] * LAYERS), (Clause("entropy", "<", np.full((LAYERS, 1), 0.5, np.float32)),)), 9)
    assert np.isfinite(logits).all()
    assert layers.all()


Make = Callable[..., Path]
PAST_FUTURE: dict[str, Any] = {"type": "past-future", "pooler": "per-layer"}
PAPER = PAST_FUTURE | {"learner": "linear", "incorporate": "concat", "gate": "row"}
OURS: dict[str, dict[str, Any]] = {
    "authors": PAST_FUTURE, "folded": PAST_FUTURE | {"learner": "linear"}, "paper": PAPER,
    "paper, tanh": PAPER | {"learner": "tanh"}, "no gate": PAST_FUTURE | {"gate": "none"},
    "past only": PAST_FUTURE | {"states": "past", "gate": "none"}, "future only": PAST_FUTURE | {"states": "future"},
    "linear": {"type": "linear", "pooler": "per-layer"}, "classifier": {"type": "classifier"},
    "attached": {"type": "attached", "exits": PAST_FUTURE},
    "learned": {"type": "linear", "pooler": "per-layer", "learned": True},
    "mixed": {"type": "mixed", "layers": [1, 3, LAYERS], "previous": True, "pooler": "shared"},
    "attached, mixed": {"type": "attached", "exits": {"type": "mixed", "layers": [2], "pooler": "none"}},
    "attentive": {"type": "attentive", "width": 15, "heads": 3},
    "attached attentive": {"type": "attached", "exits": {"type": "attentive", "pooling": "max"}},
}  # fmt: skip


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize(
    ("head", "family"), [*((head, "bert") for head in OURS), ("authors", "roberta"), ("", "albert")]
)
def test_every_head_that_is_data(make_checkpoint: Make, head: str, family: str, precision: str) -> None:
    path = make_checkpoint(family, **({"head": OURS[head]} if head else {}))
    engine = pfengine.load(path, precision=precision, criterion="never")
    carrier = engine.model.carrier
    assert isinstance(carrier, CpuModel)
    model = Model(cpu, *carrier.parts[:4], "first of all" if "attentive" in head else "first", False)
    for number in range(1, 6):
        rows, answers = random_rows(LENGTHS), (Answers(0, 8, LABELS), Answers(0, 8, LABELS))
        rule = rules("first", 8, number)[number]
        tested = bytearray(LAYERS)
        for layer in engine.exit_layers[:-1]:
            tested[layer - 1] = 1
        rule = rule._replace(tested=bytes(tested))
        if number == 3 and head != "learned":
            rule = rule._replace(clauses=rule.clauses[1:])
        flight = Both(model, carrier, rows, np.arange(8)[::-1].copy(), answers)
        flight.advance(rule, 2)
        flight.advance(rule, LAYERS)
        assert flight.answers.exit_layers.all()
        assert isinstance(flight.flight, CpuFlight)
