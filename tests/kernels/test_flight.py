"""Flights on the GPU: whatever way they are driven, each row gets what it gets alone, where `ops.decide` lets it go."""

from __future__ import annotations

import itertools
import threading
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from pfengine.batch import Packed
from pfengine.ops import Attentive, Block, Exit, Norm, cuda, cuda_flight
from pfengine.ops.cuda_model import MAX_FLIGHTS, CudaModel
from pfengine.ops.decide import decide, signal
from pfengine.ops.flight import Answers
from pfengine.ops.rule import Clause, ExitRule, TokenRule, values

N, HIDDEN, LABELS, WORDS = 4, 32, 3, 30
LENGTHS = [3, 9, 1, 17, 5]
SLOTS = np.array([6, 0, 3, 1, 4])  # of 7
TESTED = bytes([1, 1, 1, 0])  # the third layer has no exit
LAYERS = np.array([[2, 4, 1, 9, 4, 9, 1]], np.float32)  # by slot
RULES = {
    "layers": (Clause("layer", ">=", LAYERS),),
    "patience": (Clause("label_repeats", ">=", values(1), "running"),),
    "window or learned": (
        Clause("confidence", ">", values(0.1), "range", size=2), Clause("learned", ">", values(0.6)),
    ),
    "never": (),
}  # fmt: skip


class Made(NamedTuple):
    carrier: CudaModel
    packed: Packed
    scores: dict[int, Tensor]  # after each layer with an exit, of all rows, none of which left: fp32 [R, C]
    learned: dict[int, Tensor]
    states: dict[int, list[Tensor]]  # what the head reads of each row after each layer, fp32 [1 or its tokens, H]


@pytest.fixture(scope="module")
def made() -> Made:
    return make("first")


def make(reads: Any, n: int = N, of_blocks: torch.dtype = torch.float32) -> Made:
    """A model whose exits after all layers but 3 add up, and what its parts give for five rows, layer by layer."""
    generator = torch.Generator().manual_seed(3)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(*shape, generator=generator)).to(device)

    def linear(out: int, into: int) -> tuple[Tensor, Tensor]:
        return draw(out, into, scale=into**-0.5), draw(out)

    def norm() -> Norm:
        return Norm(1 + draw(HIDDEN, scale=0.1), draw(HIDDEN), 1e-6)

    fp32 = torch.float32
    embedding = cuda.prepare_embedding((draw(WORDS, HIDDEN), draw(20, HIDDEN), draw(2, HIDDEN)), norm(), fp32)
    layers, exits = [], []
    for layer in range(1, n + 1):
        block = Block(linear(3 * HIDDEN, HIDDEN), linear(HIDDEN, HIDDEN), norm(), linear(48, HIDDEN),
                      linear(HIDDEN, 48), norm(), 2, 0.25, "gelu")  # fmt: skip
        layers.append([cuda.prepare_block(block, of_blocks)])
        width, attentive = HIDDEN, None
        if reads.endswith("of all"):
            width, parts = 24, (linear(24, HIDDEN), linear(3 * 32, 24), linear(24, 32))
            attentive = cuda.prepare_attentive(Attentive(*parts, 2, 0.25, reads.split()[0]), fp32)
        past, learned = (cuda.prepare_linear(*linear(outputs, width), fp32) for outputs in (LABELS, 1))
        pooler = cuda.prepare_linear(*linear(width, width), fp32)
        queries = cuda.prepare_queries(draw(4, HIDDEN)) if reads == "query" else None
        made = Exit(LABELS, past, pooler, reads="all" if attentive else reads, learned=learned, attentive=attentive,
                    queries=queries)  # fmt: skip
        exits.append(None if layer == 3 else made)
    packed = packed_of(range(len(LENGTHS)))
    ids, positions, types, bounds, _ = (torch.from_numpy(part).to(device) for part in packed[:5])
    x, past, scores, scored, states = cuda.embed(ids, positions, types, embedding), None, {}, {}, {}
    for layer, ((block,), exit) in enumerate(zip(layers, exits, strict=True), start=1):
        x = cuda.block(x, bounds, block)
        tokens = reads == "query" or reads.endswith("of all")
        read = x if tokens else cuda.mean(x, bounds) if reads == "mean" else x[bounds[:-1]]
        states[layer] = list(read.split(LENGTHS if read is x else 1))
        if exit is not None:
            if exit.queries is not None:
                read = cuda.query_mean(read, bounds, exit.queries)
            if exit.attentive is not None:
                read = cuda.attentive(read, bounds, exit.attentive)
            scores[layer], past, score = cuda.exit(read, exit, past, True)
            scored[layer] = score
    carrier = cuda.prepare_model(embedding, None, layers, [None if exit is None else (exit, 0) for exit in exits])
    assert isinstance(carrier, CudaModel)
    return Made(carrier, packed, scores, scored, states)


def packed_of(rows: Any) -> Packed:
    """Some of the rows of LENGTHS, each the same every time."""
    ids = [np.random.default_rng(row).integers(0, WORDS, LENGTHS[row]) for row in rows]
    bounds = np.cumsum([0, *map(len, ids)]).astype(np.int32)
    positions = np.concatenate([np.arange(len(row)) for row in ids])
    return Packed(np.concatenate(ids), positions, np.zeros_like(positions), bounds, np.array(list(rows)))


def expected(made: Made, *clauses: tuple[Clause, ...]) -> list[int]:
    """The exit layer of each row. clauses: of all tested layers, or of each, where () is of one that is not tested."""
    found, state, slots = [N] * len(LENGTHS), None, torch.from_numpy(SLOTS)
    for i, (layer, scores) in enumerate(made.scores.items()):
        rule = ExitRule(TESTED, clauses[min(i, len(clauses) - 1)])
        if layer == N or not rule.clauses:
            continue
        carries = rule.width(LABELS) > 0
        leave, after = decide(rule, layer, scores.cpu(), made.learned[layer].cpu(), state if carries else None, slots)
        state = after if carries else state
        for row in leave.nonzero().flatten().tolist():
            found[row] = min(found[row], layer)
    return found


def check(made: Made, answers: Answers, layers: list[int]) -> None:
    """Row r has left after layers[r]; 0: it was dropped."""
    assert answers.exit_layers[SLOTS].tolist() == layers
    for row, layer in enumerate(layers):
        ours = torch.from_numpy(answers.logits[SLOTS[row]])
        if layer:
            torch.testing.assert_close(ours, made.scores[layer][row].cpu(), atol=2e-6, rtol=1e-6)
        assert layer or bool(ours.isnan().all())
    assert np.isnan(answers.logits[[2, 5]]).all()


@pytest.mark.parametrize(
    ("name", "overlap"),
    [*itertools.product(["entropy", "layers", "window or learned"], [0, 512]), ("patience", 0), ("never", 0)],
)
def test_rules(made: Made, monkeypatch: pytest.MonkeyPatch, name: str, overlap: int) -> None:
    monkeypatch.setattr(cuda_flight, "OVERLAP_TOKENS", overlap)
    middle = float(signal("entropy", made.scores[1].cpu()).median())
    clauses = RULES[name] if name != "entropy" else (Clause("entropy", "<", values(middle)),)
    answers = Answers(0, 7, LABELS)
    flight = made.carrier.start(made.packed, SLOTS, answers)
    assert flight.advance(ExitRule(TESTED, clauses), N) is None
    assert not flight
    layers = expected(made, clauses)
    check(made, answers, layers)
    assert name != "entropy" or layers.count(1) == 2


@pytest.mark.parametrize(
    ("name", "reads"),
    [
        ("layers", "first"),
        ("window or learned", "mean"),
        ("patience", "first"),
        pytest.param("patience", "query", marks=pytest.mark.slow),
        pytest.param("layers", "first of all", marks=pytest.mark.slow),
        pytest.param("window or learned", "max of all", marks=pytest.mark.slow),
    ],
)
def test_stops_change_nothing(made: Made, name: str, reads: str) -> None:
    made = made if reads == "first" else make(reads)
    rule, answers, layers = ExitRule(TESTED, RULES[name]), Answers(0, 7, LABELS), expected(made, RULES[name])
    flight = made.carrier.start(made.packed, SLOTS, answers)
    for layer in range(1, N + 1):
        exit = flight.advance(rule, layer)
        there = [row for row in range(len(LENGTHS)) if layers[row] > layer]
        if layer == N or not there:
            assert exit is None
            break
        assert exit is not None
        assert (exit.layer, flight.layer, len(flight)) == (layer, layer, len(there))
        assert exit.slots.tolist() == flight.slots().tolist() == SLOTS[there].tolist()
        states = torch.cat([made.states[layer][row] for row in there])
        torch.testing.assert_close(flight.states(), states, atol=2e-6, rtol=1e-5)
        if layer == 3:
            assert exit.logits is None
        else:
            assert exit.logits is not None
            assert exit.learned is not None
            torch.testing.assert_close(exit.logits, made.scores[layer][there], atol=2e-6, rtol=1e-6)
            torch.testing.assert_close(exit.learned, made.learned[layer][there], atol=2e-6, rtol=1e-6)
    check(made, answers, layers)


def test_a_caller_decides(made: Made) -> None:
    """Rows leave by a mask of the device's or of the host's; dropped ones have no answer, also where no exit is."""
    answers, no_rule = Answers(0, 7, LABELS), ExitRule(bytes(N))
    flight = made.carrier.start(made.packed, SLOTS, answers)
    flight.leave(np.array([0, 0, 0, 0, 1], bool), answered=False)  # before the first layer
    assert flight.slots().tolist() == [6, 0, 3, 1]
    exit = flight.advance(no_rule, 1)
    assert exit is not None
    flight.leave(exit.slots == 3)
    assert flight.slots().tolist() == [6, 0, 1]
    flight.leave(np.array([1, 0, 0], bool))
    assert flight.slots().tolist() == [0, 1]
    exit = flight.advance(no_rule, 3)
    assert exit is not None
    with pytest.raises(ValueError, match="no scores were computed after layer 3"):
        flight.leave(exit.slots == 0)
    with pytest.raises(ValueError, match=r"gone is torch.bool \[1\]; expected bool \[2\]"):
        flight.leave(np.array([True]), answered=False)
    with pytest.raises(ValueError, match=r"gone is torch.int64 \[2\]; expected bool \[2\]"):
        flight.leave(np.array([1, 0]), answered=False)
    flight.leave(exit.slots == 0, answered=False)
    with pytest.raises(ValueError, match="until is 3, expected a layer after 3"):
        flight.advance(no_rule, 3)
    assert flight.advance(no_rule, N) is None
    check(made, answers, [1, 0, 1, 4, 0])
    assert flight.advance(no_rule, N) is None
    assert flight.slots().tolist() == []


def test_all_may_leave_at_a_stop(made: Made) -> None:
    answers = Answers(0, 7, LABELS)
    flight = made.carrier.start(made.packed, SLOTS, answers)
    exit = flight.advance(ExitRule(bytes(N)), 2)
    assert exit is not None
    free = len(made.carrier.free)
    flight.leave(torch.ones(5, dtype=torch.bool))
    assert not flight
    assert len(made.carrier.free) == free + 1
    assert flight.advance(ExitRule(bytes(N)), N) is None
    check(made, answers, [2] * 5)


@pytest.mark.parametrize("layer", [0, 1, 3])
def test_join(made: Made, layer: int) -> None:
    rule, answers = ExitRule(TESTED, RULES["patience"] + RULES["layers"]), Answers(0, 7, LABELS)
    parts = [[1, 3], [0, 2, 4]]
    one, other = (made.carrier.start(packed_of(rows), SLOTS[rows], answers) for rows in parts)
    for flight in (one, other) if layer else ():
        flight.advance(rule, layer)
    one.join(other)
    assert not other
    layers = expected(made, rule.clauses)
    there = [row for rows in parts for row in rows if layers[row] > layer]
    assert one.slots().tolist() == SLOTS[there].tolist()
    one.advance(rule, N)
    check(made, answers, layers)


def test_flights_that_do_not_fit_do_not_join(made: Made) -> None:
    answers = Answers(0, 7, LABELS)
    one, other = (made.carrier.start(packed_of([row]), SLOTS[[row]], answers) for row in (0, 1))
    one.advance(ExitRule(bytes(N)), 1)
    with pytest.raises(ValueError, match="there are no states before the first layer"):
        other.states()
    with pytest.raises(ValueError, match="the other flight is at layer 0, this one at layer 1"):
        one.join(other)
    with pytest.raises(ValueError, match="a flight cannot join itself"):
        one.join(one)
    elsewhere = made.carrier.start(packed_of([2]), SLOTS[[2]], Answers(0, 7, LABELS))
    elsewhere.advance(ExitRule(bytes(N)), 1)
    with pytest.raises(ValueError, match="the other flight answers elsewhere"):
        one.join(elsewhere)
    stranger = CudaModel(made.carrier.weights).start(packed_of([2]), SLOTS[[2]], answers)
    with pytest.raises(ValueError, match="the other flight is not one of the same carrier"):
        one.join(stranger)
    assert one.advance(ExitRule(bytes(N)), N) is None
    check(made, answers, [N, 0, 0, 0, 0])


@pytest.mark.parametrize("first", [True, False])
def test_rows_that_carry_nothing_yet_join_as_before_the_first_exit(made: Made, first: bool) -> None:
    """Patience lets rows go whose label repeats: only those that the first exit was tested for."""
    rule, wait, answers = ExitRule(TESTED, RULES["patience"]), ExitRule(bytes(N)), Answers(0, 7, LABELS)
    parts = [[1, 3], [0, 2, 4]]
    carries, waits = (made.carrier.start(packed_of(rows), SLOTS[rows], answers) for rows in parts)
    carries.advance(rule, 1)
    waits.advance(wait, 1)
    one, other = (carries, waits) if first else (waits, carries)
    one.join(other)
    one.advance(rule, N)
    layers = expected(made, rule.clauses)
    assert 2 in (layers[1], layers[3])
    check(made, answers, [layers[row] if row in parts[0] else N for row in range(5)])


def test_a_flight_without_rows_takes_in_those_of_any_layer(made: Made) -> None:
    rule, answers = ExitRule(TESTED, RULES["patience"]), Answers(0, 7, LABELS)
    one, other = (made.carrier.start(packed_of(rows), SLOTS[rows], answers) for rows in ([1, 3], [0, 2, 4]))
    free = len(made.carrier.free)
    one.leave(np.ones(2, bool), answered=False)
    other.advance(rule, 1)
    one.join(other)
    assert (one.layer, len(one), len(other)) == (1, 3, 0)
    assert (one.slots().tolist(), other.slots().tolist()) == (SLOTS[[0, 2, 4]].tolist(), [])
    assert other.advance(rule, N) is None
    assert one.advance(rule, N) is None
    layers = expected(made, rule.clauses)
    check(made, answers, [layers[0], 0, layers[2], 0, layers[4]])
    assert len(made.carrier.free) == free + 2


@pytest.mark.slow
def test_a_rule_that_carries_nothing_leaves_alone_what_is_carried() -> None:
    """Between two exits of a rule lies another rule's, for whose numbers by slot the lane must grow."""
    made, answers = make("first", 5), Answers(0, 7, LABELS)
    twice = ExitRule(bytes([1, 1, 0, 1, 0]), (Clause("label", ">=", values(0), "running", values(2)),))
    never = ExitRule(twice.tested, (Clause("layer", ">", np.full((5, 7), 9, np.float32)),) * 4)
    again = ExitRule(twice.tested, (Clause("label", "<", values(0), "running", values(9)),))  # the same numbers
    flight = made.carrier.start(made.packed, SLOTS, answers)
    flight.advance(twice, 1)
    flight.leave(np.array([0, 1, 0, 0, 0], bool), answered=False)
    assert flight._lane is not None
    sizes = flight._lane.buffers.sizes
    flight.advance(never, 3)
    assert flight._lane.buffers.sizes.numbers > sizes.numbers
    assert len(flight) == 4
    for clauses in (RULES["patience"], twice.clauses * 2):
        with pytest.raises(
            ValueError, match="the rule carries other numbers from exit to exit than the rule before it"
        ):
            flight.advance(ExitRule(twice.tested, clauses), 5)
    assert flight.advance(twice, 5) is None
    check(made, answers, [4, 0, 4, 4, 4])
    flight = made.carrier.start(made.packed, SLOTS, answers := Answers(0, 7, LABELS))
    flight.advance(twice, 1)
    flight.advance(again, 2)  # counts from the start, as no label is negative
    flight.advance(twice, 5)
    check(made, answers, [5] * 5)


@pytest.mark.slow
def test_warmup_by_a_rule_with_numbers_by_slot(made: Made) -> None:
    answers = Answers(0, 7, LABELS)
    rule = ExitRule(TESTED, (RULES["layers"][0]._replace(memory="running", times=LAYERS[:1] * 0 + 1),))
    made.carrier.warmup(packed_of([1]), rule)
    made.carrier.start(made.packed, SLOTS, answers).advance(rule, N)
    check(made, answers, expected(made, rule.clauses))


def test_flights_that_carry_different_numbers_do_not_join(made: Made) -> None:
    answers = Answers(0, 7, LABELS)
    one, other = (made.carrier.start(packed_of([row]), SLOTS[[row]], answers) for row in (0, 1))
    one.advance(ExitRule(TESTED, RULES["patience"]), 1)
    other.advance(ExitRule(TESTED, (Clause("entropy", "<", values(-1), "running", values(2)),)), 1)
    with pytest.raises(ValueError, match="the flights' rules carry different numbers from exit to exit"):
        one.join(other)
    assert [len(flight) for flight in (one, other)] == [1, 1]


RULES_THAT_DO_NOT_FIT = {
    "tested has 3 numbers, expected 4": ExitRule(bytes(3)),
    "numbers for 3 slots, expected 1 or the 7": ExitRule(TESTED, (Clause("entropy", "<", LAYERS[:, :3]),)),
    "numbers for 2 layers, expected 1 or 4": ExitRule(TESTED, (Clause("entropy", "<", np.zeros((2, 1), np.float32)),)),
    "reads tokens, but the head does not score them": ExitRule(TESTED, (), TokenRule("token")),
    "a learned score, which the": ExitRule(TESTED, (Clause("learned", "<", values(1)),)),
}


def test_rules_that_do_not_fit_are_refused(made: Made) -> None:
    """And none of them leaves a mark on the flight."""
    exits = [None if after is None else (after[0]._replace(learned=None), 0) for after in made.carrier.weights.exits]
    answers = Answers(0, 7, LABELS)
    flight = CudaModel(made.carrier.weights._replace(exits=exits)).start(made.packed, SLOTS, answers)
    for text, rule in RULES_THAT_DO_NOT_FIT.items():
        with pytest.raises(ValueError, match=text):
            flight.advance(rule, N)
        assert (flight.layer, len(flight)) == (0, 5), text
    with pytest.raises(ValueError, match="until is 0, expected"):
        flight.advance(ExitRule(TESTED), 0)
    flight.advance(ExitRule(TESTED), N + 1)  # no further than the last
    check(made, answers, [N] * 5)


def test_a_flight_that_is_dropped_gives_its_lane_back_and_start_waits_for_one(made: Made) -> None:
    def start() -> Any:
        return made.carrier.start(made.packed, SLOTS, Answers(0, 7, LABELS))

    flights, later = [start() for _ in range(MAX_FLIGHTS)], []
    waiting = threading.Thread(target=lambda: later.append(start()))
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive()
    assert len(made.carrier.free) == 0
    flights[1].advance(ExitRule(bytes(N)), 1)
    answers = flights[1]._answers
    flights[1].leave(np.array([1, 0, 0, 0, 0], bool))
    del flights[1]
    waiting.join(60)
    assert not waiting.is_alive()
    assert answers.exit_layers[SLOTS].tolist() == [1, 0, 0, 0, 0]  # who had left has an answer
    flights.clear()
    later.clear()
    assert len(made.carrier.free) == made.carrier.made == MAX_FLIGHTS


def test_what_does_not_fit_is_refused(made: Made) -> None:
    answers, free = Answers(0, 7, LABELS), len(made.carrier.free)
    with pytest.raises(ValueError, match="cu_seqlens has 6 numbers for 2 rows"):
        made.carrier.start(made.packed, SLOTS[:2], answers)
    with pytest.raises(IndexError, match="a token has the id 30; expected 0 to 29"):
        made.carrier.start(made.packed._replace(ids=made.packed.ids * 0 + 30), SLOTS, answers)
    with pytest.raises(IndexError, match="a token has the position -1; expected 0 to 19"):
        made.carrier.start(made.packed._replace(positions=made.packed.positions - 1), SLOTS, answers)
    assert len(made.carrier.free) == free
