"""A batch through all layers in one call: the answers of the layers one by one, and of each row alone, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pfengine
from pfengine import extension
from pfengine.batch import Packed
from pfengine.exits import Entropy, Replay

one_call: Any = None

if not extension.has_cpu():
    pytest.skip(extension.status(), allow_module_level=True)

Make = Callable[..., Path]
PAST_FUTURE: dict[str, Any] = {"type": "past-future", "pooler": "per-layer"}
PAPER = PAST_FUTURE | {"learner": "linear", "incorporate": "concat", "gate": "row"}
HEADS: dict[str, tuple[dict[str, Any], bool]] = {  # and whether all layers can be one call
    "authors": (PAST_FUTURE, True),
    "folded": (PAST_FUTURE | {"learner": "linear"}, True),
    "paper": (PAPER, True),
    "paper, tanh": (PAPER | {"learner": "tanh"}, True),
    "no gate": (PAST_FUTURE | {"gate": "none"}, True),
    "past only": (PAST_FUTURE | {"states": "past", "gate": "none"}, True),
    "future only": (PAST_FUTURE | {"states": "future"}, True),
    "max": (PAST_FUTURE | {"incorporate": "max"}, False),
    "linear": ({"type": "linear", "pooler": "per-layer"}, True),
    "ensemble": ({"type": "linear", "pooler": "per-layer", "combine": "ensemble"}, False),
    "classifier": ({"type": "classifier"}, True),
    "attached": ({"type": "attached", "exits": PAST_FUTURE}, True),
}


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize(("head", "native"), HEADS.values(), ids=HEADS.keys())
def test_every_head(make_checkpoint: Make, random_rows: Any, head: dict, native: bool, precision: str) -> None:
    engine = pfengine.load(make_checkpoint("bert", head=head), precision=precision, criterion="never")
    assert (engine.model.native is not None) == native
    rows = random_rows([1, 2, 9, 33, 70])
    criteria = ["never"]
    if head["type"] != "classifier":
        criteria += ["entropy:0.6", "entropy:1.0", "entropy:0", "patience:1"]
    for criterion in criteria:
        check(engine, rows, criterion)


@pytest.mark.parametrize("family", ["roberta", "albert"])
def test_every_family(make_checkpoint: Make, random_rows: Any, family: str) -> None:
    engine = pfengine.load(make_checkpoint(family), precision="fp32", criterion="never")
    assert engine.model.native is not None
    for criterion in ("never", "entropy:0.8"):
        check(engine, random_rows([1, 17, 64]), criterion)


def check(engine: pfengine.Engine, rows: list, criterion: Any) -> None:
    whole, answers = engine.model, {}
    for name, model in {"one call": whole, "layer by layer": replace(whole, native=None)}.items():
        engine.model = model
        try:
            answers[name] = engine.predict(rows, criterion=criterion)
            answers[f"{name}, threes"] = engine.predict(rows, criterion=criterion, batch_size=3)
            alone = [engine.predict([row], criterion=criterion) for row in rows]
        finally:
            engine.model = whole
        for i, answer in enumerate(alone):
            assert answer.exit_layers[0] == answers["one call"].exit_layers[i]
            np.testing.assert_array_equal(answer.logits[0], answers["one call"].logits[i])
    for answer in answers.values():
        np.testing.assert_array_equal(answer.exit_layers, answers["one call"].exit_layers)
        np.testing.assert_array_equal(answer.logits, answers["one call"].logits)


@pytest.mark.parametrize("head", ["authors", "linear"])
def test_rows_leave_everywhere(make_checkpoint: Make, random_rows: Any, head: str) -> None:
    engine = pfengine.load(make_checkpoint("bert", head=HEADS[head][0], exit_layers=(1, 2, 4, 5)), criterion="never")
    rows = random_rows([3, 9, 1, 20, 64, 5, 7, 2, 11, 6, 1, 30])
    for layers in ([1, 2, 3, 4, 5, 5, 4, 3, 2, 1, 1, 3], [1] * 12, [5] * 12, [4] * 11 + [5], [1] * 11 + [5]):
        criterion = Replay(layers)
        expected = [4 if layer == 3 else layer for layer in layers]
        assert engine.predict(rows, criterion=criterion).exit_layers.tolist() == expected
        together = engine.predict(rows, criterion=criterion)
        engine.model, whole = replace(engine.model, native=None), engine.model
        np.testing.assert_array_equal(engine.predict(rows, criterion=criterion).logits, together.logits)
        engine.model = whole


def test_replay_and_exits_in_use(make_checkpoint: Make, random_rows: Any) -> None:
    engine = pfengine.load(make_checkpoint("bert", exit_layers=(2, 4, 5)), criterion="never")
    (row,) = random_rows([7])
    left = [int(engine.predict([row], criterion=f"replay:{layer}").exit_layers[0]) for layer in (1, 2, 3, 4, 5)]
    assert left == [2, 2, 4, 4, 5]


def test_a_criterion_of_ones_own_is_asked(make_checkpoint: Make, random_rows: Any) -> None:
    class Third(Entropy):
        def __call__(self, layer: int, logits: torch.Tensor, state: Any, row_ids: torch.Tensor) -> Any:
            return torch.full_like(row_ids, layer == 3, dtype=torch.bool), None

    engine = pfengine.load(make_checkpoint("bert"), criterion="never")
    assert engine.predict(random_rows([5]), criterion=Third(0.5)).exit_layers.tolist() == [3]


def test_no_rows(make_checkpoint: Make) -> None:
    model = pfengine.load(make_checkpoint("bert"), criterion="never").model
    none = np.empty(0, np.int64)
    logits, layers = np.full((1, 3), 7, np.float32), none
    packed = Packed(none, none, none, np.zeros(1, np.int32), none)
    model.native(packed, one_call.Rule(bytes(5), 0.0, None), 4, none, logits[:0], layers)
    assert (logits == 7).all()


def test_wrong_shapes_are_refused(make_checkpoint: Make) -> None:
    model = pfengine.load(make_checkpoint("bert"), criterion="never").model
    good = {
        "ids": np.arange(3),
        "positions": np.array([0, 1, 0]),
        "types": np.zeros(3, np.int64),
        "cu_seqlens": np.array([0, 2, 3], np.int32),
        "rule": one_call.Rule(bytes(5), 0.0, np.array([3, 5])),
        "open_from": 1,
        "places": np.array([1, 0]),
        "logits": np.empty((2, 3), np.float32),
        "exit_layers": np.empty(2, np.int64),
    }

    def run(arguments: dict[str, Any]) -> None:
        fields = {name: arguments[name] for name in ("ids", "positions", "types", "cu_seqlens")}
        rest = {name: value for name, value in arguments.items() if name not in fields}
        model.native(Packed(**fields, row_ids=arguments["places"]), **rest)

    run(good)
    for wrong, error, text in [
        ({"types": np.arange(0)}, ValueError, "types has 0 numbers, expected 3"),
        ({"positions": np.arange(6)[::2]}, TypeError, "incompatible function arguments"),
        ({"cu_seqlens": np.array([0, 2, 3])}, TypeError, "incompatible function arguments"),
        ({"cu_seqlens": np.array([0, 3], np.int32)}, ValueError, "cu_seqlens has 2 numbers, expected 3"),
        ({"cu_seqlens": np.array([0, 2, 4], np.int32)}, ValueError, "cu_seqlens"),
        ({"cu_seqlens": np.array([0, 3, 3], np.int32)}, ValueError, "cu_seqlens does not rise at row 1"),
        ({"places": np.array([0, 2])}, ValueError, "row 1 has the place 2, expected 0 to 1"),
        ({"places": np.array([-1, 0])}, ValueError, "row 0 has the place -1, expected 0 to 1"),
        ({"logits": np.empty((2, 2), np.float32)}, ValueError, "logits has 4 numbers, expected 6"),
        ({"logits": np.empty((2, 3))}, TypeError, "incompatible function arguments"),
        ({"rule": one_call.Rule(bytes(4), 0.0, None)}, ValueError, "tested has 4 numbers, expected 5"),
        ({"rule": one_call.Rule(bytes(5), 0.0, np.array([3]))}, ValueError, "layers has 1 numbers, expected 2"),
        ({"ids": np.arange(3) - 1}, IndexError, "token id -1 of token 0 is outside its table"),
    ]:
        with pytest.raises(error, match=text):
            run(good | wrong)
