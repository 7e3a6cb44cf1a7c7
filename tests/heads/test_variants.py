"""All forms of the Past-Future and linear heads against their equations in float64, one row at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from pfengine.config import BackboneConfig
from pfengine.heads import HEADS, PREFIX, Linear, PastFuture
from pfengine.ops import reference

from ..conftest import OP_SETS, find_op_set
from .test_past_future import ROWS, config_of, step
from .variants import LINEAR, MIXED, PAST_FUTURE, forms, of_states

LAYERS, HIDDEN, LABELS = 5, 13, 3
Tensors = dict[str, torch.Tensor]


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


def random_tensors(head: dict[str, Any], config: BackboneConfig) -> Tensors:
    torch.manual_seed(7)
    shapes = HEADS[head["type"]].shapes(config, head)
    return {k: torch.randn(s) / (s[-1] ** 0.5 if k.endswith("weight") else 2) for k, s in shapes.items()}


def lstm(states: np.ndarray, t: dict[str, np.ndarray], which: str) -> np.ndarray:
    h = c = np.zeros(states.shape[1])
    for s in states:
        z = t[f"{which}.input.weight"] @ s + t[f"{which}.input.bias"] + t[f"{which}.hidden.weight"] @ h
        i, f, g, o = np.split(z + t[f"{which}.hidden.bias"], 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
    return h


def pool(kind: str, states: np.ndarray, t: dict[str, np.ndarray], which: str) -> np.ndarray:
    if kind == "max":
        return states.max(0)
    if kind == "avg":
        return states.mean(0)
    if kind == "lstm":
        return lstm(states, t, which)
    return softmax(states @ states[-1] / np.sqrt(states.shape[1])) @ states


def state_of(head: dict[str, Any], t: dict[str, np.ndarray], layer: int, first: np.ndarray) -> np.ndarray:
    if head["pooler"] == "none":
        return first
    k = 0 if head["pooler"] == "shared" else layer
    return np.tanh(t["poolers.weight"][k] @ first + t["poolers.bias"][k])


def past_future_by_hand(head: dict[str, Any], tensors: Tensors, first: np.ndarray) -> np.ndarray:
    """Logits at every layer of one row; first: [layers, H]."""
    t = {key.removeprefix(PREFIX): value.double().numpy() for key, value in tensors.items()}
    kind, n = head["incorporate"], len(first)
    states = [state_of(head, t, j, first[j]) for j in range(n)]
    out = []
    for i in range(n):
        read = range(i + 1) if head["states"] != "future" else range(i, i + 1)
        guesses = {}
        if head["states"] != "past":
            for j in range(i + 1, n):
                guess = t["learners.weight"][j - 1] @ states[i] + t["learners.bias"][j - 1]
                guesses[j] = np.tanh(guess) if head["learner"] == "tanh" else guess
        if kind == "concat-shared":
            project = [t["projections.weight"][j] for j in range(n)]
            past = sum(project[j] @ states[j] + t["projections.bias"][j] for j in read)
            future = sum((project[j] @ g + t["projections.bias"][j])[:LABELS] for j, g in guesses.items())
        elif kind == "concat":
            if head["states"] == "future":
                past = t["past.weight"][i] @ states[i] + t["past.bias"][i]
            else:
                past = sum(t["past.weight"][i * (i + 1) // 2 + j] @ states[j] for j in read) + t["past.bias"][i]
            pairs = [(a, b) for a in range(n) for b in range(a + 1, n)]
            future = sum(t["future.weight"][pairs.index((i, j))] @ g for j, g in guesses.items())
            future = future + t["future.bias"][i] if guesses else 0
        else:
            past = t["past.weight"][i] @ pool(kind, np.array([states[j] for j in read]), t, "past_lstm")
            past = past + t["past.bias"][i]
            future = 0
            if guesses:
                pooled = pool(kind, np.array(list(guesses.values())), t, "future_lstm")
                future = t["future.weight"][i] @ pooled + t["future.bias"][i]
        a, u = past[:LABELS], past[LABELS:]
        if head["gate"] == "none":
            out.append(a + future)
        elif kind == "concat-shared":
            keep = sigmoid(t["gate.weight"] @ np.tanh(u / len(read)) + t["gate.bias"])
            out.append(2 * keep * a + (2 - 2 * keep) * future)
        else:
            keep = sigmoid(u) if guesses else 1.0
            out.append(keep * a + (1 - keep) * future)
    return np.array(out)


def linear_by_hand(head: dict[str, Any], tensors: Tensors, first: np.ndarray) -> np.ndarray:
    t = {key.removeprefix(PREFIX): value.double().numpy() for key, value in tensors.items()}
    logits = np.array([
        t["classifiers.weight"][j] @ state_of(head, t, j, first[j]) + t["classifiers.bias"][j]
        for j in range(len(first))
    ])  # fmt: skip
    p = np.array([softmax(row) for row in logits])
    out = []
    for i in range(len(first)):
        if head.get("combine", "none") == "none":
            out.append(logits[i])
        elif head["combine"] == "ensemble":
            out.append(np.log(p[: i + 1].mean(0)))
        else:
            votes = np.bincount(logits[: i + 1].argmax(1), minlength=LABELS)
            out.append(np.log((votes + p[i]) / (i + 2)))
    return np.array(out)


def mixed_by_hand(head: dict[str, Any], tensors: Tensors, first: np.ndarray) -> np.ndarray:
    t = {key.removeprefix(PREFIX): value.double().numpy() for key, value in tensors.items()}
    states = [state_of(head, t, j, first[j]) for j in range(len(first))]
    out: list[np.ndarray] = []
    for c, layer in enumerate(head["layers"]):
        mixed = sum(t["mix.weight"][c, j] * states[j] for j in range(layer))
        logits = t["classifiers.weight"][c] @ mixed + t["classifiers.bias"][c]
        if head["previous"] and c:
            logits = logits + t["previous.weight"][c][:, : c * LABELS] @ np.concatenate(out)
        out.append(logits / np.exp(t["log_temperatures"][c]))
    return np.array(out)


BY_HAND = {"past-future": past_future_by_hand, "linear": linear_by_hand, "mixed": mixed_by_hand}


def step_through(head: Any, states: torch.Tensor, layers: Sequence[int] | None = None) -> np.ndarray:
    """The logits after some layers, or after all."""
    state, out = None, []
    for layer in range(1, len(states) + 1):
        answer = layers is None or layer in layers
        logits, state = step(head, layer, states[layer - 1], state, answer)
        if not answer:
            assert logits is None
            continue
        assert (logits.dtype, logits.shape) == (torch.float32, (ROWS, LABELS))
        out.append(logits.numpy())
    return np.array(out)


@pytest.mark.parametrize(("head", "ops"), forms(of_states(PAST_FUTURE + LINEAR + MIXED), ops=OP_SETS))
def test_every_form_follows_its_equations(head: dict[str, Any], ops: str) -> None:
    op_set = find_op_set(ops)
    config = config_of(LAYERS, HIDDEN, LABELS)
    kind = HEADS[head["type"]]
    assert not kind.config_faults(head)
    tensors = random_tensors(head, config)
    states = torch.randn(LAYERS, ROWS, HIDDEN)
    rows = [BY_HAND[head["type"]](head, tensors, states[:, row].double().numpy()) for row in range(ROWS)]
    expected = np.stack(rows, axis=1)
    ours = step_through(kind(op_set, config, head, tensors, torch.float32), states, kind.layers(config, head))
    np.testing.assert_allclose(ours, expected, atol=2e-5, rtol=2e-5)


FOLDING = [h for h in PAST_FUTURE if h["states"] != "past" and h["incorporate"] in ("concat", "concat-shared", "avg")]


@pytest.mark.parametrize(("head", "ops"), forms(of_states(FOLDING), ops=OP_SETS[:2]))
def test_folded_equals_unfolded(head: dict[str, Any], ops: str) -> None:
    """fp32 on both sides: two roundings of sums of a few dozen products apart."""
    cpu_ops = find_op_set(ops)
    config = config_of(LAYERS, HIDDEN, LABELS)
    tensors = random_tensors(head, config)
    states = torch.randn(LAYERS, ROWS, HIDDEN)
    folded = PastFuture(cpu_ops, config, head, tensors, torch.float32)
    assert bool(folded.future.folded) == (head["learner"] == "linear"), "a tanh in between cannot be folded"
    unfolded = PastFuture(cpu_ops, config, head, tensors, torch.float32, fold=False)
    assert not unfolded.future.folded
    np.testing.assert_allclose(step_through(folded, states), step_through(unfolded, states), atol=1e-5, rtol=1e-5)


FUTURE_ALONE = [h for h in PAST_FUTURE if h["states"] == "future" and h["gate"] == "none"]


@pytest.mark.parametrize(("head", "ops"), forms(of_states(FUTURE_ALONE), ops=OP_SETS))
def test_what_is_trained_is_what_answers(head: dict[str, Any], ops: str) -> None:
    """The future read from imitated states, as training does, has the bits of the future read from a state."""
    op_set = find_op_set(ops)
    config = config_of(LAYERS, HIDDEN, LABELS)
    future = PastFuture(op_set, config, head, random_tensors(head, config), torch.float32, fold=False).future
    state = torch.randn(ROWS, HIDDEN)
    for layer in range(1, LAYERS):
        assert torch.equal(future.logits(layer, state), future.read(layer, future.guesses(layer, state)))


def test_a_folded_head_does_not_keep_its_learners() -> None:
    head = {"type": "past-future", "pooler": "none", "learner": "linear", "incorporate": "concat"}
    config = config_of(LAYERS, HIDDEN, LABELS)
    folded = PastFuture(reference, config, head, random_tensors(head, config), torch.float32)
    assert not hasattr(folded.future, "learners")


@pytest.mark.parametrize("pooler", ["per-layer", "shared", "none"])
def test_a_learned_score_is_of_the_state(op_set: Any, pooler: str) -> None:
    head = {"type": "linear", "pooler": pooler, "learned": True}
    config = config_of(LAYERS, HIDDEN, LABELS)
    tensors, states = random_tensors(head, config), torch.randn(LAYERS, ROWS, HIDDEN)
    t = {key.removeprefix(PREFIX): value.double().numpy() for key, value in tensors.items()}
    linear = Linear(op_set, config, head, tensors, torch.float32)
    bounds = torch.arange(ROWS + 1, dtype=torch.int32)
    for j in range(LAYERS):
        scores, _ = linear.step(j + 1, states[j], bounds, None, True)
        pooled = np.stack([state_of(head, t, j, first) for first in states[j].double().numpy()])
        expected = sigmoid(pooled @ t["learned.weight"][0] + t["learned.bias"])
        np.testing.assert_allclose(scores.learned, expected, atol=1e-5, rtol=1e-5)


PLAIN = {"type": "linear", "pooler": "none"}
MIX = {"type": "mixed", "layers": [1, 3], "pooler": "none"}


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (PAST_FUTURE[0] | {"learner": "relu"}, "'head.learner' is 'relu'; it must be one of tanh, linear"),
        (PAST_FUTURE[0] | {"incorporate": "vote"}, "'head.incorporate' is 'vote'"),
        (PAST_FUTURE[0] | {"states": "all"}, "'head.states' is 'all'"),
        (PAST_FUTURE[0] | {"gate": 1}, "'head.gate' is 1"),
        (PAST_FUTURE[0] | {"states": "past"}, "'head.gate' must be 'none' where 'head.states' is 'past'"),
        (PLAIN | {"combine": "sum"}, "'head.combine' is 'sum'; it must be one of none, ensemble, vote"),
        (PLAIN | {"pooler": None}, "'head.pooler' is None"),
        (PLAIN | {"learned": 1}, "'head.learned' is 1; it must be true or false"),
        (PLAIN | {"learned": True, "combine": "vote"}, "'head.learned' is true; it must be false where"),
        (MIX | {"layers": []}, "'head.layers' is []; it must be a list of layers"),
        (MIX | {"layers": [0, 2]}, "'head.layers' is [0, 2]; it must be a list of layers"),
        (MIX | {"layers": [3, 3]}, "'head.layers' is [3, 3]; each layer must be larger than the one before"),
        (MIX | {"layers": 3}, "'head.layers' is 3"),
        (MIX | {"previous": "yes"}, "'head.previous' is 'yes'; it must be true or false"),
        (MIX | {"pooler": "mean"}, "'head.pooler' is 'mean'; it must be one of per-layer, shared, none"),
        (MIX | {"reads": "last"}, "'head.reads' is 'last'; it must be one of first, mean, query"),
        (MIX | {"gate": "row"}, "'head.gate' is not an option of this head"),
    ],
)
def test_options_are_checked(head: dict[str, Any], message: str) -> None:
    (fault,) = HEADS[head["type"]].config_faults(head)
    assert message in fault


@pytest.mark.parametrize("head", [PLAIN, MIX], ids=["linear", "mixed"])
def test_options_that_fit(head: dict[str, Any]) -> None:
    assert not HEADS[head["type"]].config_faults(head)


def test_a_vote_is_a_majority_and_ties_go_to_the_present_layer() -> None:
    config, head = config_of(3, 2, 2), {"type": "linear", "pooler": "none", "combine": "vote"}
    weight = torch.eye(2).repeat(3, 1, 1)
    tensors = {f"{PREFIX}classifiers.weight": weight, f"{PREFIX}classifiers.bias": torch.zeros(3, 2)}
    linear, state = Linear(reference, config, head, tensors, torch.float32), None
    answers = []
    for layer, row in enumerate(([5.0, 0.0], [0.0, 0.1], [0.0, 9.0]), 1):
        logits, state = step(linear, layer, torch.tensor([row]), state, answer=True)
        assert logits is not None
        answers.append(int(logits.argmax()))
    assert answers == [0, 1, 1]
