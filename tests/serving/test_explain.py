"""What every exit says of a row, and where it leaves at any threshold: as the engine itself answers."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pfengine
from pfengine.exits import Clause, DataCriterion
from pfengine.exits.criteria import entropy
from pfengine.serving import explain as explaining
from pfengine.serving.explain import describe, explain, track
from pfengine.serving.limits import Limits
from pfengine.serving.served import Knobs, Served
from pfengine.serving.server import served

from .conftest import Make, random_rows

GOOD = "a slow start, but in the end I was won over"
SCORED = {"problem_type": "regression"}


def explained(model: Served, row: Any, **knobs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The description of the criterion, and the row."""
    selection, (read,) = model.read([row], Knobs(**knobs))
    found = explain(model.engine, selection, read)  # type: ignore[arg-type]
    criterion = describe(selection.criterion, model.exits.exit_layers)
    return criterion | {"track": track(criterion, len(model.labels), [found])}, found


@pytest.fixture(scope="module")
def model(sst2: pfengine.Engine) -> Served:
    return served("sst2", sst2, Limits())


@pytest.fixture(scope="module")
def taught(make_checkpoint: Make) -> Served:
    """Its head adds a score of its own."""
    path = make_checkpoint("bert", head={"type": "linear", "learned": True}, criterion="learned", threshold=0.5)
    return served("taught", pfengine.load(path, precision="fp32"), Limits())


@pytest.fixture(scope="module")
def scorer(make_checkpoint: Make) -> Served:
    path = make_checkpoint("bert", labels=1, config=SCORED, criterion="patience:,2", threshold=2)
    return served("scorer", pfengine.load(path, precision="fp32"), Limits())


def test_probabilities_and_signal_of_every_exit(model: Served, sst2: pfengine.Engine) -> None:
    criterion, found = explained(model, GOOD)
    logits = sst2.layer_logits([GOOD])[:, 0]
    shares = np.exp(logits - logits.max(1, keepdims=True))
    expected = shares / shares.sum(1, keepdims=True)
    np.testing.assert_array_equal([exit["probabilities"] for exit in found["exits"]], expected)
    assert found["labels"] == list(sst2.labels)
    assert [exit["layer"] for exit in found["exits"]] == list(range(1, 13))
    assert [exit["computed"] for exit in found["exits"]] == list(range(1, 13))
    signals = [exit["clauses"][0] for exit in found["exits"][:-1]]
    assert [each["value"] for each in signals] == entropy(torch.from_numpy(logits[:-1])).tolist()
    threshold = np.float32(criterion["threshold"])
    assert [each["at"] for each in signals] == [each["value"] for each in signals]
    assert {each["limit"] for each in signals} == {float(threshold)}
    assert [each["holds"] for each in signals] == [each["value"] < threshold for each in signals]
    assert set(found["exits"][-1]["clauses"][0].values()) == {None}
    assert found["tokens"] == len(sst2.tokenizer.encode([(0, GOOD)])[0].ids)
    seconds = [exit["seconds"] for exit in found["exits"]]
    assert seconds == sorted(seconds)
    assert seconds[0] > 0
    assert found["full_seconds"] == seconds[-1]
    assert criterion["track"] == {"slow": 0.0, "fast": pytest.approx(np.log(2)), "power": 3.0}


CRITERIA = [
    ("model", "entropy:0.3"), ("model", "confidence:0.9,1.2"), ("model", "margin:0.8"), ("model", "energy:-3"),
    ("model", "patience:3"), ("model", "pcee:0.3,3"), ("model", "voting:1"), ("model", "beem:1.8"),
    ("model", "elbert:0.1,3"), ("model", "elbert-trend:0.1,3"), ("model", "elbert-range:0.05,2"),
    ("model", "cascadebert:0.9"), ("model", "fastbert:0.2"), ("taught", "learned:0.5"), ("scorer", "patience:2,2"),
]  # fmt: skip


@pytest.mark.parametrize(("which", "text"), CRITERIA)
def test_steps_are_the_engines_exits(request: pytest.FixtureRequest, which: str, text: str) -> None:
    """At every step, and at thresholds between and beyond them, for a row that is easy and one that is not."""
    model: Served = request.getfixturevalue(which)
    rows = [GOOD, "not bad"] if which == "model" else random_rows([9, 30], seed=5)
    for row in rows:
        criterion, found = explained(model, row, criterion=text)
        (clause,) = [each for each in criterion["clauses"] if each["knob"]]
        steps = found["steps"]
        assert len(steps) > 1
        layers = [exit["layer"] for exit in found["exits"]]
        answer = model.engine.predict([row], criterion=text)
        assert layers[found["exit"]] == answer.exit_layers[0]
        knobs = [step["threshold"] for step in steps]
        assert knobs == sorted(knobs, reverse=not clause["rising"])
        tried = [*knobs, *((a + b) / 2 for a, b in zip(knobs, knobs[1:], strict=False)), knobs[-1] + 1, knobs[0] - 1]
        if criterion["counts"]:
            tried = list(range(1, 13))
        for threshold in tried:
            expected = model.engine.predict([row], criterion=text, threshold=threshold).exit_layers[0]
            assert layers[exit_at(steps, threshold, clause["rising"])] == expected, threshold


def exit_at(steps: list[dict[str, Any]], threshold: float, rising: bool) -> int:
    """As the page finds it."""
    value, found = float(np.float32(threshold)), steps[0]["exit"]
    for step in steps:
        if step["threshold"] <= value if rising else step["threshold"] >= value:
            found = step["exit"]
    return int(found)


@pytest.mark.parametrize(("which", "text"), CRITERIA)
def test_dots_and_line_say_who_leaves(request: pytest.FixtureRequest, which: str, text: str) -> None:
    """A row leaves where its dot is on the fast side of the threshold, or where another clause holds."""
    model: Served = request.getfixturevalue(which)
    row = GOOD if which == "model" else random_rows([30], seed=5)[0]
    criterion, found = explained(model, row, criterion=text)
    place = next(i for i, each in enumerate(criterion["clauses"]) if each["knob"])
    clause = criterion["clauses"][place]
    sign, threshold = 1 if clause["rising"] else -1, criterion["threshold"]
    leaves = len(found["exits"]) - 1
    for i, exit in enumerate(found["exits"][:-1]):
        own = exit["clauses"][place]
        if clause["knob"] == "times":
            says = own["at"] >= threshold
        else:
            says = sign * own["at"] < sign * threshold and own["run"] >= clause["times"]
        if says or any(other["holds"] for k, other in enumerate(exit["clauses"]) if k != place):
            leaves = i
            break
    assert leaves == found["exit"]
    line = criterion["track"]
    for exit in found["exits"][:-1]:
        low, high = sorted((line["slow"], line["fast"]))
        assert clause["knob"] == "times" or low <= exit["clauses"][place]["at"] <= high


def test_without_a_threshold_there_are_no_steps(model: Served) -> None:
    criterion, found = explained(model, GOOD, criterion="never")
    assert (criterion["text"], criterion["threshold"], criterion["knob"], criterion["track"]) == (
        "never",
        None,
        False,
        None,
    )
    assert (found["exit"], found["steps"], found["exits"][0]["clauses"]) == (11, [], [])


def test_a_threshold_per_exit(model: Served, sst2: pfengine.Engine) -> None:
    text = "entropy:" + "/".join(["0.001"] * 5 + ["0.6"] * 7)
    criterion, found = explained(model, "not bad", criterion=text)
    assert (criterion["threshold"], criterion["knob"]) == (None, True)
    limits = [exit["clauses"][0]["limit"] for exit in found["exits"][:-1]]
    np.testing.assert_array_equal(limits, np.float32([0.001] * 5 + [0.6] * 6))
    assert found["exit"] + 1 == sst2.predict(["not bad"], criterion=text).exit_layers[0]
    assert found["steps"]


def leave_after_4(layer: int, logits: torch.Tensor, state: Any, row_ids: torch.Tensor) -> tuple[torch.Tensor, None]:
    return torch.full((len(logits),), layer >= 4), None


def test_a_criterion_that_is_code_has_no_signal() -> None:
    engine = pfengine.load("sst2", precision="fp32", criterion=leave_after_4)
    criterion, found = explained(served("sst2", engine, Limits()), GOOD)
    assert criterion["clauses"] == []
    assert (found["exit"], found["steps"]) == (3, [])


@dataclasses.dataclass(frozen=True)
class Curved(DataCriterion):
    """Its clause makes of the threshold something that is no multiple of it."""

    threshold: float

    def clauses(self, at: Any) -> tuple[Clause, ...]:
        return (Clause("entropy", "<", at.threshold**2),)


def test_a_threshold_that_no_place_on_the_track_stands_for() -> None:
    engine = pfengine.load("sst2", precision="fp32", criterion=Curved(0.4))
    _, found = explained(served("sst2", engine, Limits()), GOOD)
    assert {exit["clauses"][0]["at"] for exit in found["exits"]} == {None}
    assert found["exit"] + 1 == engine.predict([GOOD]).exit_layers[0]
    for step in found["steps"]:
        assert engine.predict([GOOD], threshold=step["threshold"]).exit_layers[0] == step["exit"] + 1


def test_of_many_labels_the_likely_ones_are_told(make_checkpoint: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explaining, "MOST_LABELS", 3)
    engine = pfengine.load(make_checkpoint("bert", labels=7, seed=2), precision="fp32", criterion="entropy:0.5")
    _, found = explained(served("m", engine, Limits()), random_rows([12])[0])
    logits = engine.layer_logits(random_rows([12]))[:, 0]
    peaks = (np.exp(logits) / np.exp(logits).sum(1, keepdims=True)).max(0)
    assert found["labels"] == [f"L{i}" for i in sorted(np.argsort(-peaks)[:3])]
    assert {len(exit["probabilities"]) for exit in found["exits"]} == {3}


@pytest.mark.slow
@pytest.mark.parametrize("own", [False, True])
def test_a_cascade(make_checkpoint: Make, tmp_path: Path, own: bool) -> None:
    """Of each model its answer, which may be that of an exit of its own; layers are counted through the models."""
    first: dict[str, Any] = {"head": "classifier", "config": {"num_hidden_layers": 2}}
    if own:
        first = {"head": "linear", "criterion": "entropy", "threshold": 0.95}
    parts = [make_checkpoint("bert", seed=2, **first), make_checkpoint("bert", head="classifier", seed=1)]
    engine = pfengine.load(pfengine.cascade(parts, tmp_path / "out", criterion="confidence:0.6"), precision="fp32")
    model, exits = served("c", engine, Limits()), set()
    for row in random_rows([3, 9, 20, 5, 12, 40, 7]):
        for threshold in (0.2, 0.5, 0.8):
            criterion, found = explained(model, row, threshold=threshold)
            answer = engine.predict([row], threshold=threshold)
            exit = found["exits"][found["exit"]]
            assert exit["computed"] == answer.exit_layers[0]
            assert exit["model"] == answer.models[0]  # type: ignore[index]
            np.testing.assert_array_equal(exit["probabilities"], answer.probabilities[0])
            exits.add(found["exit"])
            step = exit_at(found["steps"], threshold, criterion["clauses"][0]["rising"])
            assert step == found["exit"]
    assert exits == {0, 1}
    assert 0 < found["exits"][0]["seconds"] < found["exits"][1]["seconds"]
    _, full = explained(model, row, criterion="never")
    assert full["exits"][0]["seconds"] == full["full_seconds"] > 0
    (last,) = full["exits"]
    assert (last["layer"], last["model"], last["computed"]) == (engine.exit_layers[-1], 2, 5)
