"""The Past-Future head against its equations, one row and one number at a time, in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from pfengine.config import BackboneConfig, parse_backbone
from pfengine.heads import HEADS, PREFIX, Classifier, ExitHead, PastFuture
from pfengine.ops import reference

ROWS = 9


def config_of(layers: int, hidden: int, labels: int) -> BackboneConfig:
    faults: list[str] = []
    config = parse_backbone(
        {
            "model_type": "bert", "hidden_size": hidden, "num_attention_heads": 1, "num_hidden_layers": layers,
            "intermediate_size": 8, "vocab_size": 9, "max_position_embeddings": 9, "num_labels": labels,
        },
        faults,
    )  # fmt: skip
    assert config is not None
    assert not faults
    return config


def random_head(layers: int, hidden: int, labels: int, pooler: str) -> tuple[Any, dict, dict[str, torch.Tensor]]:
    config, head = config_of(layers, hidden, labels), {"type": "past-future", "pooler": pooler}
    torch.manual_seed(layers)
    shapes = PastFuture.shapes(config, head)
    return (
        config,
        head,
        {key: torch.randn(shape) / (shape[-1] ** 0.5 if len(shape) > 2 else 1) for key, shape in shapes.items()},
    )


def by_hand(states: np.ndarray, tensors: dict[str, torch.Tensor], labels: int) -> np.ndarray:
    """Logits at every layer of one row from its first tokens' states [layers, hidden]."""
    t = {key.removeprefix(PREFIX): value.double().numpy() for key, value in tensors.items()}
    layers = len(states)
    pooled = []
    for j in range(layers):
        k = j if len(t["poolers.weight"]) > 1 else 0
        pooled.append(np.tanh(t["poolers.weight"][k] @ states[j] + t["poolers.bias"][k]))

    def project(j: int, state: np.ndarray) -> np.ndarray:
        return t["projections.weight"][j] @ state + t["projections.bias"][j]

    out = []
    for i in range(layers):
        past = [project(j, pooled[j]) for j in range(i + 1)]
        guesses = [
            np.tanh(t["learners.weight"][j - 1] @ pooled[i] + t["learners.bias"][j - 1]) for j in range(i + 1, layers)
        ]
        future = [project(j, guess)[:labels] for j, guess in zip(range(i + 1, layers), guesses, strict=True)]
        gates = np.tanh(np.mean([slot[labels:] for slot in past], axis=0))
        out.append([])
        for c in range(labels):
            keep = 1 / (1 + math.exp(-(t["gate.weight"][c] @ gates + t["gate.bias"][c])))
            ahead = sum(slot[c] for slot in future)
            out[-1].append(2 * keep * sum(slot[c] for slot in past) + (2 - 2 * keep) * ahead)
    return np.array(out)


def step(head: ExitHead, layer: int, states: torch.Tensor, state: Any, answer: bool) -> tuple[Any, Any]:
    """`head.step` of first tokens [rows, H]: logits, or None, and the new state."""
    scores, state = head.step(layer, states, torch.arange(len(states) + 1, dtype=torch.int32), state, answer)
    return None if scores is None else scores.logits, state


@pytest.mark.parametrize("pooler", ["per-layer", "shared"])
@pytest.mark.parametrize(("layers", "hidden", "labels"), [(6, 48, 2), (5, 33, 3), (2, 7, 7), (1, 16, 2), (12, 40, 5)])
def test_logits_follow_the_equations(op_set: Any, pooler: str, layers: int, hidden: int, labels: int) -> None:
    config, head, tensors = random_head(layers, hidden, labels, pooler)
    states = torch.randn(layers, ROWS, hidden)
    expected = np.stack([by_hand(states[:, row].double().numpy(), tensors, labels) for row in range(ROWS)], axis=1)
    exit_head = PastFuture(op_set, config, head, tensors, torch.float32)
    state = None
    for layer in range(1, layers + 1):
        logits, state = step(exit_head, layer, states[layer - 1], state, answer=True)
        assert logits is not None
        assert (logits.dtype, logits.shape) == (torch.float32, (ROWS, labels))
        np.testing.assert_allclose(logits.numpy(), expected[layer - 1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tested", [(6,), (2, 6), (1, 3, 4, 6)])
def test_layers_that_are_not_asked_still_count_as_past(op_set: Any, tested: tuple[int, ...]) -> None:
    config, head, tensors = random_head(6, 24, 3, "per-layer")
    exit_head = PastFuture(op_set, config, head, tensors, torch.float32)
    states = torch.randn(6, ROWS, 24)

    def run(asked: tuple[int, ...]) -> dict[int, torch.Tensor]:
        state, out = None, {}
        for layer in range(1, 7):
            logits, state = step(exit_head, layer, states[layer - 1], state, answer=layer in asked)
            assert (logits is not None) == (layer in asked)
            if logits is not None:
                out[layer] = logits
        return out

    every, some = run((1, 2, 3, 4, 5, 6)), run(tested)
    assert all(torch.equal(some[layer], every[layer]) for layer in tested)


def test_state_leads_with_rows_and_compacts(op_set: Any) -> None:
    config, head, tensors = random_head(5, 24, 3, "per-layer")
    exit_head = PastFuture(op_set, config, head, tensors, torch.float32)
    states = torch.randn(5, ROWS, 24)
    stay = torch.tensor([True, False, True, True, False, False, True, False, True])
    whole, part = None, None
    for layer in range(1, 6):
        full, whole = step(exit_head, layer, states[layer - 1], whole, answer=True)
        if layer <= 2:
            part = tuple(value[stay] for value in whole)
            assert all(value.shape[0] == ROWS for value in whole)
            continue
        kept, part = step(exit_head, layer, states[layer - 1][stay], part, answer=True)
        close = (
            torch.equal if op_set is not reference else torch.allclose
        )  # plain torch sums in another order for fewer rows
        assert close(kept, full[stay])  # type: ignore[index,arg-type]


def test_bf16_keeps_projections_and_logits_in_float32(op_set: Any) -> None:
    config, head, tensors = random_head(6, 48, 3, "per-layer")
    states = torch.randn(6, ROWS, 48).bfloat16()
    expected = np.stack([by_hand(states[:, row].double().numpy(), tensors, 3) for row in range(ROWS)], axis=1)
    exit_head, state = PastFuture(op_set, config, head, tensors, torch.bfloat16), None
    for layer in range(1, 7):
        logits, state = step(exit_head, layer, states[layer - 1].bfloat16(), state, answer=True)
        assert logits is not None
        assert logits.dtype == torch.float32
        np.testing.assert_allclose(logits.numpy(), expected[layer - 1], atol=0.15)  # poolers, learners rounded


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ({"type": "past-future"}, "'head.pooler' is None; it must be one of per-layer, shared"),
        ({"type": "past-future", "pooler": "max"}, "'head.pooler' is 'max'"),
        ({"type": "past-future", "pooler": ["shared"]}, "'head.pooler' is"),
        ({"type": "past-future", "pooler": "shared", "depth": 3}, "'head.depth' is not an option of this head"),
    ],
)
def test_options_are_checked(head: dict[str, Any], message: str) -> None:
    assert any(message in fault for fault in PastFuture.config_faults(head))
    assert not PastFuture.config_faults({"type": "past-future", "pooler": "shared"})


def test_every_head_is_found_by_its_name() -> None:
    assert (HEADS["classifier"], HEADS["past-future"]) == (Classifier, PastFuture)
    assert Classifier.config_faults({"type": "classifier", "size": 1}) == ["'head.size' is not an option of this head"]


def test_classifier_answers_at_the_last_layer_only(op_set: Any) -> None:
    config, head = config_of(3, 24, 4), {"type": "classifier"}
    torch.manual_seed(0)
    tensors = {key: torch.randn(shape) for key, shape in Classifier.shapes(config, head).items()}
    classifier = Classifier(op_set, config, head, tensors, torch.float32)
    first = torch.randn(ROWS, 24)
    assert step(classifier, 1, first, None, answer=False) == (None, ())
    with pytest.raises(ValueError, match="Classifier has no exit after layer 1"):
        step(classifier, 1, first, None, answer=True)
    logits, _ = step(classifier, 3, first, (), answer=True)
    pooled = torch.tanh(
        first.double() @ tensors["bert.pooler.dense.weight"].double().T + tensors["bert.pooler.dense.bias"]
    )
    expected = pooled @ tensors["classifier.weight"].double().T + tensors["classifier.bias"]
    assert logits is not None
    np.testing.assert_allclose(logits.numpy(), expected.numpy(), atol=1e-4)
