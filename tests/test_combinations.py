"""Every head of the table with every criterion of the table, on every kind of output: it runs, or is refused in words.

Both tables are read when the tests are collected, so that a new entry is tested with all of the other table.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pfengine
from pfengine import cli, engine, extension
from pfengine.api import Engine
from pfengine.evaluation import calibrated
from pfengine.exits import CRITERIA, DataCriterion, Outputs
from pfengine.exits.calibration import Simulation, candidates_of, exits_taken
from pfengine.exits.text import fitting, parse, parse_form
from pfengine.heads import HEADS, register
from pfengine.ops.cpu_model import CpuModel
from pfengine.training.criterion import check_criterion

from .heads.examples import Knowing, examples, exit_layers
from .pairwise import every, pairs_first

OUTPUTS = {
    "labels": (3, "single_label_classification"),
    "several labels": (3, "multi_label_classification"),
    "score": (1, "regression"),
}
EXAMPLES = examples() | {"knowing": {"type": "knowing"}}
CASES = pairs_first(
    every(head=EXAMPLES, criterion=sorted(CRITERIA), outputs=OUTPUTS), lambda case: tuple(case.values())
)
LENGTHS = [1, 2, 2, 3, 5, 8, 8, 13, 21]
WORDS = ["a", "slow", "good", "bad", "film", "and"]
TEXTS = [" ".join(WORDS[i % 6] for i in range(start, start + 1 + start % 7)) for start in range(40)]
Make = Callable[..., Path]


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    register(Knowing)
    yield
    del HEADS["knowing"]


def made(make: Make, name: str, outputs: str, **fields: Any) -> Path:
    labels, problem = OUTPUTS[outputs]
    head, config = EXAMPLES[name], {"problem_type": problem}
    return make(labels=labels, head=head, config=config, system="any", exit_layers=exit_layers(head), **fields)


def outputs_of(loaded: Engine) -> Outputs:
    return pfengine.per_row.own_exits(loaded.checkpoint).outputs


def example(name: str, rows: int, outputs: Outputs) -> str:
    """A text of this criterion, such that it fits the outputs if any of its texts does."""
    if name in ("never", "replay"):
        return name if name == "never" else "replay:" + ",".join(str(1 + i % 5) for i in range(rows))
    texts = [repr(parse_form(text)) for text in (name, f"{name}:,0.1") if accepted(text)]
    fits = [text for text in texts if parse(text).misfit(outputs) is None]
    return (fits or texts)[0]


def accepted(text: str) -> bool:
    try:
        parse_form(text)
    except pfengine.ConfigError:
        return False
    return True


def one_sentence(error: pytest.ExceptionInfo[pfengine.ConfigError], name: str) -> None:
    text = str(error.value)
    assert "\n" not in text
    if "has no exit before its last layer: it runs at full depth, with criterion 'never'" not in text:
        assert text.startswith(f"criterion {name}")
        assert "; criteria that fit: " in text


class Counting:
    """A carrier whose flights count how often Python is returned to from them."""

    def __init__(self, carrier: Any) -> None:
        self.carrier, self.flights, self.returns = carrier, 0, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.carrier, name)

    def start(self, *given: Any) -> Any:
        self.flights += 1
        flight, counting = self.carrier.start(*given), self

        class Flight:
            def __getattr__(self, name: str) -> Any:
                return getattr(flight, name)

            def advance(self, *given: Any, **more: Any) -> Any:
                counting.returns += 1
                return flight.advance(*given, **more)

        return Flight()


def at_its_median(criterion: str, loaded: Engine, rows: list[Any]) -> str:
    """The criterion at a threshold where some of these rows leave early, if there is one."""
    rule = parse(criterion)
    if not isinstance(rule, DataCriterion) or rule.threshold is None or outputs_of(loaded).tags:
        return criterion
    logits, learned = loaded.layer_scores(rows)
    found = candidates_of(rule, logits, loaded.exit_layers, learned)
    return repr(rule.with_threshold(found[len(found) // 2])) if found else criterion


@pytest.mark.parametrize(("name", "criterion", "outputs"), CASES)
def test_it_runs_or_is_refused(
    make_checkpoint: Make, random_rows: Any, name: str, criterion: str, outputs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(**options: Any) -> Path:
        return make_checkpoint("bert", **options)

    path = made(make, name, outputs, criterion="never")
    rows = random_rows(LENGTHS)
    loaded = pfengine.load(path, precision="fp32")
    text = example(criterion, len(rows), outputs_of(loaded))
    exits = len(loaded.exit_layers) > 1
    if criterion != "never" and (not exits or parse(text).misfit(outputs_of(loaded)) is not None):
        assert not exits or criterion not in fitting(outputs_of(loaded))
        for call in (lambda: pfengine.load(path, criterion=text), lambda: loaded.predict(rows, criterion=text)):
            with pytest.raises(pfengine.ConfigError) as error:
                call()
            one_sentence(error, criterion)
        return
    text = at_its_median(text, loaded, rows)
    chosen = loaded.choose(criterion=text)
    alone = [loaded.predict([row], criterion=text) for row in rows] if criterion != "replay" else []
    carrier = Counting(loaded.model.carrier)
    monkeypatch.setattr(loaded, "model", dataclasses.replace(loaded.model, carrier=carrier))  # type: ignore[arg-type]
    monkeypatch.setattr(engine, "exits", pytest.fail)
    out = loaded.predict(rows, criterion=text)
    assert carrier.returns == carrier.flights == 1, "one call per batch, whatever the criterion"
    if extension.has_cpu() and loaded.model.head.prepared_exits() is not None:
        assert isinstance(carrier.carrier, CpuModel), "the fast way"
    for i, own in enumerate(alone):
        tokens = own.exit_layers.shape[1:] and own.exit_layers.shape[1]
        places = (i, slice(tokens)) if tokens else (i,)
        np.testing.assert_array_equal(out.exit_layers[places], own.exit_layers[0])
        np.testing.assert_array_equal(out.logits[places], own.logits[0])
    if not outputs_of(loaded).tags and isinstance(chosen, DataCriterion):
        logits, learned = loaded.layer_scores(rows)
        if criterion == "replay":
            given = [1 + i % 5 for i in range(len(rows))]
            assert out.exit_layers.tolist() == [min(layer for layer in loaded.exit_layers if layer >= i) for i in given]
        else:
            expected = exits_taken(chosen, logits, loaded.exit_layers, learned=learned)
            np.testing.assert_array_equal(out.exit_layers, expected)


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("rows") / "rows.txt"
    file.write_text("".join(text + "\n" for text in TEXTS))
    return file


@pytest.mark.parametrize(
    ("name", "criterion", "outputs"),
    [
        case if i % 9 == 0 else pytest.param(*case.values, marks=[*case.marks, pytest.mark.slow])
        for i, case in enumerate(CASES)
    ],
)
def test_it_is_calibrated_and_trained_or_refused(
    make_text_checkpoint: Make,
    held_out: Path,
    tmp_path: Path,
    name: str,
    criterion: str,
    outputs: str,
    monkeypatch: Any,
) -> None:
    """Before any training, what it would write is checked by the same rule."""
    monkeypatch.setattr(calibrated, "check_precisions", lambda *_: {})  # which takes most of the time
    path = made(make_text_checkpoint, name, outputs, criterion="never")
    loaded = pfengine.load(path, precision="fp32")
    kinds, head, exits = outputs_of(loaded), EXAMPLES[name], len(loaded.exit_layers) > 1
    text = example(criterion, 0, kinds) if criterion != "replay" else "replay:1"
    rule = parse(text)
    form = rule.form if isinstance(rule, DataCriterion) else text
    fits = exits and rule.misfit(kinds) is None
    trains = criterion == "never" or (fits and criterion != "replay")
    if trains:
        check_criterion(form, head, loaded.model.config)
    else:
        with pytest.raises(pfengine.ConfigError) as error:
            check_criterion(form, head, loaded.model.config)
        assert "\n" not in str(error.value)
    if not trains or criterion == "never" or kinds.tags:  # tagged words have tests of their own
        with pytest.raises(pfengine.ConfigError) as error:
            pfengine.calibrate(path, held_out, criterion=form, out=tmp_path / "copy")
        assert "\n" not in str(error.value)
        return
    found = pfengine.calibrate(path, held_out, criterion=form, out=tmp_path / "copy")
    again = pfengine.load(tmp_path / "copy", precision="fp32")
    assert again.checkpoint.manifest.criterion == found.criterion == form
    for point in found.table[::3]:
        assert again.predict(TEXTS, threshold=point["threshold"]).layer_speedup == pytest.approx(point["layer_speedup"])


def test_on_the_command_line(make_text_checkpoint: Make, monkeypatch: Any, capsys: Any) -> None:
    path = made(make_text_checkpoint, "linear", "score", criterion="never")
    for text, code in (("patience:1,0.5", 0), ("entropy:0.3", 2), ("learned:0.3", 2)):
        monkeypatch.setattr(sys, "argv", ["pfengine", "classify", str(path), "a film", "--criterion", text])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == code
        err = capsys.readouterr().err
        assert code == 0 or "criteria that fit: never, patience" in err


def test_a_simulation_takes_every_criterion_that_is_data() -> None:
    """So that a new one is searched for thresholds too; tokens have tests of their own."""
    draw = np.random.default_rng(0)
    logits = draw.standard_normal((4, 30, 3)).astype(np.float32)
    learned = draw.random((4, 30)).astype(np.float32)
    for name, kind in CRITERIA.items():
        if name in ("never", "replay") or kind.tags:
            continue
        rule = parse_form(name)
        assert isinstance(rule, DataCriterion)
        taken = Simulation(logits, [1, 2, 3, 4], learned).exits(rule)
        assert set(taken) <= {1, 2, 3, 4}
