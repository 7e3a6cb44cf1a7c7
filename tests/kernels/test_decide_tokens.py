"""`decide_tokens` lets words and rows go as `ops.decide` says, exit after exit."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pfengine.kernels.decide import Decided, ExitTest
from pfengine.kernels.decide_tokens import decide_tokens
from pfengine.kernels.exit_head import exit_head
from pfengine.ops.cuda_rule import by_slot_shape, fill_by_slot, forms_of, numbers_of
from pfengine.ops.decide import decide, signal
from pfengine.ops.rule import Clause, ExitRule, TokenRule, values

LENGTHS, LAYERS = [1, 19, 3, 7], 3
BOUNDS = np.cumsum([0, *LENGTHS]).astype(np.int32)
TOKENS = int(BOUNDS[-1])
TOKENS_ALONE = np.ones(TOKENS, np.int32)
WORDS = np.array([1, 0, 2, 0, 1, 3, 0, 0, 1, 1, 2, 0, 0, 1, 2, 0, 1, 1, 1, 0, 0, 1, 0, 3, 0, 0, 1, 2, 0, 1])
BY_SLOT = np.random.default_rng(0).uniform(0.3, 0.6, (LAYERS, TOKENS)).astype(np.float32)
CONFIDENT = Clause("confidence", ">", values(0.5))
CLAUSES: dict[str, tuple[Clause, ...]] = {
    "one": (CONFIDENT,),
    "by slot or running": (
        CONFIDENT._replace(threshold=BY_SLOT), Clause("normalised_entropy", "<", values(0.8), "running", values(2)),
    ),
    "window or tempered": (
        Clause("label_0", ">", values(0.1), "side", size=2),
        Clause("energy", "<", values(-2), temperature=values(0.5)),
    ),
    "trend or range": (Clause("margin", ">", values(0.1), "trend", size=2),
                       Clause("margin", ">", values(0.2), "range", size=3)),
    "votes or sum": (Clause("label", ">=", values(2), "votes"), Clause("confidence", ">", values(0.8), "sum")),
    "label or change": (
        Clause("label_repeats", ">=", values(1), "running", values(2)), Clause("change", "<", values(0.5)),
    ),
}  # fmt: skip
LABELLED = ("votes or sum", "label or change")


def places_of(pieces: np.ndarray) -> np.ndarray:
    """As `decide_tokens` wants them."""
    places = np.full(len(pieces), -1, np.int32)
    for start, stop in itertools.pairwise(BOUNDS):
        own = pieces[start:stop].nonzero()[0]
        places[start : start + len(own)] = own
    return places


QUICK = {  # every rule once, every unit twice or more
    ("one", "mean"), ("one", "window 5"), ("by slot or running", "max"), ("by slot or running", "window 1"),
    ("window or tempered", "mean"), ("window or tempered", "window 5"), ("trend or range", "max"),
    ("trend or range", "window 5"), ("votes or sum", "window 1"), ("label or change", "window 5"),
}  # fmt: skip
CASES = [
    pytest.param(
        name, unit, labels, marked, marks=[] if (name, unit) in QUICK and labels == 3 and marked else pytest.mark.wide
    )
    for name, unit, labels, marked in itertools.product(
        CLAUSES, ("mean", "max", "window 1", "window 5"), (3, 20), (True, False)
    )
    if (unit.startswith("window") or name not in LABELLED) and (labels == 3) == marked
]


def token_rule(unit: str) -> TokenRule:
    if unit.startswith("window"):
        return TokenRule("token", window=int(unit[-1]), freezes=unit == "window 5")
    return TokenRule("row", "mean" if unit == "mean" else "max")


@pytest.mark.parametrize(("name", "unit", "labels", "marked"), CASES)
def test_rules(draw: Any, count: Any, device: torch.device, name: str, unit: str, labels: int, marked: bool) -> None:
    pieces = (WORDS if marked else TOKENS_ALONE).astype(np.int32)
    first, word_bounds = pieces.nonzero()[0], np.searchsorted(pieces.nonzero()[0], BOUNDS).astype(np.int32)
    words = [torch.from_numpy(array).to(device) for array in (places_of(pieces), pieces)]
    tokens, clauses = token_rule(unit), CLAUSES[name]
    rule, by_row = ExitRule(bytes([1] * LAYERS), clauses, tokens), tokens.unit == "row"
    forms = forms_of(rule)
    numbers, shape = torch.from_numpy(numbers_of(rule)).to(device), by_slot_shape(rule, forms)
    by_slot = np.zeros((*shape, TOKENS), np.float32)
    fill_by_slot(rule, forms, np.arange(TOKENS), by_slot)
    bounds, weight = torch.from_numpy(BOUNDS).to(device), torch.eye(labels, device=device)
    slots, token_slots = bounds[:-1].long(), torch.arange(TOKENS, device=device)
    to_logits = torch.full((TOKENS, labels), float("nan"), device=device)
    to_layers, frozen = (torch.zeros(TOKENS, dtype=kind, device=device) for kind in (torch.int64, torch.uint8))
    to_layers[torch.from_numpy(pieces == 0).to(device)] = -1  # as of tokens that were dropped
    own, kept = (sum(width(form) for form in forms) for width in (lambda f: f.own(labels), lambda f: f.kept(labels)))
    ours = [[torch.full((TOKENS, width), float("nan"), device=device) for _ in range(2)] for width in (own, kept)]
    leave, asking = torch.zeros(4, dtype=torch.bool, device=device), torch.zeros(4, dtype=torch.int32, device=device)
    state, exits, logits_of = None, to_layers.cpu().clone(), torch.full((TOKENS, labels), float("nan"))
    for layer in range(1, LAYERS + 1):
        logits = draw(TOKENS, labels)
        logits[5] = float("nan")
        states = [(parts[layer % 2], parts[1 - layer % 2]) if parts[0].numel() else (None, None) for parts in ours]
        out = Decided.empty(TOKENS, labels, device, len(forms))
        alone = ExitTest(
            layer, tuple(form.signal_alone() for form in forms), numbers[layer - 1], None, *states[0], slots=token_slots
        )
        exit_head(logits, weight, torch.zeros(labels, device=device), alone, count(TOKENS), out=out)
        layers_of = torch.from_numpy(by_slot[min(layer, len(by_slot)) - 1]).to(device) if shape[1] else None
        test = ExitTest(
            layer,
            forms,
            numbers[layer - 1],
            layers_of,
            *states[1],
            slots=slots,
            to_logits=to_logits,
            to_layers=to_layers,
        )
        decide_tokens(
            test, out.logits, bounds, count(4), frozen, leave, asking, *words, signals=out.signals,
            pool="window" if not by_row else tokens.pool, window=tokens.window, freezes=tokens.freezes,
        )  # fmt: skip
        of = torch.from_numpy(BOUNDS[:-1]).long() if by_row else torch.from_numpy(first)
        scores, of_words = out.logits.cpu()[first], torch.from_numpy(word_bounds)
        goes, state = decide(rule, layer, scores, None, state, of, signal, of_words)
        goes = goes.repeat_interleave(torch.from_numpy(np.diff(word_bounds))) if by_row else goes
        new = first[goes.numpy() & (exits[first] == 0).numpy()]
        exits[new], logits_of[new] = layer, logits.cpu()[new]
        assert to_layers.tolist() == exits.tolist()
        own = np.repeat(first, pieces[first])  # the first piece of the word that each piece belongs to
        cold = np.zeros(TOKENS, int)
        cold[own + np.concatenate([np.arange(n) for n in pieces[first]])] = (exits[own] > 0).numpy() & tokens.freezes
        assert frozen.tolist() == cold.tolist()
        rows = list(itertools.pairwise(BOUNDS))
        assert leave.tolist() == [bool((exits[start:stop] != 0).all()) for start, stop in rows]
        assert asking.tolist() == [stop - start - cold[start:stop].sum() for start, stop in rows]
    torch.testing.assert_close(to_logits.cpu(), logits_of, equal_nan=True)
    assert labels > 3 or len(set(exits.tolist())) > 1  # thresholds are made for three labels


@pytest.mark.parametrize("answers", [True, False])
def test_a_mask(draw: Any, count: Any, device: torch.device, answers: bool) -> None:
    """Tokens that have left are let alone. The scores of the others are read through source_rows."""
    test, bounds, frozen, leave, asking = lane(device)
    assert test.to_layers is not None
    assert test.to_logits is not None
    test.to_layers[[1, 2]] = torch.tensor([2, -1], device=device)
    frozen[1] = 1
    given = torch.tensor([1, 1, 1, 0, 1, 1], dtype=torch.bool, device=device)
    source_rows = torch.tensor([7, 6, 5, 4, 3, 2], dtype=torch.int32, device=device)
    logits = draw(8, 3)
    decide_tokens(
        test, logits, bounds, count(2), frozen, leave, asking, *alone(device), given=given, answers=answers,
        source_rows=source_rows,
    )  # fmt: skip
    left = 3 if answers else -1
    assert test.to_layers.tolist() == [left, 2, -1, 0, left, 0]
    assert frozen.tolist() == [1, 1, 0, 0, 1, 0]
    assert leave.tolist()[:2] == [True, False]
    assert asking.tolist()[:2] == [1, 1]
    answered = test.to_logits[[0, 4]]
    assert torch.equal(answered, logits[[7, 3]]) if answers else bool(answered.isnan().all())
    assert test.to_logits[[1, 2, 3, 5]].isnan().all()


def alone(device: torch.device) -> list[Tensor]:
    """The words of `lane`: every token is one."""
    return [torch.tensor(numbers, dtype=torch.int32, device=device) for numbers in ([0, 1, 2, 0, 1, 0], [1] * 6)]


def lane(device: torch.device) -> tuple[ExitTest, Tensor, Tensor, Tensor, Tensor]:
    """Rows of three, two and one token, of which two are there."""
    slots = torch.tensor([0, 3, 5], device=device)
    to_logits = torch.full((6, 3), float("nan"), device=device)
    test = ExitTest(3, slots=slots, to_logits=to_logits, to_layers=torch.zeros(6, dtype=torch.int64, device=device))
    bounds = torch.tensor([0, 3, 5, 6], dtype=torch.int32, device=device)
    frozen = torch.zeros(6, dtype=torch.uint8, device=device)
    return test, bounds, frozen, torch.zeros(3, dtype=torch.bool, device=device), bounds[:3].clone()


def test_wrong_arguments_are_refused(draw: Any, count: Any, device: torch.device) -> None:
    test, *rest = lane(device)
    bounds, logits, refused = rest[0], draw(6, 3), pytest.raises
    rest = [bounds, count(2), *rest[1:], *alone(device)]
    votes = forms_of(ExitRule(b"", (Clause("label", ">", values(1), "votes"),)))
    numbers, signals, state = draw(1, 3), draw(1, 6), draw(6, 3)
    with refused(ValueError, match="needs slots, to_logits and to_layers"):
        decide_tokens(test._replace(slots=None), logits, *rest)
    with refused(ValueError, match="there are 1 clauses, but signals or numbers is None"):
        decide_tokens(test._replace(forms=votes), logits, *rest)
    with refused(ValueError, match="remembers, but state_out is None"):
        decide_tokens(test._replace(forms=votes, numbers=numbers), logits, *rest, signals=signals)
    filled = test._replace(forms=votes, numbers=numbers, state_out=state)
    with refused(ValueError, match="of which a row whose tokens are pooled has none"):
        decide_tokens(filled, logits, *rest, signals=signals, pool="max")
    with refused(ValueError, match="over 2 tokens; expected window, max or mean, and odd"):
        decide_tokens(filled, logits, *rest, signals=signals, window=2)
