"""Tag heads in flights: words leave one by one or with their row, and those that have left stay as context.

Once every token is a word, and once words have several pieces, and there are tokens of no word.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pfengine import checkpoint, encoder, engine, reader
from pfengine.batch import Packed
from pfengine.model import build
from pfengine.ops import decide, reference
from pfengine.ops.flight import Answers
from pfengine.ops.rule import Clause, ExitRule, TokenRule, values
from pfengine.tokenization import Row, pack
from tests.conftest import OP_SETS, find_op_set
from tests.rows_of_words import row_of_words

Make = Callable[..., Path]
LENGTHS = [1, 9, 3, 17, 1, 40, 6]  # words
ROWS = range(len(LENGTHS))
WORDS, LAYERS, LABELS, ALL = sum(LENGTHS), 5, 4, bytes([1] * 5)
STARTS = np.cumsum([0, *LENGTHS])
RULES = {
    "row max": TokenRule("row", "max"),
    "row mean": TokenRule("row", "mean"),
    "token": TokenRule("token"),
    "window": TokenRule("token", window=3),
    "frozen": TokenRule("token", window=3, freezes=True),
}


@pytest.fixture(scope="module", params=["kept, words", "renormalised, words", "renormalised, tokens"])
def ckpt(request: pytest.FixtureRequest, make_checkpoint: Make) -> checkpoint.Checkpoint:
    frozen, MARKED[0] = request.param.split(",")[0], request.param.endswith("words")
    return reader.read(make_checkpoint("bert", labels=LABELS, head={"type": "tagger", "frozen": frozen}))


MARKED = [False]  # are words marked in the rows, or is every token one?


@pytest.fixture(params=[*OP_SETS, pytest.param("cuda", marks=pytest.mark.slow)])
def carrier_ops(request: pytest.FixtureRequest) -> Callable[[checkpoint.Checkpoint], engine.Model]:
    """Builds a model over each op set, of which "cuda" runs in Triton's interpreter where there is no GPU."""
    if request.param == "cuda":
        pytest.importorskip("triton")
    ops, device = find_op_set(request.param), None
    if request.param == "cuda" and torch.cuda.is_available():
        device = torch.device("cuda")
    return lambda ckpt: build(ckpt, ops, torch.float32, device)


def packed_rows(ckpt: checkpoint.Checkpoint, which: Any = ROWS) -> Packed:
    draw = np.random.default_rng(5)
    if MARKED[0]:
        rows = [row_of_words(i, length, draw) for i, length in enumerate(LENGTHS)]
    else:
        rows = [Row(i, draw.integers(2, 90, length), None, False) for i, length in enumerate(LENGTHS)]
    return pack([rows[i] for i in which], ckpt.backbone)


def slowly(model: engine.Model, packed: Packed, rule: ExitRule, to: Answers) -> None:
    """One row, all tokens computed at every layer, the states of frozen ones thrown away."""
    assert rule.tokens is not None
    inputs, ops = packed.to(), model.encoder.ops
    slots = torch.arange(STARTS[packed.row_ids[0]], STARTS[packed.row_ids[0] + 1])
    first, pieces, _ = packed.words()
    bounds = torch.tensor([0, len(first)], dtype=torch.int32)
    x, sums, state = encoder.embed(model.encoder, inputs), None, None
    gone, frozen = torch.zeros(len(first), dtype=torch.bool), torch.zeros(len(x), dtype=torch.bool)
    for layer in range(1, LAYERS + 1):
        (block,) = model.encoder.layers[layer - 1]
        out, fresh = ops.block_sums(x, inputs.cu_seqlens, block)
        sums = fresh if sums is None else torch.where(frozen[:, None], sums, fresh)
        stale = ops.output_norm(sums, block) if model.head.renormalises else x
        x = torch.where(frozen[:, None], stale, out)
        scores, _ = model.head.step(layer, x[first], bounds, None, True)
        assert scores is not None
        leave = torch.ones(len(first), dtype=torch.bool)
        if layer < LAYERS:
            units = slots if rule.tokens.unit == "token" else slots[:1]
            leave, state = decide.decide(rule, layer, scores.logits, None, state, units, ops.signal, bounds)
        new = leave.expand(len(first)) & ~gone
        to.logits[slots[new]], to.exit_layers[slots[new]] = scores.logits[new].numpy(), layer
        gone = gone | new
        for word in new.nonzero().flatten().tolist() if rule.tokens.freezes else ():
            frozen[first[word] : first[word] + pieces[word]] = True
        if gone.all():
            return


def threshold_for(model: engine.Model, ckpt: Any, tokens: TokenRule) -> np.ndarray:
    """In the widest gap of the middle of all signals that the rule may read."""
    signals, packed = [], packed_rows(ckpt)
    flight = model.carrier.start(packed, STARTS[packed.row_ids], Answers(0, WORDS, LABELS))
    for layer in range(1, LAYERS):
        exit = flight.advance(ExitRule(bytes(5)), layer)
        entropies = decide.signal("entropy", exit.logits)
        signals.append(decide.pooled(tokens, entropies, torch.from_numpy(packed.words().bounds)))
    own = np.sort(torch.cat(signals).numpy())
    own = own[len(own) // 3 : -(len(own) // 3)]
    widest = np.argmax(np.diff(own))
    return values((own[widest] + own[widest + 1]) / 2)


@pytest.mark.parametrize("name", RULES)
def test_agrees_with_the_slow_way(ckpt: Any, carrier_ops: Any, name: str) -> None:
    model, oracle = carrier_ops(ckpt), build(ckpt, reference, torch.float32)
    rule = ExitRule(ALL, (Clause("entropy", "<", threshold_for(oracle, ckpt, RULES[name])),), RULES[name])
    slow, ours = Answers(0, WORDS, LABELS), Answers(0, WORDS, LABELS)
    with torch.inference_mode():
        for i in range(len(LENGTHS)):
            slowly(oracle, packed_rows(ckpt, [i]), rule, slow)
    packed = packed_rows(ckpt)
    model.carrier.start(packed, STARTS[packed.row_ids], ours).advance(rule, LAYERS)
    np.testing.assert_array_equal(ours.exit_layers, slow.exit_layers)
    np.testing.assert_allclose(ours.logits, slow.logits, atol=3e-5, rtol=0)  # float32, other kernels
    assert len(set(ours.exit_layers)) > 1


@pytest.mark.parametrize("name", RULES)
def test_the_same_bits_alone_joined_and_in_any_batch(ckpt: Any, cpu_ops: Any, name: str) -> None:
    model = build(ckpt, cpu_ops, torch.float32)
    rule = ExitRule(ALL, (Clause("entropy", "<", threshold_for(model, ckpt, RULES[name])),), RULES[name])

    def run(parts: list[Any], stop: int = LAYERS) -> Answers:
        answers, flights = Answers(0, WORDS, LABELS), []
        for part in parts:
            packed = packed_rows(ckpt, part)
            flights.append(model.carrier.start(packed, STARTS[packed.row_ids], answers))
            flights[-1].advance(rule, stop)
        for other in flights[1:]:
            flights[0].join(other)
        flights[0].advance(rule, LAYERS)
        return answers

    alone = Answers(0, WORDS, LABELS)
    for i in range(len(LENGTHS)):
        one, (start, stop) = run([[i]]), STARTS[i : i + 2]
        alone.logits[start:stop], alone.exit_layers[start:stop] = one.logits[start:stop], one.exit_layers[start:stop]
    for answers in (run([range(7)]), run([[0, 2, 5], [1, 3, 4, 6]], 2), run([[6, 1], [0, 5, 3], [2, 4]], 3)):
        np.testing.assert_array_equal(answers.exit_layers, alone.exit_layers)
        np.testing.assert_array_equal(answers.logits, alone.logits)


@pytest.mark.parametrize("name", ["row max", "frozen"])
@pytest.mark.parametrize("first", [True, False])
def test_words_that_carry_nothing_yet_join_as_before_the_first_exit(
    ckpt: Any, cpu_ops: Any, name: str, first: bool
) -> None:
    model, token_rule = build(ckpt, cpu_ops, torch.float32), RULES[name]
    threshold = 1.2 * threshold_for(model, ckpt, token_rule)
    rule = ExitRule(ALL, (Clause("entropy", "<", threshold, "running", values(2)),), token_rule)

    def run(parts: list[tuple[ExitRule, Any]]) -> Answers:
        answers, flights = Answers(0, WORDS, LABELS), []
        for before, part in parts:
            packed = packed_rows(ckpt, part)
            flights.append(model.carrier.start(packed, STARTS[packed.row_ids], answers))
            flights[-1].advance(before, 2)
        for other in flights[1:]:
            flights[0].join(other)
        flights[0].advance(rule, LAYERS)
        return answers

    parts = [(rule, [0, 3, 5]), (ExitRule(bytes(5)), [1, 2, 4, 6])]
    ours, alone = run(parts if first else parts[::-1]), [run([part]) for part in parts]
    own = np.isin(np.repeat(ROWS, LENGTHS), parts[0][1])
    np.testing.assert_array_equal(ours.exit_layers, np.where(own, alone[0].exit_layers, alone[1].exit_layers))
    np.testing.assert_array_equal(ours.logits, np.where(own[:, None], alone[0].logits, alone[1].logits))
    assert len(set(ours.exit_layers)) > 1


def test_a_caller_decides_who_leaves(ckpt: Any, carrier_ops: Any) -> None:
    model, answers, packed = carrier_ops(ckpt), Answers(0, WORDS, LABELS), packed_rows(ckpt)
    flight = model.carrier.start(packed, STARTS[packed.row_ids], answers)
    flight.leave(np.isin(range(WORDS), [20, 71]), answered=False)  # before the first layer
    exit = flight.advance(ExitRule(bytes(5)), 2)
    assert exit.slots.tolist() == list(range(WORDS))
    flight.leave(np.isin(exit.slots, [0, 1, 2, 3, 70]))
    flight.advance(ExitRule(bytes(5)), 3, scores=False)
    flight.leave(np.isin(words_of(flight), [10, 11, 12]), answered=False)
    assert flight.slots().tolist() == [STARTS[i] for i in (1, 3, 4, 5, 6)]
    flight.advance(ExitRule(bytes(5)), LAYERS)
    expected = np.full(WORDS, LAYERS)
    expected[[0, 1, 2, 3, 70]], expected[[10, 11, 12, 20, 71]] = 2, 0
    np.testing.assert_array_equal(answers.exit_layers, expected)
    assert (np.isnan(answers.logits).any(1) == (expected == 0)).all()


def test_a_mask_is_of_words(ckpt: Any, carrier_ops: Any) -> None:
    model, answers, packed = carrier_ops(ckpt), Answers(0, WORDS, LABELS), packed_rows(ckpt)
    flight = model.carrier.start(packed, STARTS[packed.row_ids], answers)
    flight.advance(ExitRule(bytes(5)), 2)
    for gone in (np.ones(len(flight), bool), np.ones(WORDS)):
        with pytest.raises(ValueError, match=r"gone .* expected"):
            flight.leave(gone)
    assert flight.slots().tolist() == [STARTS[row] for row in packed.row_ids]


def test_a_callable_keeps_its_state_and_its_error(ckpt: Any, carrier_ops: Any) -> None:
    """Words that have left are shown to it until their whole row has left, and its state goes with them."""
    model, packed, shown = carrier_ops(ckpt), packed_rows(ckpt), []

    def leaves(layer: int, logits: torch.Tensor, state: Any, ids: torch.Tensor) -> tuple[torch.Tensor, Any]:
        assert state is None or torch.equal(state, ids)
        shown.append(ids.tolist())
        return (ids < STARTS[2]) if layer > 1 else (ids % 3 == 0), ids

    def fails(layer: int, logits: torch.Tensor, state: Any, ids: torch.Tensor) -> tuple[torch.Tensor, Any]:
        raise KeyError("mine")

    answers = Answers(0, WORDS, LABELS)
    engine.run(model, packed._replace(row_ids=STARTS[packed.row_ids]), leaves, answers)
    everyone = np.arange(WORDS)
    rows = [range(*bounds) for bounds in itertools.pairwise(STARTS)]
    left = [[i for row in rows if any(i % 3 and i >= least for i in row) for i in row] for least in (0, STARTS[2])]
    assert shown == [list(everyone), left[0], *[left[1]] * (LAYERS - 3)]
    expected = np.where(everyone % 3 == 0, 1, np.where(everyone < STARTS[2], 2, LAYERS))
    np.testing.assert_array_equal(answers.exit_layers, expected)
    with pytest.raises(KeyError, match="mine"):
        engine.run(model, packed._replace(row_ids=STARTS[packed.row_ids]), fails, Answers(0, WORDS, LABELS))


@pytest.mark.parametrize(("pieces", "said"), [
    ([0, 2, 0, 1, 0, 0, 0], "row 1 has no word"), ([0, 1, 0, 2, 1, 0, 1], "of which some are not"),
    ([0, 4, 0, 0, 1, 0, 1], "of which some are not"), ([0, -1, 0, 1, 1, 0, 1], "of which some are not"),
    ([0, 1, 1], "expected"),
])  # fmt: skip
def test_words_that_cannot_be_are_refused(ckpt: Any, carrier_ops: Any, pieces: list[int], said: str) -> None:
    rows = [Row(i, np.arange(n), None, False) for i, n in enumerate((4, 3))]
    packed = pack(rows, ckpt.backbone)._replace(pieces=np.array(pieces, np.int32))
    with pytest.raises(ValueError, match=said):
        carrier_ops(ckpt).carrier.start(packed, np.array([0, 4]), Answers(0, 7, LABELS))


BELOW_1 = Clause("entropy", "<", values(1))
RULES_THAT_DO_NOT_FIT = {
    "scores every token, and the rule does not say how they are read": (BELOW_1, None),
    "window must be odd, with the token in its middle": (BELOW_1, TokenRule("token", window=2)),
    "pool must be 'max' for the unit 'token'": (BELOW_1, TokenRule("token", "mean")),
    "window must be 1 and freezes false for the unit 'row'": (BELOW_1, TokenRule("row", freezes=True)),
    "there is no label of the row": (BELOW_1._replace(signal="change"), TokenRule("row")),
    "numbers for 2 slots, expected 1 or the 77": (
        BELOW_1._replace(threshold=np.zeros((1, 2), np.float32)), TokenRule("token"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("text", RULES_THAT_DO_NOT_FIT)
def test_rules_that_do_not_fit_are_refused(ckpt: Any, carrier_ops: Any, text: str) -> None:
    clause, tokens = RULES_THAT_DO_NOT_FIT[text]
    packed = packed_rows(ckpt)
    flight = carrier_ops(ckpt).carrier.start(packed, STARTS[packed.row_ids], Answers(0, WORDS, LABELS))
    with pytest.raises(ValueError, match=text):
        flight.advance(ExitRule(ALL, (clause,), tokens), LAYERS)
    assert (flight.layer, len(flight)) == (0, len(LENGTHS))


def words_of(flight: Any) -> np.ndarray:
    """Slots of all words of the rows that are left."""
    return np.concatenate([np.arange(start, STARTS[np.searchsorted(STARTS, start) + 1]) for start in flight.slots()])
