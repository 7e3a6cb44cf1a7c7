"""A head from outside the package that is more than an op: saved, loaded, equal to the oracle, calibrated, trained."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import pfengine
from pfengine import reader
from pfengine.config import BackboneConfig
from pfengine.engine import run_reference
from pfengine.exits import parse
from pfengine.heads import HEADS, PREFIX, ExitHead, HeadState, Linear, OwnTensors, Scores, Tagger, register
from pfengine.model import build
from pfengine.ops import OpSet, Reads, reference
from pfengine.tokenization import pack


class Peak(ExitHead):
    """logits_i = W (the greatest state of any token, at any layer so far). Option `every`: of exits."""

    name = "peak"

    @staticmethod
    def config_faults(head: dict[str, Any]) -> list[str]:
        return [] if head.get("every") in (1, 2) else [f"'head.every' is {head.get('every')!r}; it must be 1 or 2"]

    @staticmethod
    def layers(config: BackboneConfig, head: dict[str, Any]) -> tuple[int, ...]:
        return tuple(range(config.num_layers, 0, -head["every"]))[::-1]

    @staticmethod
    def shapes(config: BackboneConfig, head: dict[str, Any]) -> dict[str, tuple[int, ...]]:
        return {f"{PREFIX}weight": (config.num_labels, config.hidden_size)}

    def __init__(
        self, ops: OpSet, config: BackboneConfig, head: dict[str, Any], tensors: Mapping[str, Tensor],
        dtype: torch.dtype,
    ) -> None:  # fmt: skip
        self.weight = OwnTensors(tensors)["weight"].float()

    def reads(self, layer: int) -> Reads:
        return "all"

    def step(
        self, layer: int, x: Tensor, cu_seqlens: Tensor, state: HeadState | None, answer: bool
    ) -> tuple[Scores | None, HeadState]:
        rows = x.float().split(cu_seqlens.diff().tolist())
        peak = torch.stack([row.amax(0) for row in rows])
        peak = torch.maximum(peak, state[0]) if state else peak
        # one row at a time, so that its bits do not depend on how many there are
        scores = torch.stack([row @ self.weight.T for row in peak]) if answer else None
        return None if scores is None else Scores(scores), (peak,)


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    register(Peak)
    yield
    del HEADS["peak"]


TEXTS = [" ".join(["film", "slow", "good", "bad", "it 's great"][: 1 + i % 5]) + " and" * (i % 7) for i in range(120)]


@pytest.mark.parametrize("every", [1, 2])
def test_saved_loaded_and_equal_to_the_oracle(make_text_checkpoint: Callable[..., Path], every: int) -> None:
    head, layers = {"type": "peak", "every": every}, (1, 2, 3, 4, 5) if every == 1 else (1, 3, 5)
    path = make_text_checkpoint(head=head, exit_layers=layers)
    assert json.loads((path / "pfengine.json").read_text())["head"] == head
    engine = pfengine.load(path, precision="fp32")
    assert engine.checkpoint.manifest.head == head
    signals = np.unique(torch.from_numpy(engine.layer_logits(TEXTS)[:-1]).softmax(-1).amax(-1))
    middle = signals[len(signals) // 4 : -len(signals) // 4]
    widest = np.diff(middle).argmax()  # at a signal itself, a difference in its last bit would count
    threshold = float(middle[widest : widest + 2].mean())
    rule = parse("confidence", threshold).exit_rule(engine.num_layers, engine.exit_layers)  # type: ignore[attr-defined]
    inputs = [pack([row], engine.model.config).to() for row in engine.tokenizer.encode(enumerate(TEXTS))]
    logits, exits = run_reference(build(reader.read(path), reference, torch.float32), inputs, rule)
    out = engine.predict(TEXTS, criterion="confidence", threshold=threshold)
    np.testing.assert_array_equal(out.exit_layers, exits)
    np.testing.assert_allclose(out.logits, logits, atol=1e-4, rtol=0)
    assert len(set(exits)) > 1
    alone = np.concatenate([engine.predict(t, criterion="confidence", threshold=threshold).logits for t in TEXTS[:20]])
    np.testing.assert_array_equal(out.logits[:20], alone)


def test_calibrated_with_a_guarantee_and_chosen_layers(
    make_text_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    """A second choice is again among all layers that the head can answer after."""
    path, rows = tmp_path / "checkpoint", tmp_path / "rows.txt"
    shutil.copytree(make_text_checkpoint(head={"type": "peak", "every": 2}, exit_layers=(1, 3, 5)), path)
    rows.write_text("\n".join(TEXTS) + "\n")
    for choose_layers in (False, True, True):
        found = pfengine.calibrate(path, rows, agreement=0.6, confidence=0.8, choose_layers=choose_layers)
        assert found.guarantee is not None
        assert found.guarantee.threshold == found.threshold
        assert set(found.exit_layers) <= {1, 3, 5}
        if found.layers is not None:
            assert found.layers.every.exit_layers == (1, 3, 5)
        written = json.loads((path / "pfengine.json").read_text())
        assert (written["threshold"], tuple(written["exit_layers"])) == (found.threshold, found.exit_layers)
        assert pfengine.load(path).predict(TEXTS).exit_layers.min() < 5


def test_faults_of_a_checkpoint_are_said(make_text_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    shutil.copytree(make_text_checkpoint(head={"type": "peak", "every": 2}, exit_layers=(1, 3, 5)), path)
    written = json.loads((path / "pfengine.json").read_text())
    for change, message in [
        ({"head": {"type": "peak", "every": 3}}, "'head.every' is 3; it must be 1 or 2"),
        ({"exit_layers": [2, 5]}, "'exit_layers' has 2, but this head answers after 1, 3, 5 only"),
        (
            {"head": {"type": "peek"}},
            "'head.type' is 'peek'; it must be one of attached, attentive, classifier, linear, mixed, ",
        ),
    ]:
        (path / "pfengine.json").write_text(json.dumps(written | change))
        with pytest.raises(pfengine.CheckpointError, match=re.escape(message)):
            pfengine.load(path)
    (path / "pfengine.json").write_text(json.dumps(written))
    del HEADS["peak"]
    with pytest.raises(pfengine.CheckpointError, match=r"token-classifier, or one of your own, whose module"):
        pfengine.load(path)
    register(Peak)


def test_a_score_that_is_not_given_is_missed(make_text_checkpoint: Callable[..., Path]) -> None:
    class Silent(Peak):
        name = "silent"

        @staticmethod
        def learns(head: dict[str, Any]) -> bool:
            return True

    register(Silent)
    try:
        engine = pfengine.load(make_text_checkpoint(head={"type": "silent", "every": 1}), criterion="never")
        with pytest.raises(TypeError, match="Silent learns a score, and gives none after layer 1"):
            engine.layer_scores(TEXTS)
    finally:
        del HEADS["silent"]


def test_names_that_are_taken_and_classes_that_lack_something() -> None:
    register(Peak)  # as when its module is loaded again

    class Thief(Peak):
        name = "linear"

    class Nameless(Peak):
        pass

    class Empty(ExitHead):
        name = "empty"

    class Sure(Tagger):
        name = "sure"

        @staticmethod
        def learns(head: dict[str, Any]) -> bool:
            return True

    wrong: list[tuple[Any, type[Exception], str]] = [
        (Thief, ValueError, "the head 'linear' is pfengine.heads.linear.Linear already; choose another name"),
        (Nameless, ValueError, "Nameless.name is None; it must be a string such as"),
        (Empty, TypeError, "Empty must define __init__, shapes, step"),
        (Sure, TypeError, "Sure scores tokens; only heads that score rows may add a learned score"),
        (parse, TypeError, "is no subclass of ExitHead"),
    ]
    for kind, error, message in wrong:
        with pytest.raises(error, match=re.escape(message)):
            register(kind)
    assert HEADS["linear"] is Linear
