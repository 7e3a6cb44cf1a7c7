"""Long runs: interruption and resuming, the grid, losses that are no numbers, disks that are full."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import pfengine
from pfengine import reader, saving
from pfengine.training import fit as fitting
from pfengine.training import grid
from pfengine.training.grid import search

from .test_train import config


class Interrupted(Exception):
    pass


@pytest.fixture
def one_thread() -> Any:
    """Sums over threads have no fixed order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    run = transformers.Trainer.training_step

    def stop(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == step:
            raise Interrupted
        return run(self, *args, **kwargs)

    monkeypatch.setattr(transformers.Trainer, "training_step", stop)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"freezing": "lower", "form": "authors", "system": "past-future"},
        *(pytest.param(each, marks=pytest.mark.slow) for each in ({}, {"freezing": "layers"})),
    ],
)
def test_an_interrupted_run_goes_on_to_the_same_weights(
    encoder: Path,
    rows: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    one_thread: None,
    steps_from_now: Callable[[], list[int]],
    options: dict,
) -> None:
    settings = {"epochs": 2, "save_every": 5, **options}
    whole = pfengine.train(config(encoder, rows, tmp_path / "whole", **settings))
    with monkeypatch.context() as patch:
        interrupt_at(patch, 13)
        with pytest.raises(Interrupted):
            pfengine.train(config(encoder, rows, tmp_path / "parts", **settings))
    assert not (tmp_path / "parts").exists()
    steps = steps_from_now()
    parts = pfengine.train(config(encoder, rows, tmp_path / "parts", **settings))
    assert steps[0] == 10, "from the last saved state"
    assert (whole / "model.safetensors").read_bytes() == (parts / "model.safetensors").read_bytes()
    assert (whole / "pfengine.json").read_text() == (parts / "pfengine.json").read_text()
    assert not list(tmp_path.glob(".*"))


def test_an_interrupted_run_is_not_mixed_with_another(
    encoder: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(patch, 7)
        with pytest.raises(Interrupted):
            pfengine.train(config(encoder, rows, tmp_path / "ckpt", save_every=5))
    with pytest.raises(pfengine.ConfigError, match="interrupted run with another learning_rate, seed; finish it"):
        pfengine.train(config(encoder, rows, tmp_path / "ckpt", save_every=5, learning_rate=1e-3, seed=9))


def test_a_loss_that_is_no_number_stops_the_run(encoder: Path, rows: Path, tmp_path: Path) -> None:
    out = pfengine.train(config(encoder, rows, tmp_path / "ckpt", epochs=1))
    before = (out / "model.safetensors").read_bytes()
    with pytest.raises(pfengine.TrainingError, match=r"the loss is nan at step \d+ .* lower learning_rate"):
        pfengine.train(config(encoder, rows, out, epochs=10, learning_rate=1e30, save_every=3))
    assert (out / "model.safetensors").read_bytes() == before
    assert not list(tmp_path.glob(".*")), "a lower learning_rate is not refused as another run's"


def test_a_full_disk_leaves_the_old_checkpoint(
    encoder: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = pfengine.train(config(encoder, rows, tmp_path / "ckpt", epochs=1))
    before = {file.name: file.read_bytes() for file in out.iterdir()}

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(saving, "save_file", full)
    with pytest.raises(pfengine.CheckpointError, match="cannot be written: No space left on device"):
        pfengine.train(config(encoder, rows, out, epochs=1, seed=1))
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
    assert pfengine.load(out).exit_layers == (1, 2, 3)


def test_a_foreign_directory_is_refused_before_anything_is_trained(
    encoder: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "thesis.txt").write_text("")
    monkeypatch.setattr(fitting, "fit", None)
    with pytest.raises(pfengine.CheckpointError, match="is not a pfengine checkpoint"):
        pfengine.train(config(encoder, rows, tmp_path))


@pytest.mark.slow
def test_grid_keeps_the_best_and_trains_no_cell_twice(
    encoder: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[str] = []
    run = grid.train

    def count(cell: pfengine.TrainingConfig) -> Path:
        if len(trained) == 2:
            trained.clear()
            raise Interrupted
        trained.append(Path(cell.output).name)
        return run(cell)

    monkeypatch.setattr(grid, "train", count)
    asked = config(encoder, rows, tmp_path / "ckpt", epochs=2)
    rates = (1e-6, 3e-3)
    with pytest.raises(Interrupted):
        search(asked, (16, 32), rates)
    assert not (tmp_path / "ckpt").exists()
    out, cells = search(asked, (16, 32), rates)
    assert trained == ["batch32-lr1e-06", "batch32-lr0.003"], "the other two were there"
    assert len(cells) == 4
    best = max(cells, key=lambda cell: cell["score"])
    assert best["learning_rate"] == 3e-3
    kept = json.loads((out / "pfengine.json").read_text())["training"]
    assert (kept["batch_size"], kept["learning_rate"]) == (best["batch_size"], best["learning_rate"])
    with pytest.raises(pfengine.ConfigError, match="grid search with another epochs"):
        search(config(encoder, rows, tmp_path / "ckpt", epochs=3), (16, 32), rates)


def test_the_papers_grid_is_one_command(
    encoder: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    from pfengine import cli

    ready = pfengine.train(config(encoder, rows, tmp_path / "ready", epochs=1))
    cells: list[tuple[int, float]] = []

    def pretend(cell: pfengine.TrainingConfig) -> Path:
        cells.append((cell.batch_size, cell.learning_rate))
        ckpt = reader.read(ready)
        return saving.write(cell.output, ckpt.backbone.raw, ckpt.manifest, ckpt.tensors, ckpt.tokenizer)

    monkeypatch.setattr(grid, "train", pretend)
    with pytest.raises(SystemExit) as caught:
        cli.app(["train", str(encoder), str(rows), str(tmp_path / "ckpt"), "--grid", "--hold-out", "40"])
    assert caught.value.code == 0
    assert cells == [(batch, rate) for batch in (16, 32, 128) for rate in (1e-5, 2e-5, 3e-5, 5e-5)]
    printed = json.loads(capsys.readouterr().out)
    assert len(printed["grid"]) == 12
    assert (tmp_path / "ckpt" / "pfengine.json").exists()


def test_model_without_exits_and_fewer_layers(encoder: Path, rows: Path, tmp_path: Path) -> None:
    out = pfengine.train(config(encoder, rows, tmp_path / "ckpt", system="full-model", layers=2, epochs=6))
    engine = pfengine.load(out)
    assert (engine.num_layers, engine.exit_layers) == (2, (2,))
    answers = engine.classify(["the film is very good", "awful plot"])
    assert [answer["label"] for answer in answers] == ["positive", "negative"]
    assert json.loads((out / "pfengine.json").read_text())["training"]["held_out_score"] > 0.9
    with pytest.raises(pfengine.ConfigError, match=r"layers is 4; .* has 3"):
        pfengine.train(config(encoder, rows, tmp_path / "other", layers=4))


@pytest.mark.parametrize("storage", ["float", "int8-rows"])
def test_a_checkpoint_of_ours_is_trained_on(
    encoder: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, storage: str
) -> None:
    first = pfengine.train(config(encoder, rows, tmp_path / "first", storage=storage, epochs=1))
    monkeypatch.setattr("pfengine.training.run.fit", lambda *_: None)  # what it starts from is what it writes
    second = pfengine.train(config(first, rows, tmp_path / "second", system="linear", layers=2))
    before, after = reader.read(first).tensors, reader.read(second).tensors
    encoders = [key for key in after if key.startswith("bert.")]
    assert len(encoders) == 5 + 2 * 16
    for key in encoders:
        torch.testing.assert_close(after[key], before[key], rtol=0, atol=0)


def test_rows_to_calibrate_on_may_come_from_a_file(encoder: Path, rows: Path, tmp_path: Path) -> None:
    lines = (rows / "train.tsv").read_text().splitlines()
    (tmp_path / "held.tsv").write_text("\n".join([lines[0], *lines[301:]]) + "\n")
    (tmp_path / "train.tsv").write_text("\n".join(lines[:301]) + "\n")
    held = str(tmp_path / "held.tsv")
    out = pfengine.train(config(encoder, tmp_path, tmp_path / "ckpt", epochs=2, held_out=held))
    written = json.loads((out / "pfengine.json").read_text())
    assert (written["training"]["rows"], written["training"]["held_out_rows"]) == (300, 100)
    assert written["training"]["held_out"] == "held.tsv", "paths mean nothing elsewhere"
    assert all(point["rows"] == 100 for point in written["calibration"])
    (tmp_path / "held.tsv").write_text("sentence\tlabel\na film\tmixed\n")
    with pytest.raises(pfengine.ConfigError, match=r"held\.tsv, row 0: label 'mixed'"):
        pfengine.train(config(encoder, tmp_path, tmp_path / "other", held_out=held))


@pytest.mark.parametrize("incorporate", ["vote", "ensemble", "max"])
def test_strategies_by_name(encoder: Path, rows: Path, tmp_path: Path, incorporate: str) -> None:
    out = pfengine.train(
        config(encoder, rows, tmp_path / "ckpt", system="past-future", incorporate=incorporate, epochs=2)
    )
    head = json.loads((out / "pfengine.json").read_text())["head"]
    assert head.get("incorporate", head.get("combine")) == incorporate
    assert pfengine.load(out).predict(["a good film", "a bad film"], speedup=1.5).logits.shape == (2, 2)


@pytest.mark.slow
def test_numbers_as_labels_make_a_regression(encoder: Path, rows: Path, tmp_path: Path) -> None:
    lines = (rows / "train.tsv").read_text().splitlines()
    (tmp_path / "train.tsv").write_text(
        "\n".join([lines[0], *(line.replace("\t1", "\t4.5").replace("\t0", "\t0.5") for line in lines[1:])]) + "\n"
    )
    options: dict[str, Any] = {"system": "linear", "labels": None, "epochs": 12}
    out = pfengine.train(config(encoder, tmp_path, tmp_path / "ckpt", **options))
    engine = pfengine.load(out)
    assert engine.model.config.problem_type == "regression"
    values = engine.predict(["a good film", "a bad film"]).logits[:, 0]
    assert values[0] > 3.5
    assert values[1] < 1.5
    assert json.loads((out / "pfengine.json").read_text())["training"]["held_out_score"] > 0.9


FORMS: list[dict[str, Any]] = [
    {"form": "paper"}, {"form": "authors"}, {"form": "paper", "incorporate": "max"}, {"form": "paper", "gate": "none"},
    {"form": "authors", "states": "past", "gate": "none"}, {"form": "authors", "states": "future"},
    {"form": "authors", "gate": "none"},
]  # fmt: skip


@pytest.mark.parametrize(
    "options",
    [
        *({"system": name} for name in ("pfengine", "elbert")),
        {"system": "past-future"} | FORMS[0],
        *(
            pytest.param(options, marks=pytest.mark.wide)
            for options in (
                *({"system": name} for name in ("pabee", "berxit", "elasticbert")),
                *({"system": "past-future"} | form for form in FORMS[1:]),
            )
        ),
    ],
    ids=lambda options: "-".join(options.values()),
)
def test_scores_far_from_zero(encoder: Path, rows: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    """Every exit begins at their mean, so that a few steps at a low rate do not end near 0."""
    lines = (rows / "train.tsv").read_text().splitlines()
    (tmp_path / "train.tsv").write_text(
        "\n".join([lines[0], *(line.replace("\t1", "\t50.5").replace("\t0", "\t49.5") for line in lines[1:])]) + "\n"
    )
    how: dict[str, Any] = {"labels": None, "epochs": 1, "learning_rate": 1e-4, **options}
    out = pfengine.train(config(encoder, tmp_path, tmp_path / "ckpt", **how))
    logits = pfengine.load(out, precision="fp32").layer_logits(["a good film", "a bad film", "bleak"])
    assert np.abs(logits - 50).max() < 1.5


def test_progress_is_logged_without_a_terminal(
    encoder: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    pfengine.train(config(encoder, rows, tmp_path / "ckpt", epochs=1))
    printed = capsys.readouterr()
    assert "step 10 of 11: loss" in printed.err
    assert printed.out == "", "standard output is for results"
    assert "\r" not in printed.err, "no progress bar where there is no terminal"
