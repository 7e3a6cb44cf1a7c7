"""Every system in the table that trains on a label per row: trained, saved, loaded, answered batched as alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import pfengine
from pfengine.exits.text import name_of
from pfengine.heads import HEADS
from pfengine.training import SYSTEMS, ExitModel, HeldOut, Phase, System, register, trains_exits
from pfengine.training import fit as fitting

from .test_runs import Interrupted
from .test_train import config

TEXTS = ["good film", "bad", "the plot is very awful", "great great fine", "a", "poor the a film is bad"]
OF_ROWS = [name for name in SYSTEMS if not HEADS[pfengine.TrainingConfig("", "", "", name).head(False)["type"]].tags]
QUICK = ("berxit", "student")


@pytest.fixture(scope="session")
def full(encoder: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("full") / "ckpt"
    return pfengine.train(config(encoder, rows, out, system="full-model", epochs=5))


@pytest.mark.parametrize(
    ("system", "reads"),
    [
        *(pytest.param(name, None, marks=() if name in QUICK else pytest.mark.slow) for name in OF_ROWS),
        ("linear", "query"),
        *(
            pytest.param(name, "query", marks=pytest.mark.slow)
            for name in OF_ROWS
            # cosee teaches the exits near which rows leave, and after these few steps all leave at the first
            if "reads" in SYSTEMS[name].options and name not in ("linear", "cosee")
        ),
    ],
)
def test_trains_and_answers_batched_as_alone(
    encoder: Path, rows: Path, full: Path, tmp_path: Path, system: str, reads: str | None
) -> None:
    needs: dict[str, dict[str, Any]] = {"student": {"layers": 2, "options": {"teacher": full}}}
    options = needs.get(system, {}) | ({} if reads is None else {"reads": reads})
    out = pfengine.train(config(encoder, rows, tmp_path / "ckpt", system=system, epochs=5, **options))
    engine = pfengine.load(out)
    manifest = engine.checkpoint.manifest
    assert manifest.system == system
    last = engine.checkpoint if engine.cascade is None else engine.checkpoint.models[-1]
    own = SYSTEMS[system].criterion_of(last.manifest.head)
    assert name_of(manifest.criterion or "") == name_of(own or "")
    assert manifest.training["held_out_score"] > 0.8, "one word of a row says which label it has"
    batched = engine.predict(TEXTS)
    alone = [engine.predict([text]) for text in TEXTS]
    np.testing.assert_array_equal(batched.exit_layers, [each.exit_layers[0] for each in alone])
    np.testing.assert_array_equal(batched.logits, np.stack([each.logits[0] for each in alone]))
    assert set(engine.predict(TEXTS, criterion="never").exit_layers) == {engine.num_layers}


@pytest.fixture
def phases(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Tensor], dict[str, Tensor], Any]]:
    """Per phase of the runs to come: its name, the tensors before and after it, the rows it was given."""
    run, seen = fitting._fit_phase, []

    def note(model: Any, recipe: ExitModel, rows: Any, *arguments: Any) -> None:
        before = recipe.checkpoint_tensors()
        run(model, recipe, rows, *arguments)
        seen.append((recipe.phase.name, before, recipe.checkpoint_tensors(), rows))

    monkeypatch.setattr(fitting, "_fit_phase", note)
    return seen


def test_deebert_adds_exits_to_a_model_that_stays_as_it_is(
    encoder: Path, rows: Path, tmp_path: Path, phases: list[Any]
) -> None:
    pfengine.train(config(encoder, rows, tmp_path / "out", system="deebert", epochs=2, weight_decay=0.5))
    (_, start, between, _), (_, _, end, _) = phases
    for key in start:
        if not key.startswith("exit_head."):
            assert not torch.equal(start[key], between[key]) or start[key].numel() < 100, key
            assert torch.equal(between[key], end[key]), key
            continue
        assert torch.equal(start[key][:-1], between[key][:-1]), key
        assert not torch.equal(start[key][-1], between[key][-1]), key
        assert torch.equal(between[key][-1], end[key][-1]), key
        assert not torch.equal(between[key][:-1], end[key][:-1]), key


@pytest.mark.slow
def test_fastbert_distils_without_labels_from_what_stays_as_it_is(
    encoder: Path, rows: Path, tmp_path: Path, phases: list[Any]
) -> None:
    more = tmp_path / "more.txt"
    more.write_text("good plot\nbad\n" * 20)
    out = pfengine.train(config(encoder, rows, tmp_path / "out", system="fastbert", epochs=3, unlabelled=str(more)))
    said = pfengine.load(out).layer_logits(TEXTS).argmax(-1)
    assert (said == said[-1]).mean() > 0.9, "students say what their teacher says"
    (_, start, between, first), (_, _, end, second) = phases
    assert len(second) == len(first) + 40
    assert not any("labels" in row for row in second.rows)
    for key in start:
        if not key.startswith("exit_head."):
            assert not torch.equal(start[key], between[key]) or start[key].numel() < 100, key
            assert torch.equal(between[key], end[key]), key
            continue
        assert torch.equal(start[key][:-1], between[key][:-1]), key
        assert torch.equal(between[key][-1], end[key][-1]), key
        if "key.bias" not in key:  # its gradient is zero
            assert not torch.equal(start[key][-1], between[key][-1]), key
            assert not torch.equal(between[key][:-1], end[key][:-1]), key


@pytest.mark.parametrize(
    "system",
    [
        "deebert",
        "pabee",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("berxit", "elbert", "elasticbert", "righttool")),
    ],
)
def test_poolers_start_from_the_encoders_own(
    encoder: Path, rows: Path, tmp_path: Path, phases: list[Any], system: str
) -> None:
    source = tmp_path / "with a pooler"
    source.mkdir()
    for file in encoder.iterdir():
        (source / file.name).write_bytes(file.read_bytes())
    tensors = load_file(source / "model.safetensors")
    pooler = {"pooler.dense.weight": torch.randn(48, 48), "pooler.dense.bias": torch.randn(48)}
    save_file(tensors | pooler, source / "model.safetensors")
    pfengine.train(config(source, rows, tmp_path / "out", system=system, epochs=0.1, max_rows=80))
    start = phases[0][1]
    for kind in ("weight", "bias"):
        own = start[f"exit_head.poolers.{kind}"]
        assert torch.equal(own, pooler[f"pooler.dense.{kind}"].expand_as(own))


class Two(ExitModel):
    """Two phases, the second without labels; what it is told of the run is noted."""

    noted: list[tuple[str, int, int, bool]]

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.noted = []
        self.own = torch.nn.Parameter(torch.ones(1))

    def phases(self) -> tuple[Phase, ...]:
        return Phase("first"), Phase("second", trains_exits, labelled=False, epochs=1, learning_rate=1e-3)

    def rates(self) -> dict[str, float]:
        return {"own": 0.25}

    def loss(self, scores: Any, labels: Tensor | None) -> Tensor:
        self.noted.append((self.phase.name, self.step, self.epoch_step, labels is not None))
        if labels is None:
            return torch.stack([each.logits.square().mean() for each in scores]).mean()
        return super().loss(scores, labels) + self.own.sum()

    def after_training(self, held_out: HeldOut) -> None:
        self.held_out = held_out
        with torch.no_grad():
            self.head_tensors()["exit_head.classifiers.bias"].fill_(2.0)


@pytest.fixture
def two() -> Iterator[list[Two]]:
    made: list[Two] = []

    def recipe(*arguments: Any, **options: Any) -> ExitModel:
        made.append(Two(*arguments, **options))
        return made[-1]

    register(System("two", "of two phases", {"type": "linear", "pooler": "none"}, recipe, criterion="entropy"))
    yield made
    del SYSTEMS["two"]


def test_phases_and_what_is_fitted_afterwards(
    encoder: Path, rows: Path, tmp_path: Path, phases: list[Any], two: list[Two]
) -> None:
    more = tmp_path / "more.txt"
    more.write_text("good\nbad plot\n" * 8)
    asked = config(encoder, rows, tmp_path / "out", system="two", epochs=2, max_rows=104, unlabelled=str(more))
    pfengine.train(asked)
    (_, _, between, first), (_, _, end, second) = phases
    assert 32 < len(first) < 64
    assert len(second) == len(first) + 16
    assert "labels" in first[0]
    assert not any("labels" in row for row in second.rows)
    assert all(torch.equal(between[key], end[key]) for key in end if not key.startswith("exit_head."))
    steps = [("first", i, i % 2, True) for i in range(4)] + [("second", i, i, False) for i in range(3)]
    assert two[0].noted == steps
    # AdamW's first steps are as long as the rate, which falls linearly to 0 over four of them
    assert float(two[0].own) == pytest.approx(1 - 0.25 * (1 + 0.75 + 0.5 + 0.25), abs=0.26)
    held_out = two[0].held_out
    assert held_out.logits.shape[::2] == (3, 2)
    assert held_out.labels.shape == held_out.logits.shape[1:2]
    assert load_file(tmp_path / "out" / "model.safetensors")["exit_head.classifiers.bias"].eq(2).all()


@pytest.mark.slow
@pytest.mark.parametrize(("phase", "step"), [pytest.param(0, 3, marks=pytest.mark.slow), (1, 2)])
def test_a_run_that_was_killed_in_a_phase_goes_on(
    encoder: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phases: list[Any], phase: int, step: int
) -> None:
    options: dict[str, Any] = {"system": "deebert", "epochs": 1, "max_rows": 200, "save_every": 1}
    whole = pfengine.train(config(encoder, rows, tmp_path / "whole", **options))
    asked = config(encoder, rows, tmp_path / "parts", **options)
    import transformers

    run = transformers.Trainer.training_step

    def stop(self: Any, model: Any, *arguments: Any, **more: Any) -> Any:
        if len(phases) == 2 + phase and self.state.global_step == step:
            raise Interrupted
        return run(self, model, *arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(transformers.Trainer, "training_step", stop)
        with pytest.raises(Interrupted):
            pfengine.train(asked)
    parts = pfengine.train(asked)
    assert (whole / "model.safetensors").read_bytes() == (parts / "model.safetensors").read_bytes()
    assert not list(tmp_path.glob(".*")), "no state is left"


def test_unlabelled_rows_are_refused_where_nothing_learns_from_them(encoder: Path, rows: Path, tmp_path: Path) -> None:
    (tmp_path / "more.txt").write_text("good\n")
    asked = config(encoder, rows, tmp_path / "out", system="pabee", unlabelled=str(tmp_path / "more.txt"))
    with pytest.raises(pfengine.ConfigError, match=r"unlabelled is .*system 'pabee' learns from labelled"):
        pfengine.train(asked)
