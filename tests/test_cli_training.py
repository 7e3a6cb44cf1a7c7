"""`pfengine train | attach`: their options are those of `TrainingConfig` and `attach`, each defined once."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from pfengine import ConfigError, cli, training
from pfengine.training import SYSTEMS, System, TrainingConfig, register
from pfengine.training.config import DEFAULTS, OPTIONS
from pfengine.training.options import COUNT, POSITIVE, Option

ATTACH = inspect.signature(training.attach).parameters
FLAGS = {"data_format": "--format"}


def parameters(command: str) -> dict[str, Any]:
    return {parameter.name: parameter for parameter in get_command(cli.app).commands[command].params}  # type: ignore[attr-defined]


def called(monkeypatch: pytest.MonkeyPatch, name: str, *arguments: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a function of `pfengine.training` is called with by a command of that name."""
    calls = []
    monkeypatch.setattr(training, name, lambda *args, **kwargs: calls.append((args, kwargs)))
    result = CliRunner().invoke(cli.app, [name, "model", "data", "out", *arguments])
    assert result.exception is None, result.output
    return calls[0]


def test_every_option_of_a_training_run_is_on_the_command_line() -> None:
    shown = parameters("train")
    assert set(shown) - {"grid", "help"} == set(OPTIONS)
    for name, option in OPTIONS.items():
        assert shown[name].help == option.help
        if name not in ("model", "data", "output"):
            assert shown[name].opts == [FLAGS.get(name, "--" + name.replace("_", "-"))]
            assert shown[name].default == DEFAULTS[name]


def test_every_option_of_attach_is_on_the_command_line() -> None:
    shown = parameters("attach")
    options = set(ATTACH) - {"source", "options", "progress"} | {"data"}
    tuning = {"tune", "agreement", "confidence", "tolerance", "encoder_rate", "augment", "fallback", "as_json"}
    assert set(shown) - {"help"} == options | tuning
    for name in options - {"model", "data", "output"}:
        assert shown[name].default == ATTACH[name].default


def test_a_run_is_told_what_the_command_line_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (config,), _ = called(monkeypatch, "train")
    assert config == TrainingConfig("model", "data", "out")
    names = tmp_path / "names"
    names.write_text("no, never\nyes\n")
    given = ["--labels", str(names), "--format", "csv", "--layers", "3", "--warmup", "0.5", "--system", "linear"]
    (config,), _ = called(monkeypatch, "train", *given)
    assert config == TrainingConfig(
        "model", "data", "out", labels=("no, never", "yes"), data_format="csv", layers=3, warmup=0.5, system="linear"
    )
    arguments, options = called(monkeypatch, "attach", "--gate", "row", "--max-length", "7")
    defaults = {name: given.default for name, given in ATTACH.items() if given.kind is given.KEYWORD_ONLY}
    assert arguments == ("model", "data", "out")
    assert {**options, "progress": None} == defaults | {"gate": "row", "max_length": 7, "options": {}}


@pytest.fixture
def branchy() -> Iterator[None]:
    """A system that declares options of its own."""
    own = {
        "depths": Option("Depths.", COUNT, default=(2, 3), many=True),
        "kind_of": Option("Kind.", choices=("plain", "odd")),
        "rate": Option("Rate.", POSITIVE, default=0.5),
    }
    register(System("branchy", "", {"type": "linear", "pooler": "none"}, own=own))
    yield
    del SYSTEMS["branchy"]


def test_options_that_a_system_declares(branchy: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Are on the command line as soon as it is registered."""
    shown = CliRunner().invoke(cli.app, ["train", "--help"]).output
    assert "branchy: Depths. [default: 2,3]" in " ".join(shown.split())
    given = ["--system", "branchy", "--depths", "4, 12", "--kind-of", "odd"]
    (config,), _ = called(monkeypatch, "train", *given)
    expected = TrainingConfig("model", "data", "out", system="branchy", options={"depths": (4, 12), "kind_of": "odd"})
    assert config == expected
    assert config.flat()["depths"] == (4, 12)
    assert config.flat()["rate"] == config.record()["rate"] == 0.5
    _, options = called(monkeypatch, "attach", *given)
    assert options["options"] == {"depths": (4, 12), "kind_of": "odd"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--system", "branchy", "--depths", "2,x"], "depths is ('2', 'x'); each must be an integer > 0"),
        (["--system", "branchy", "--depths", "2,0"], "depths is (2, 0); each must be an integer > 0"),
        (["--system", "branchy", "--rate", "0"], "rate is 0.0; it must be a number > 0"),
        (["--system", "branchy", "--kind-of", "even"], "kind_of is 'even'; it must be one of plain, odd"),
        (["--system", "branchy", "--kind-of", ""], "kind_of is empty"),
        (["--depths", "2"], "depths is '2', an option that system 'pfengine' does not take"),
    ],
)
def test_options_of_a_system_that_do_not_fit(branchy: None, given: list[str], said: str) -> None:
    error = CliRunner().invoke(cli.app, ["train", "model", "data", "out", *given]).exception
    assert isinstance(error, ConfigError)
    assert said in str(error)
