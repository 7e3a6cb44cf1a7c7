"""A criterion from outside the package: parsed, calibrated with a guarantee, saved, loaded, run as data, listed."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pfengine
from pfengine import engine as loop
from pfengine.exits import CRITERIA, Binding, Clause, Criterion, DataCriterion, Entropy, TokenRule, parse, register
from pfengine.exits.calibration import exits_taken
from pfengine.ops.rule import ExitRule


@dataclass(frozen=True)
class Apart(DataCriterion):
    """Leave where the two best labels are at least `threshold` apart at `times` consecutive exits."""

    name = "apart"
    threshold: float
    times: int = 2

    def clauses(self, at: Binding) -> tuple[Clause, ...]:
        return (Clause("margin", ">=", at.threshold, "running", times=at(self.times)),)


class Late(Criterion):
    """Not data: a class that is called."""

    name = "late"

    def __init__(self, threshold: float = 2) -> None:
        self.threshold = threshold

    def __call__(self, layer: int, logits: torch.Tensor, state: Any, row_ids: torch.Tensor) -> Any:
        return torch.full_like(row_ids, layer > self.threshold, dtype=torch.bool), None

    def __repr__(self) -> str:
        return f"late:{self.threshold:g}"


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    register(Apart)
    register(Late)
    yield
    del CRITERIA["apart"], CRITERIA["late"]


def test_from_text_to_a_guarantee_and_back(
    make_text_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, texts = tmp_path / "checkpoint", [" ".join(["film", "slow", "good", "bad"][: 1 + i % 4]) for i in range(80)]
    shutil.copytree(make_text_checkpoint(labels=2), path)
    (tmp_path / "held.txt").write_text("\n".join(texts) + "\n")
    found = pfengine.calibrate(path, tmp_path / "held.txt", criterion="apart:,3", agreement=0.7, confidence=0.8)
    assert found.criterion == "apart:,3"
    assert found.guarantee is not None
    assert found.guarantee.threshold == found.threshold

    engine = pfengine.load(path, precision="fp32")
    assert engine.criterion == Apart(found.threshold, 3)  # type: ignore[arg-type]
    assert repr(engine.choose(criterion="apart")) == repr(engine.criterion)
    assert repr(engine.choose(criterion="apart", threshold=0.25)) == "apart:0.25,3"
    assert repr(engine.choose(criterion="apart:0.25")) == "apart:0.25"
    ran: list[Any] = []
    run = loop.run
    monkeypatch.setattr(loop, "run", lambda m, p, criterion, a: (ran.append(criterion), run(m, p, criterion, a)))
    out = engine.predict(texts, threshold=0.05)
    assert all(isinstance(rule, ExitRule) for rule in ran), "as data: nothing of Python is asked who leaves"
    expected = exits_taken(Apart(0.05, 3), engine.layer_logits(texts), engine.exit_layers)
    np.testing.assert_array_equal(out.exit_layers, expected)
    assert 5 > out.exit_layers.min() >= 3

    with pytest.raises(pfengine.ConfigError, match=r"one of apart, beem, .* late, .* imported first"):
        parse("aparte:0.3")
    del CRITERIA["apart"]
    with pytest.raises(pfengine.CheckpointError, match="criterion 'apart:,3' is unknown"):
        pfengine.load(path)
    register(Apart)


def test_a_class_that_is_called_is_parsed_too(make_checkpoint: Callable[..., Path], random_rows: Any) -> None:
    engine = pfengine.load(make_checkpoint("bert"), criterion="late:3")
    assert type(engine.criterion) is Late
    assert engine.predict(random_rows([3, 5])).exit_layers.tolist() == [4, 4]
    assert type(parse("late")) is Late
    with pytest.raises(pfengine.ConfigError, match="'soon' is not a number"):
        parse("late:soon")
    with pytest.raises(pfengine.ConfigError, match="criterion late:3 takes no thresholds per row"):
        engine.predict(random_rows([3, 5]), threshold=[1, 2])


def test_what_its_clauses_need_is_seen(make_checkpoint: Callable[..., Path]) -> None:
    """Where the class does not say so itself."""

    @dataclass(frozen=True)
    class Hidden(Apart):
        def clauses(self, at: Binding) -> tuple[Clause, ...]:
            return (Clause("learned", "<", at.threshold),)

    @dataclass(frozen=True)
    class Tokens(Apart):
        def tokens(self) -> TokenRule:
            return TokenRule("row")

    for kind, message in ((Hidden, "compares a learned score"), (Tokens, "reads tokens")):
        with pytest.raises(pfengine.ConfigError, match=message):
            pfengine.load(make_checkpoint("bert"), criterion=kind(0.3))


def test_names_that_are_taken_or_are_none() -> None:
    register(Apart)  # as when its module is loaded again

    class Thief(Entropy):
        name = "entropy"

    class Nameless(Entropy):
        pass

    class Colon(Entropy):
        name = "a:b"

    for kind, message in ((Thief, "is pfengine.exits.criteria.Entropy already"), (Nameless, "None"), (Colon, "'a:b'")):
        with pytest.raises(ValueError, match=message if kind is not Nameless else "Nameless.name is None"):
            register(kind)
    with pytest.raises(TypeError, match="is no subclass of Criterion"):
        register(Entropy(0.3))  # type: ignore[type-var]
    assert CRITERIA["entropy"] is Entropy


def test_faults_of_a_class_are_said() -> None:
    @dataclass
    class Loose(DataCriterion):
        threshold: float

    with pytest.raises(TypeError, match="Loose must be a frozen dataclass"):
        Loose(0.3)

    @dataclass(frozen=True)
    class Empty(DataCriterion):
        name = "empty"
        threshold: float

    with pytest.raises(TypeError, match=r"Empty must define clauses\(at\)"):
        Empty(0.3).exit_rule(3, (1, 2, 3))

    @dataclass(frozen=True)
    class Wave(DataCriterion):
        name = "wave"
        threshold: float

        def clauses(self, at: Binding) -> tuple[Clause, ...]:
            return (Clause("entropy", "<", np.sin(9 * at.threshold)),)

    with pytest.raises(pfengine.ConfigError, match="define the criterion's candidates"):
        Wave(0.3).candidates(torch.zeros(3, 2, 2))
