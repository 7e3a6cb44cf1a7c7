"""The head and the system of docs/extending.md, from outside the package: trained, loaded, calibrated, converted."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import pfengine
from pfengine import cli, extension, reader
from pfengine.engine import run_reference
from pfengine.exits import parse
from pfengine.exits.calibration import exits_taken
from pfengine.heads import HEADS, PREFIX
from pfengine.heads import register as register_head
from pfengine.model import build
from pfengine.ops import reference
from pfengine.ops.cpu_model import CpuModel
from pfengine.tokenization import pack
from pfengine.training import SYSTEMS, ExitModel, System, register
from pfengine.training import run as training_run
from pfengine.training.options import Option
from pfengine.training.rows import Collator, encode

from ..heads.test_register import Peak
from .test_train import config

PAGE = (Path(__file__).parents[2] / "docs" / "extending.md").read_text()


@pytest.fixture(scope="module", autouse=True)
def documented() -> Iterator[None]:
    """What the page defines, as written there."""
    names: dict[str, Any] = {"__name__": __name__}
    for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(code, names)
    yield
    del HEADS["sure"], SYSTEMS["sure"]


@pytest.fixture(scope="module")
def trained(encoder: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pfengine.train(config(encoder, rows, tmp_path_factory.mktemp("trained") / "sure", system="sure", epochs=6))


@pytest.fixture(scope="module")
def texts(rows: Path) -> list[str]:
    return [line.partition("\t")[0] for line in (rows / "train.tsv").read_text().splitlines()[1:]]


def test_trained_loaded_and_listed(
    trained: Path, texts: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written = json.loads((trained / "pfengine.json").read_text())
    assert (written["system"], written["head"], written["criterion"]) == ("sure", {"type": "sure"}, "learned")
    assert written["training"]["held_out_score"] == 1
    assert written["threshold"] in [point["threshold"] for point in written["calibration"]]
    engine = pfengine.load(trained)
    assert repr(engine.criterion) == f"learned:{engine.criterion.threshold!r}"
    answers = engine.classify(["the film is very good", "awful plot"])
    assert [answer["label"] for answer in answers] == ["positive", "negative"]
    if extension.has_cpu():
        assert isinstance(engine.model.carrier, CpuModel), "the fast way"
    monkeypatch.setattr(sys, "argv", ["pfengine", "info", str(trained), "--json"])
    with pytest.raises(SystemExit):
        cli.main()
    facts = json.loads(capsys.readouterr().out)
    assert (facts["system"], facts["head"], facts["criterion"]) == ("sure", "sure", "learned")


def test_the_score_was_trained(trained: Path, texts: list[str]) -> None:
    """From about a half: the answers are right, and the head knows."""
    engine = pfengine.load(trained, precision="fp32")
    logits, learned = engine.layer_scores(texts[:50])
    assert learned is not None
    assert learned.shape == logits.shape[:2] == (3, 50)
    assert np.isnan(learned[-1]).all()
    assert learned[:-1].mean() < 0.3


def test_answers_are_those_of_the_oracle(trained: Path, texts: list[str]) -> None:
    """Alone and in a batch, by the learned score."""
    engine = pfengine.load(trained, precision="fp32")
    learned = engine.layer_scores(texts[:40]).learned
    assert learned is not None
    first = float(np.median(learned[0]))
    second = float(np.median(learned[1][learned[0] >= first]))
    criterion = f"learned:{first}/{second}"
    rule = parse(criterion).exit_rule(3, engine.exit_layers)  # type: ignore[attr-defined]
    assert repr(parse(criterion)) == criterion
    encoded = list(engine.tokenizer.encode(enumerate(texts[:40])))
    inputs = [pack([row], engine.model.config).to() for row in encoded]
    expected, layers = run_reference(build(reader.read(trained), reference, torch.float32), inputs, rule)
    assert set(layers) == {1, 2, 3}
    out = engine.predict(texts[:40], criterion=criterion)
    np.testing.assert_array_equal(out.exit_layers, layers)
    np.testing.assert_allclose(out.logits, expected, atol=1e-5, rtol=0)
    alone = [engine.predict(text, criterion=criterion) for text in texts[:40]]
    np.testing.assert_array_equal(np.concatenate([each.logits for each in alone]), out.logits)


def test_calibrated_with_a_guarantee(trained: Path, rows: Path, texts: list[str], tmp_path: Path) -> None:
    """For its learned score, which bounds what leaves; at the layers of a choice too."""
    for choose_layers in (False, True):
        found = pfengine.calibrate(
            trained, rows / "train.tsv", agreement=0.9, choose_layers=choose_layers, out=tmp_path / "calibrated"
        )
        assert found.criterion == "learned"
        assert found.guarantee is not None
        assert found.guarantee.threshold == found.threshold
        engine = pfengine.load(tmp_path / "calibrated", precision="fp32")
        logits, learned = engine.layer_scores(texts)
        expected = exits_taken(engine.criterion, logits, engine.exit_layers, learned=learned)
        np.testing.assert_array_equal(engine.predict(texts).exit_layers, expected)
        assert expected.min() < 3


def test_evaluated(trained: Path, rows: Path, texts: list[str]) -> None:
    """Its curve is over thresholds of the learned score."""
    (curve,) = pfengine.evaluate(trained, rows / "train.tsv", thresholds=[0.2], repeats=1).curves
    assert curve.criterion == "learned"
    assert len(curve.points) > 1
    engine = pfengine.load(trained, precision="fp32")
    found = [engine.predict(texts, threshold=point["threshold"]).layer_speedup for point in curve.points[::10]]
    assert found == pytest.approx([point["layer_speedup"] for point in curve.points[::10]], rel=0.02)


def test_converted_from_a_directory_of_others(trained: Path, texts: list[str], tmp_path: Path) -> None:
    theirs, tensors = tmp_path / "theirs", load_file(trained / "model.safetensors")
    theirs.mkdir()
    foreign = {key: value for key, value in tensors.items() if not key.startswith(PREFIX)}
    for part in ("weight", "bias"):
        foreign[f"lte.{part}"] = tensors[f"{PREFIX}error.{part}"]
        for i, value in enumerate(tensors[f"{PREFIX}classifiers.{part}"]):
            foreign[f"exits.{i}.{part}"] = value.clone()
    save_file(foreign, theirs / "model.safetensors")
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (theirs / name).write_bytes((trained / name).read_bytes())
    for system in ("auto", "sure"):
        out = pfengine.convert(theirs, tmp_path / system, system=system)
        engine = pfengine.load(out, threshold=0.2)
        assert engine.checkpoint.manifest.system == "sure"
        expected = pfengine.load(trained, threshold=0.2).predict(texts[:20])
        np.testing.assert_array_equal(engine.predict(texts[:20]).logits, expected.logits)
    with pytest.raises(pfengine.ConfigError, match=r"must be one of auto, .*past-future, .*sure, or one of your own"):
        pfengine.convert(theirs, tmp_path / "no", system="shure")
    register(System("twin", "", {"type": "sure"}, converter=SYSTEMS["sure"].converter))
    try:
        with pytest.raises(pfengine.CheckpointError, match=r"of several systems \(sure, twin\); name one of them"):
            pfengine.convert(theirs, tmp_path / "no")
    finally:
        del SYSTEMS["twin"]


@pytest.mark.slow
def test_attached_to_a_finished_model(encoder: Path, rows: Path, texts: list[str], tmp_path: Path) -> None:
    """Its exits answer before the last layer, the model's own classifier after it."""
    full = pfengine.train(config(encoder, rows, tmp_path / "full", system="full-model", epochs=4))
    out = pfengine.attach(full, rows / "train.tsv", tmp_path / "attached", system="sure", epochs=5, hold_out=40)
    engine = pfengine.load(out, precision="fp32")
    assert engine.checkpoint.manifest.head == {"type": "attached", "exits": {"type": "sure"}}
    np.testing.assert_array_equal(
        engine.predict(texts, criterion="never").logits, pfengine.load(full, precision="fp32").predict(texts).logits
    )
    logits, learned = engine.layer_scores(texts)
    taken = engine.predict(texts).exit_layers
    np.testing.assert_array_equal(taken, exits_taken(engine.criterion, logits, engine.exit_layers, learned=learned))
    assert taken.min() < 3


@pytest.mark.slow
def test_a_head_that_reads_all_tokens_is_trained(
    encoder: Path, rows: Path, texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the recipe of all heads; the engine answers as the model that was trained."""
    models: list[ExitModel] = []
    fit = training_run.fit
    monkeypatch.setattr(training_run, "fit", lambda model, *rest: (models.append(model), fit(model, *rest)))
    register_head(Peak)
    register(System("peak", "the greatest state of any token", {"type": "peak", "every": 2}, criterion="margin"))
    try:
        out = pfengine.train(config(encoder, rows, tmp_path / "peak", system="peak", epochs=4))
        engine = pfengine.load(out, precision="fp32")
        assert (engine.exit_layers, engine.checkpoint.manifest.system) == ((1, 3), "peak")
        batch = Collator(engine.model.config)(encode(texts[:9], None, engine.tokenizer).rows)
        with torch.no_grad():
            expected = models[0](**batch)["logits"].transpose(0, 1)
        np.testing.assert_allclose(engine.layer_logits(texts[:9]), expected, atol=2e-5, rtol=0)
        assert engine.classify("the film is very good")[0]["label"] == "positive"
        full = pfengine.train(config(encoder, rows, tmp_path / "full", system="full-model", epochs=1))
        out = pfengine.attach(full, rows / "train.tsv", tmp_path / "attached", system="peak", hold_out=40)
        attached = pfengine.load(out, precision="fp32")
        assert attached.exit_layers == (1, 3)
        unchanged = attached.predict(texts, criterion="never").logits
        np.testing.assert_array_equal(unchanged, pfengine.load(full, precision="fp32").predict(texts).logits)
    finally:
        del HEADS["peak"], SYSTEMS["peak"]


@pytest.mark.parametrize(
    ("system", "options", "message"),
    [
        ({"head": {"type": "unheard"}}, {}, "system 'mine' has a head of type 'unheard'; it must be one of attached,"),
        ({"head": {"type": "linear"}}, {}, "'head.pooler' is None"),
        ({}, {"gate": "row"}, "gate is 'row', an option that system 'mine' does not take; it takes none of that kind"),
        ({"options": ("reads",)}, {"gate": "row"}, "does not take; it takes reads"),
        ({"criterion": "learned"}, {}, "criterion 'learned' needs a head that learns when to exit"),
        ({"criterion": "unheard"}, {}, "criterion 'unheard' is unknown"),
        ({"head": {"type": "classifier"}, "criterion": "entropy"}, {}, "needs exits, and a head of type 'classifier'"),
        (
            {"head": {"type": "tagger"}},
            {},
            "has a head that tags words; its recipe ExitModel must be a TagModel",
        ),
        ({"own": {"seed": Option("")}}, {}, "system 'mine' declares an option 'seed', and every run has one of that"),
        ({}, {"options": {"deep": 1}}, "deep is 1, an option that system 'mine' does not take; it has none of its own"),
        ({}, {"options": [1]}, "options is [1]; it must be a dict of options by name"),
        ({"criterion": "never"}, {"system": "mone"}, "system is 'mone'; it must be one of beem, berxit,"),
    ],
)
def test_what_does_not_fit_is_said_before_training(
    encoder: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system: dict[str, Any],
    options: dict[str, Any], message: str,
) -> None:  # fmt: skip
    made = {"name": "mine", "summary": "", "head": {"type": "linear", "pooler": "none"}, "criterion": "entropy"}
    monkeypatch.setattr("pfengine.training.run.fit", lambda *arguments: pytest.fail("trained"))
    register(System(**(made | system)))
    try:
        with pytest.raises(pfengine.ConfigError, match=re.escape(message)):
            pfengine.train(config(encoder, rows, tmp_path / "out", **({"system": "mine"} | options)))
    finally:
        del SYSTEMS["mine"]


def test_what_cannot_be_registered() -> None:
    head = {"type": "linear", "pooler": "none"}
    register(System("mine", "", head))
    register(System("mine", "", head))  # as when its module is loaded again
    wrong: list[tuple[Callable[[], Any], type[Exception], str]] = [
        (lambda: register(System("linear", "", head)), ValueError, "the system 'linear' is System(name='linear'"),
        (lambda: register(System("mine", "", head, criterion="margin")), ValueError, "choose another name"),
        (lambda: register(System("My system", "", head)), ValueError, "system.name is 'My system'; it must be"),
        (lambda: register(ExitModel), TypeError, "is no System"),  # type: ignore[arg-type]
        (lambda: System("mine", "", {}), ValueError, "its head has no type"),
        (lambda: System("mine", "", "linear"), TypeError, "its head is 'linear'; it must be"),  # type: ignore[arg-type]
        (lambda: System("mine", "", head, "joint"), TypeError, "its recipe is 'joint'"),  # type: ignore[arg-type]
        (lambda: System("mine", "", head, options=("gait",)), ValueError, "takes 'gait', which is no option"),
        (lambda: System("mine", "", head, own={"Depth": Option("")}), TypeError, "its own option 'Depth' must be"),
        (lambda: System("mine", "", head, own={"depth": 3}), TypeError, "its own option 'depth' must be"),  # type: ignore[dict-item]
        (
            lambda: System("mine", "", head, own={"depth": Option("", choices=("a",), default="b")}),
            ValueError,
            "system 'mine': the default of depth is 'b'; it must be one of a",
        ),
        (lambda: System("mine", "", head, converter=re), TypeError, "converter re must define recognises"),  # type: ignore[arg-type]
    ]
    try:
        for call, error, message in wrong:
            with pytest.raises(error, match=re.escape(message)):
                call()
    finally:
        del SYSTEMS["mine"]
