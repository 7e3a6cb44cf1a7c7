"""What `_C` decides, against the definition in `ops.decide`: the same rows leave, and rows carry on the same bits."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from pfengine import extension
from pfengine.ops import decide
from pfengine.ops.rule import COMPARISONS, MEMORIES, SIGNALS, WINDOWS, Clause, ExitRule, TokenRule, values

if not extension.has_cpu():
    pytest.skip(extension.status(), allow_module_level=True)

from pfengine.ops import cpu_rule

LAYERS, ROWS = 6, 48
OF_SCORES = SIGNALS[: SIGNALS.index("label_repeats")]
OWN_STATE = ("label_repeats", "change")
inf, nan = float("inf"), float("nan")
EDGES = [
    [0.0, 0.0, 0.0], [nan, 1.0, 2.0], [1.0, nan, 2.0], [1.0, 2.0, nan], [inf, 0.0, 1.0], [-inf, 0.0, 1.0],
    [0.0, inf, inf],
    [-inf, -inf, -inf], [inf, -inf, 0.0], [1e4, 0.0, -1e4], [88.8, -88.8, 0.0], [1e30, 1e30, -1e30], [5.0, 5.0, 5.0],
    [2.0, 1.0, 2.0], [1e-40, 0.0, 0.0], [104.0, 0.0, 0.0],
]  # fmt: skip


def scores(rows: int, labels: int, seed: int) -> Tensor:
    """Edges first, then logits of all scales; some as the exit before had them, so that labels repeat."""
    draw = torch.Generator().manual_seed(seed // 2)
    x = torch.randn(rows, labels, generator=draw) * torch.logspace(-3, 2, rows)[:, None]
    x += 0.3 * torch.randn(rows, labels, generator=torch.Generator().manual_seed(seed))
    for row, edge in enumerate(EDGES[: rows // 2]):
        x[(row + seed) % rows, : min(3, labels)] = torch.tensor(edge)[:labels]
    return x


def numbers(kind: int, low: float, high: float, slots: int) -> np.ndarray:
    """Once, per layer, per slot, per layer and slot."""
    shape = [(1, 1), (LAYERS, 1), (1, slots), (LAYERS, slots)][kind % 4]
    return np.random.default_rng(kind).uniform(*sorted((low, high)), shape).astype(np.float32)


def same(ours: Tensor, theirs: Tensor) -> None:
    np.testing.assert_array_equal(ours.numpy(), theirs.numpy())


def check(rule: ExitRule, labels: int, seed: int = 0, lengths: list[int] | None = None) -> None:
    """Exit by exit, without those that left; lengths: of rows of tokens."""
    slots, states = torch.randperm(ROWS, generator=torch.Generator().manual_seed(1)), [None, None]
    by_row = rule.tokens is not None and rule.tokens.unit == "row"
    for layer in range(1, LAYERS + 1):
        bounds = None if lengths is None else torch.tensor([0, *itertools.accumulate(lengths)]).int()
        count = len(slots) if lengths is None else sum(lengths)
        logits = scores(count, labels, seed + layer)
        learned = torch.rand(count, generator=torch.Generator().manual_seed(layer))
        units = slots[: len(lengths)] if by_row and lengths is not None else slots[:count]
        theirs = decide.decide(rule, layer, logits, learned, states[0], units, extension.signal, bounds)
        ours = cpu_rule.decide(rule, layer, logits, learned, states[1], units, bounds)
        same(ours[0], theirs[0])
        same(ours[1], theirs[1])
        assert theirs[1].shape == (len(units), rule.width(labels))
        stay = ~theirs[0]
        if lengths is None:
            slots, states = slots[stay], [theirs[1][stay], ours[1][stay]]
        else:  # tokens stay as long as their row does
            states = [theirs[1], ours[1]]


def clauses() -> list[tuple[Clause, int]]:
    """Every signal with every memory; comparisons, shapes of numbers and labels take turns."""
    made = []
    for i, (signal, memory) in enumerate(itertools.product(SIGNALS, MEMORIES)):
        if memory == "votes" and signal != "label":
            continue
        high = {"layer": LAYERS, "energy": -3.0, "label": 2.0, "change": 3.0}.get(signal, 1.0)
        if memory in ("votes", "sum"):
            high *= 3
        clause = Clause(
            signal,
            COMPARISONS[(i + i // 7) % 4],
            numbers(i // 2, 0.0, high, ROWS),
            memory,
            times=numbers(i // 3, 1.0, 3.9, 1 if memory == "sum" else ROWS),
            size=2 + i % 3 if memory in WINDOWS else 0,
            temperature=numbers(i % 2, 0.5, 2.0, 1),
        )
        made.append((clause, (3, 2, 1, 9)[i % 4]))
    return made


CLAUSES = clauses()


@pytest.mark.parametrize(
    ("clause", "labels"), CLAUSES, ids=lambda x: f"{x.signal}-{x.memory}" if isinstance(x, Clause) else str(x)
)
def test_every_signal_with_every_memory(clause: Clause, labels: int) -> None:
    check(ExitRule(bytes(LAYERS), (clause,)), labels)


@pytest.mark.parametrize("labels", [1, 2, 1000])
def test_clauses_joined_by_or(labels: int) -> None:
    rule = ExitRule(
        bytes(LAYERS),
        (
            Clause("entropy", "<", numbers(1, 0.0, 0.3, ROWS)),
            Clause("change", "<", numbers(2, 0.0, 0.5, ROWS), "running", times=values(2)),
            Clause("label_0", ">", values(0.2), "trend", size=3),
            Clause("label", ">=", values(3), "votes"),
            Clause("label_repeats", ">=", values(1), "running", times=values(3)),
        ),
    )
    check(rule, labels)


def test_no_clause_lets_nobody_go() -> None:
    leave, state = cpu_rule.decide(ExitRule(b"\1"), 1, scores(5, 3, 0), None, None, torch.arange(5))
    assert not leave.any()
    assert state.shape == (5, 0)


LENGTHS = [1, 2, 9, 1, 5, 17, 3, 10]
TOKEN_RULES = [
    TokenRule("row", "max"), TokenRule("row", "mean"), TokenRule("token"), TokenRule("token", window=3),
    TokenRule("token", window=15, freezes=True),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(CLAUSES)), ids=lambda i: f"{CLAUSES[i][0].signal}-{CLAUSES[i][0].memory}")
def test_tokens(number: int) -> None:
    (clause, labels), tokens = CLAUSES[number], TOKEN_RULES[number % len(TOKEN_RULES)]
    rule = ExitRule(bytes(LAYERS), (clause,), tokens)
    if tokens.unit == "row" and (clause.signal in OWN_STATE or clause.memory in ("votes", "sum")):
        with pytest.raises(ValueError, match="there is no label of the row"):
            cpu_rule.native_rule(rule)
    else:
        check(rule, labels, lengths=LENGTHS)


@pytest.mark.parametrize("temperature", [1.0, 0.37, 3.0])
@pytest.mark.parametrize("labels", [1, 2, 3, 33, 1000])
@pytest.mark.parametrize("name", OF_SCORES)
def test_signals(name: str, labels: int, temperature: float) -> None:
    """float32 rounds each exp, log and sum by 6e-8 of the numbers that go in, and sums run in another order here."""
    x = torch.cat([scores(200, labels, seed) for seed in range(3)])
    ours, theirs = extension.signal(name, x, temperature), decide.signal(name, x.double().float(), temperature)
    assert (ours.dtype, ours.shape) == (torch.float32, (len(x),))
    scale = 1 + (x / temperature).abs().amax(-1).nan_to_num(0, 0, 0) if name == "energy" else 1.0
    magnitude = scale * max(1.0, temperature) * (1 + np.log(labels))
    finite = theirs.isfinite()
    same(torch.where(finite, 0.0, ours), torch.where(finite, 0.0, theirs))
    assert ((ours - theirs).abs()[finite] <= (1e-6 * magnitude * torch.ones(len(x)))[finite]).all()


def test_a_signal_keeps_the_shape_of_what_leads() -> None:
    x = torch.randn(2, 5, 3)
    same(extension.signal("margin", x), extension.signal("margin", x.view(10, 3)).view(2, 5))
    assert extension.signal("entropy", x[:, :0]).shape == (2, 0)


GOLDENS = {  # what each system's official code takes of logits
    "berxit": "entropy", "deebert": "entropy", "elasticbert": "entropy", "past-future": "entropy",
    "cascadebert": "confidence", "righttool": "confidence", "elbert": "normalised_entropy",
    "fastbert": "normalised_entropy", "seqlab-early-exit": "normalised_entropy",
}  # fmt: skip


@pytest.mark.parametrize("system", GOLDENS)
def test_official_codes_values(shared: Path, system: str) -> None:
    """Where theirs is nan their code overflows: a slip, not a definition."""
    vectors = load_file(shared / "goldens" / system / "_criterion" / "vectors.safetensors")
    for key in [key for key in vectors if key.startswith("logits.")]:
        theirs = vectors[key.replace("logits", "criterion")]
        known = ~theirs.isnan()
        assert known.sum() > 10
        torch.testing.assert_close(
            extension.signal(GOLDENS[system], vectors[key])[known], theirs[known], atol=1e-5, rtol=1e-5
        )


WRONG = {
    "signal": ({"signal": "margins"}, "signal is 'margins', expected one of entropy, "),
    "comparison": ({"comparison": "=="}, "comparison is '==', expected one of <, <=, >, >="),
    "memory": ({"memory": "all"}, "memory is 'all', expected one of none, running"),
    "votes": ({"memory": "votes"}, "the memory 'votes' must have the signal 'label'"),
    "no window": ({"memory": "side"}, "size must be the number of exits that a window holds"),
    "a window of nothing": ({"size": 3}, "size must be the number of exits that a window holds"),
    "layers": ({"threshold": np.zeros((3, 1), np.float32)}, "numbers for 3 layers, expected 1 or the 2"),
    "one dimension": ({"threshold": np.zeros(2, np.float32)}, r"threshold must be float32 \[1 or layers, 1 or slots"),
    "slots": (
        {"threshold": np.zeros((1, 3), np.float32), "times": np.zeros((1, 4), np.float32)}, "different counts of slots"
    ),
    "temperature": ({"temperature": np.ones((1, 3), np.float32)}, r"temperature must be float32 \[1 or layers, 1\]"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_clauses_that_make_no_sense(case: str) -> None:
    change, text = WRONG[case]
    clause = Clause("entropy", "<", values(0.5))._replace(**change)
    with pytest.raises(ValueError, match=text):
        cpu_rule.native_rule(ExitRule(b"\1\1", (clause,)))


def test_tokens_that_make_no_sense() -> None:
    for tokens, text in [
        (TokenRule("token", window=2), "window must be odd"),
        (TokenRule("token", "mean"), "pool must be 'max'"),
        (TokenRule("row", freezes=True), "for the unit 'row'"),
        (TokenRule("word"), "unit is 'word', expected one of row, token"),  # type: ignore[arg-type]
    ]:
        with pytest.raises(ValueError, match=text):
            cpu_rule.native_rule(ExitRule(b"\1", (), tokens))


def test_numbers_of_another_kind() -> None:
    for wrong in (np.zeros((1, 1)), np.zeros((2, 2), np.float32).T, [[0.5]], 0.5, None):
        with pytest.raises(TypeError):
            cpu_rule.native_rule(ExitRule(b"\1", (Clause("entropy", "<", wrong),)))  # type: ignore[arg-type]


def test_slots_outside_the_numbers() -> None:
    rule = ExitRule(b"\1", (Clause("entropy", "<", np.zeros((1, 4), np.float32)),))
    for slot in (-1, 4):
        with pytest.raises(ValueError, match=f"a slot is {slot}"):
            cpu_rule.decide(rule, 1, torch.zeros(1, 2), None, None, torch.tensor([slot]))


def test_a_learned_score_that_is_not_there() -> None:
    rule = ExitRule(b"\1", (Clause("learned", "<", values(0.5)),))
    with pytest.raises(ValueError, match="learned is a null pointer"):
        cpu_rule.decide(rule, 1, torch.zeros(1, 2), None, None, torch.zeros(1).long())
