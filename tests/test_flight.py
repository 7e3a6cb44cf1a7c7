"""What every carrier of flights does: on to any layer, rows leave, two flights become one, each row as alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pfengine import checkpoint, engine, reader
from pfengine.batch import Packed
from pfengine.model import Model, build
from pfengine.ops import decide, reference
from pfengine.ops.flight import Answers
from pfengine.ops.rule import Clause, ExitRule, TokenRule, values
from pfengine.tokenization import Row, pack

Make = Callable[..., Path]
LENGTHS = [1, 9, 3, 3, 17, 1, 40, 5, 6, 12]
ROWS = range(len(LENGTHS))
LAYERS, LABELS, ALL = 5, 3, bytes([1] * 5)
LOOSE = 3e-5  # float32, op sets against each other and the reference against itself in another batch
WAIT = ExitRule(bytes(5))
PATIENCE = ExitRule(ALL, (Clause("label_repeats", ">=", values(1), "running", values(2)),))
EITHER = ExitRule(ALL, (Clause("confidence", ">", values(0.8)), Clause("label_0", ">", values(0.1), "side", size=2)))
NOBODY = ExitRule(ALL, (Clause("entropy", "<", values(-1)),))
HEADS: dict[str, Any] = {
    "past-future": "past-future",
    "mean": {"type": "linear", "reads": "mean"},
    "query": {"type": "linear", "reads": "query"},
    "vote": {"type": "linear", "combine": "vote"},
    "lstm": {"type": "past-future", "incorporate": "lstm", "learner": "linear", "gate": "row"},
}  # heads that are data in every carrier, and heads that run layer by layer


@pytest.fixture(scope="module", params=[("bert", name) for name in HEADS] + [("albert", "mean")], ids=str)
def ckpt(request: pytest.FixtureRequest, make_checkpoint: Make) -> checkpoint.Checkpoint:
    family, head = request.param
    return reader.read(make_checkpoint(family, labels=LABELS, head=HEADS[head]))


MODELS: dict[tuple[Path, Any], Model] = {}


def model_of(ckpt: checkpoint.Checkpoint, ops: Any) -> Model:
    """Built once: reading and packing weights takes longer than most flights."""
    if (ckpt.path, ops) not in MODELS:
        MODELS[ckpt.path, ops] = build(ckpt, ops, torch.float32)
    return MODELS[ckpt.path, ops]


def packed_rows(ckpt: checkpoint.Checkpoint, which: Any = ROWS) -> Packed:
    draw = np.random.default_rng(3)
    ids = [draw.integers(2, 90, length) for length in LENGTHS]
    return pack([Row(i, ids[i], None, False) for i in which], ckpt.backbone)


def answered(model: Model, packed: Packed, rule: Any) -> Answers:
    answers = Answers(0, len(LENGTHS), LABELS)
    engine.run(model, packed, rule, answers)
    return answers


def check(ours: Answers, theirs: Answers, which: Any = slice(None), exact: bool = True) -> None:
    np.testing.assert_array_equal(ours.exit_layers[which], theirs.exit_layers[which])
    np.testing.assert_allclose(ours.logits[which], theirs.logits[which], atol=0 if exact else LOOSE, rtol=0)


def below(every: np.ndarray, signal: Any) -> ExitRule:
    """Leave below a threshold in the widest gap of the middle of the signals [layers, rows] of these logits."""
    own = np.sort(decide.signal(signal, torch.from_numpy(every[:-1])).numpy().ravel())
    own = own[len(own) // 4 : -(len(own) // 4)]
    widest = np.argmax(np.diff(own))
    return ExitRule(ALL, (Clause(signal, "<", values((own[widest] + own[widest + 1]) / 2)),))


@pytest.mark.parametrize(
    "rule", ["entropy", "margin", PATIENCE, EITHER, NOBODY], ids=["entropy", "margin", "patience", "either", "nobody"]
)
def test_a_rule_that_is_data_agrees_with_the_oracle(ckpt: Any, op_set: Any, rule: Any) -> None:
    model, oracle = model_of(ckpt, op_set), model_of(ckpt, reference)
    if isinstance(rule, str):
        rule = below(engine.layer_logits(oracle, packed_rows(ckpt)), rule)
    inputs = [packed_rows(ckpt, [i]).to() for i in range(len(LENGTHS))]
    logits, exits = engine.run_reference(oracle, inputs, rule)
    ours = answered(model, packed_rows(ckpt), rule)
    np.testing.assert_array_equal(ours.exit_layers, exits)
    np.testing.assert_allclose(ours.logits, logits, atol=LOOSE, rtol=0)


def test_a_callable_is_asked_after_every_exit_and_nothing_else_changes(ckpt: Any, op_set: Any) -> None:
    model, asked = model_of(ckpt, op_set), []

    def confident(layer: int, logits: torch.Tensor, state: Any, row_ids: torch.Tensor) -> tuple[torch.Tensor, Any]:
        asked.append((layer, len(row_ids)))
        return op_set.signal("confidence", logits, 1.0) > np.float32(0.8), state

    rule = ExitRule(ALL, (Clause("confidence", ">", values(0.8)),))
    check(answered(model, packed_rows(ckpt), confident), answered(model, packed_rows(ckpt), rule))
    assert [layer for layer, _ in asked] == list(range(1, asked[-1][0] + 1))
    assert sorted((rows for _, rows in asked), reverse=True) == [rows for _, rows in asked]


@pytest.mark.parametrize("until", range(1, LAYERS))
def test_stops_at_any_layer_and_says_where_its_rows_are(ckpt: Any, op_set: Any, until: int) -> None:
    model, answers = model_of(ckpt, op_set), Answers(0, len(LENGTHS), LABELS)
    packed = packed_rows(ckpt)
    flight = model.carrier.start(packed, answers.slots(packed), answers)
    assert (flight.layer, len(flight)) == (0, len(LENGTHS))
    exit = flight.advance(PATIENCE, until)
    whole, every = answered(model, packed, PATIENCE), engine.layer_logits(model, packed)
    left = np.flatnonzero(whole.exit_layers > until)
    assert (flight.layer, len(flight)) == (until if len(left) else flight.layer, len(left))
    assert flight.slots().tolist() == left.tolist()
    if exit is None:
        assert not len(left)
    else:
        assert (exit.layer, exit.slots.tolist()) == (until, left.tolist())
        np.testing.assert_allclose(exit.logits.numpy(), every[until - 1, left], atol=LOOSE, rtol=0)
        by_token = ckpt.manifest.head.get("reads") == "query"
        count = sum(LENGTHS[row] for row in left) if by_token else len(left)
        assert flight.states().shape == (count, ckpt.backbone.hidden_size)
    assert (answers.exit_layers[left] == 0).all()
    flight.advance(PATIENCE, LAYERS)
    check(answers, whole)


def test_rows_leave_with_or_without_an_answer(ckpt: Any, cpu_ops: Any) -> None:
    model, answers = model_of(ckpt, cpu_ops), Answers(0, len(LENGTHS), LABELS)
    packed, every = packed_rows(ckpt), engine.layer_logits(model, packed_rows(ckpt))
    flight = model.carrier.start(packed, answers.slots(packed), answers)
    flight.advance(NOBODY, 2)
    flight.leave(np.isin(flight.slots(), [0, 3, 6]))
    flight.advance(WAIT, 3, scores=False)
    flight.leave(torch.from_numpy(np.isin(flight.slots(), [1, 9])), answered=False)
    with pytest.raises(ValueError, match="scores"):
        flight.leave(np.isin(flight.slots(), [4]))
    assert flight.slots().tolist() == [2, 4, 5, 7, 8]
    flight.advance(NOBODY, LAYERS)
    assert answers.exit_layers.tolist() == [2, 0, 5, 2, 5, 5, 2, 5, 5, 0]
    gone = answers.exit_layers > 0
    np.testing.assert_array_equal(answers.logits[gone], every[answers.exit_layers[gone] - 1, gone])
    assert np.isnan(answers.logits[~gone]).all()
    assert flight.advance(NOBODY, LAYERS) is None


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        (np.ones(9, bool), r"9"), (torch.ones(10, 1, dtype=torch.bool), r"10"), (np.ones(10), r"float64 \[10\]"),
        (torch.ones(10, dtype=torch.uint8), r"uint8 \[10\]; expected bool"), (np.arange(10), r"int64 \[10\]"),
    ],
)  # fmt: skip
def test_a_mask_of_another_size_or_kind(ckpt: Any, cpu_ops: Any, gone: Any, message: str) -> None:
    """Whether a row's answer is asked for or not, and nobody has left."""
    model, answers = model_of(ckpt, cpu_ops), Answers(0, len(LENGTHS), LABELS)
    packed = packed_rows(ckpt)
    flight = model.carrier.start(packed, answers.slots(packed), answers)
    flight.advance(NOBODY, 2)
    for answered_too in (True, False):
        with pytest.raises(ValueError, match=f"gone .*{message}"):
            flight.leave(gone, answered_too)
    assert len(flight) == len(LENGTHS)
    flight.leave(np.tile([True, False], len(LENGTHS))[::2])  # with steps in memory
    assert not len(flight)


@pytest.mark.parametrize("until", range(LAYERS))
def test_two_flights_become_one(ckpt: Any, cpu_ops: Any, until: int) -> None:
    model, rows = model_of(ckpt, cpu_ops), len(LENGTHS)
    alone = [answered(model, packed_rows(ckpt, [i]), EITHER) for i in range(rows)]
    for split in (1, 4, 8):  # fewer than three rows, whose layers are in one piece, join more, and the other way round
        answers = Answers(0, rows, LABELS)
        parts = [packed_rows(ckpt, range(split)), packed_rows(ckpt, range(split, rows))]
        one, other = (model.carrier.start(part, answers.slots(part), answers) for part in parts)
        for flight in (one, other) if until else ():
            flight.advance(EITHER, until)
        left = [*one.slots(), *other.slots()]
        one.join(other)
        assert (len(other), one.slots().tolist()) == (0, left)
        one.advance(EITHER, LAYERS)
        for i in range(rows):
            check(answers, alone[i], [i])


@pytest.mark.parametrize("first", [True, False])
def test_rows_that_carry_nothing_yet_join_as_before_the_first_exit(ckpt: Any, cpu_ops: Any, first: bool) -> None:
    model, rows = model_of(ckpt, cpu_ops), len(LENGTHS)
    answers, packed = Answers(0, rows, LABELS), [packed_rows(ckpt, range(4)), packed_rows(ckpt, range(4, rows))]
    carries, waits = (model.carrier.start(part, answers.slots(part), answers) for part in packed)
    carries.advance(EITHER, 2)
    waits.advance(WAIT, 2)
    one, other = (carries, waits) if first else (waits, carries)
    one.join(other)
    one.advance(EITHER, LAYERS)
    for i in range(rows):
        alone, part = Answers(0, rows, LABELS), packed_rows(ckpt, [i])
        flight = model.carrier.start(part, alone.slots(part), alone)
        flight.advance(EITHER if i < 4 else WAIT, 2)
        flight.advance(EITHER, LAYERS)
        check(answers, alone, [i])


def test_a_flight_without_rows_takes_in_those_of_any_layer(ckpt: Any, cpu_ops: Any) -> None:
    model, rows = model_of(ckpt, cpu_ops), len(LENGTHS)
    answers, packed = Answers(0, rows, LABELS), [packed_rows(ckpt, range(4)), packed_rows(ckpt, range(4, rows))]
    one, other = (model.carrier.start(part, answers.slots(part), answers) for part in packed)
    one.leave(np.ones(4, bool), answered=False)
    other.advance(NOBODY, 2)
    one.join(other)
    assert (one.layer, len(one), len(other)) == (2, rows - 4, 0)
    one.advance(NOBODY, LAYERS)
    check(answers, answered(model, packed_rows(ckpt), NOBODY), slice(4, None))


def test_a_rule_may_not_carry_other_numbers_than_the_one_before(ckpt: Any, op_set: Any) -> None:
    model, answers, packed = model_of(ckpt, op_set), Answers(0, len(LENGTHS), LABELS), packed_rows(ckpt)
    one, other = (model.carrier.start(packed, answers.slots(packed), answers) for _ in range(2))
    often = ExitRule(ALL, (Clause("entropy", "<", values(-1), "running", values(2)),))
    one.advance(NOBODY, 1)
    one.advance(PATIENCE, 2)
    with pytest.raises(ValueError, match="the rule carries other numbers from exit to exit than the rule before it"):
        one.advance(often, LAYERS)
    other.advance(often, 2)
    if len(one):
        with pytest.raises(ValueError, match="the flights' rules carry different numbers from exit to exit"):
            one.join(other)
    one.advance(WAIT, 3)  # carries nothing, and leaves alone what is carried
    one.advance(PATIENCE, LAYERS)
    answers_of_two = Answers(0, len(LENGTHS), LABELS)
    flight = model.carrier.start(packed, answers_of_two.slots(packed), answers_of_two)
    flight.advance(ExitRule(bytes([0, 1, 0, 1, 1]), PATIENCE.clauses), LAYERS)
    check(answers, answers_of_two, exact=False)  # the reference adds up in another order in a smaller batch


RULES_THAT_DO_NOT_FIT = {
    "tested has 4 numbers, expected 5": ExitRule(bytes(4)),
    "numbers for 3 slots, expected 1 or the 10": ExitRule(ALL, (Clause("entropy", "<", np.zeros((1, 3), np.float32)),)),
    "reads tokens, but the head does not score them": ExitRule(ALL, (), TokenRule("token")),
    "a learned score, which the": ExitRule(ALL, (Clause("learned", "<", values(1)),)),
}


@pytest.mark.parametrize("text", RULES_THAT_DO_NOT_FIT)
def test_rules_that_do_not_fit_are_refused(ckpt: Any, op_set: Any, text: str) -> None:
    model, answers, packed = model_of(ckpt, op_set), Answers(0, len(LENGTHS), LABELS), packed_rows(ckpt)
    flight = model.carrier.start(packed, answers.slots(packed), answers)
    with pytest.raises(ValueError, match=text):
        flight.advance(RULES_THAT_DO_NOT_FIT[text], LAYERS)
    assert (flight.layer, len(flight)) == (0, len(LENGTHS))
    with pytest.raises(ValueError, match="until is 0, expected"):
        flight.advance(WAIT, 0)
    flight.advance(NOBODY, LAYERS)
    assert (answers.exit_layers == LAYERS).all()


def test_flights_that_do_not_fit_are_not_joined(ckpt: Any, cpu_ops: Any) -> None:
    model, answers, packed = model_of(ckpt, cpu_ops), Answers(0, len(LENGTHS), LABELS), packed_rows(ckpt)
    one, other = (model.carrier.start(packed, answers.slots(packed), answers) for _ in range(2))
    one.advance(NOBODY, 2)
    with pytest.raises(ValueError, match="layer"):
        one.join(other)
    with pytest.raises(ValueError, match="itself"):
        one.join(one)
    elsewhere = model.carrier.start(packed, answers.slots(packed), Answers(0, len(LENGTHS), LABELS))
    elsewhere.advance(NOBODY, 2)
    with pytest.raises(ValueError, match="answer"):
        one.join(elsewhere)
    one.advance(NOBODY, LAYERS)
    assert (answers.exit_layers == LAYERS).all()


def test_no_rows(ckpt: Any, op_set: Any) -> None:
    model, answers, packed = model_of(ckpt, op_set), Answers(0, 0, LABELS), packed_rows(ckpt, [])
    flight = model.carrier.start(packed, answers.slots(packed), answers)
    assert not len(flight)
    assert flight.advance(NOBODY, 3) is None
    assert engine.layer_logits(model, packed).shape == (LAYERS, 0, LABELS)


def test_after_the_last_layer_rows_stay_where_nobody_asks_for_scores(ckpt: Any, op_set: Any) -> None:
    model, answers, packed = model_of(ckpt, op_set), Answers(0, len(LENGTHS), LABELS), packed_rows(ckpt)
    flight = model.carrier.start(packed, answers.slots(packed), answers)
    exit = flight.advance(NOBODY, LAYERS, scores=False)
    assert exit is not None
    assert exit.logits is None
    assert (answers.exit_layers == 0).all()
    states = flight.states()
    oracle = model_of(ckpt, reference)
    other = oracle.carrier.start(packed, answers.slots(packed), answers)
    other.advance(NOBODY, LAYERS, scores=False)
    np.testing.assert_allclose(states.numpy(), other.states().numpy(), atol=LOOSE, rtol=0)
