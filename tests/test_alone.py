"""A row alone takes a way of its own, all layers in one call; its answer is that of any batch, bit for bit."""

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
from pfengine.exits import Entropy
from pfengine.ops import alone

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
@pytest.mark.parametrize(("head", "one_call"), HEADS.values(), ids=HEADS.keys())
def test_every_head(make_checkpoint: Make, random_rows: Any, head: dict, one_call: bool, precision: str) -> None:
    engine = pfengine.load(make_checkpoint("bert", head=head), precision=precision, criterion="never")
    assert (engine.model.alone is not None) == one_call
    rows = random_rows([1, 2, 9, 33, 70])
    criteria = ["never"]
    if head["type"] != "classifier":
        criteria += ["entropy:0.6", "entropy:1.0", "entropy:0", "patience:1"]
    for criterion in criteria:
        check(engine, rows, criterion)


@pytest.mark.parametrize("family", ["roberta", "albert"])
def test_every_family(make_checkpoint: Make, random_rows: Any, family: str) -> None:
    engine = pfengine.load(make_checkpoint(family), precision="fp32", criterion="never")
    assert engine.model.alone is not None
    for criterion in ("never", "entropy:0.8"):
        check(engine, random_rows([1, 17, 64]), criterion)


def check(engine: pfengine.Engine, rows: list, criterion: Any) -> None:
    together = engine.predict(rows, criterion=criterion)
    layer_by_layer = replace(engine.model, alone=None)
    for i, row in enumerate(rows):
        whole = engine.model
        one = engine.predict([row], criterion=criterion)
        try:
            engine.model = layer_by_layer
            other = engine.predict([row], criterion=criterion)
        finally:
            engine.model = whole
        for answer in (one, other):
            assert answer.exit_layers[0] == together.exit_layers[i]
            np.testing.assert_array_equal(answer.logits[0], together.logits[i])


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


def test_wrong_shapes_are_refused(make_checkpoint: Make) -> None:
    model = pfengine.load(make_checkpoint("bert"), criterion="never").model
    three, none = np.arange(3), np.arange(0)
    with pytest.raises(ValueError, match=r"types is int64 \[0\], expected int64 \[3\]"):
        alone.run(model.alone, three, three, none, bytes(5), 0.0, 9)
    with pytest.raises(ValueError, match="4 layers for 3 tokens, expected 5"):
        alone.run(model.alone, three, three, three * 0, bytes(4), 0.0, 9)
    with pytest.raises(ValueError, match="5 layers for 0 tokens"):
        alone.run(model.alone, none, none, none, bytes(5), 0.0, 9)
    with pytest.raises(IndexError, match="token id -1 of token 0 is outside its table"):
        alone.run(model.alone, three - 1, three, three * 0, bytes(5), 0.0, 9)
