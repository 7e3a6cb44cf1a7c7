"""`pfengine.train` end to end on a tiny encoder: what it writes loads, answers as it was trained, and is calibrated."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pfengine
from pfengine import data, devices
from pfengine.training import config as training_config
from pfengine.training import run as training_run
from pfengine.training.model import ExitModel


def config(encoder: Path, rows: Path, out: Path, **options: object) -> pfengine.TrainingConfig:
    defaults: dict[str, object] = {
        "labels": ("negative", "positive"), "epochs": 20, "learning_rate": 3e-3, "hold_out": 40, "precision": "fp32",
    }  # fmt: skip
    return pfengine.TrainingConfig(str(encoder), str(rows), str(out), **(defaults | options))  # type: ignore[arg-type]


@pytest.mark.parametrize("storage", [pytest.param("float", marks=pytest.mark.slow), "int8-rows"])
def test_trains_writes_and_calibrates(encoder: Path, rows: Path, tmp_path: Path, storage: str) -> None:
    out = pfengine.train(config(encoder, rows, tmp_path / "ckpt", storage=storage, epochs=8))
    engine = pfengine.load(out)
    assert engine.labels == ("negative", "positive")
    answers = engine.classify(["the film is very good", "awful plot"])
    assert [answer["label"] for answer in answers] == ["positive", "negative"]
    written = json.loads((out / "pfengine.json").read_text())
    assert written["storage"] == storage
    assert written["training"]["rows"] + written["training"]["held_out_rows"] <= 400
    assert written["training"]["held_out_rows"] == 40
    points = written["calibration"]
    assert points, "an easy task reaches some speed-up"
    assert written["threshold"] in [point["threshold"] for point in points]
    speedups = [point["layer_speedup"] for point in points]
    assert speedups == sorted(speedups)
    # the table is true of the checkpoint on the rows it was made from
    examples = data.read(rows / "train.tsv")
    _, held_out = data.hold_out(examples, 40, seed=0)
    for point in points:
        result = engine.predict([example.row for example in held_out], threshold=point["threshold"])
        assert result.layer_speedup == pytest.approx(point["layer_speedup"])
        labels = data.label_ids(held_out, engine.labels, "")
        assert float((result.label_ids == labels).mean()) == pytest.approx(point["accuracy"])


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("bert", {}),
        ("distilbert", {"layers": 2}),
        ("distilbert", {"system": "full-model"}),
        ("electra", {}),
        ("mpnet", {"layers": 2}),
        ("modernbert", {}),
        ("modernbert", {"system": "full-model"}),
        ("modernbert", {"system": "linear", "reads": "query"}),
        ("deberta-v2", {"layers": 2}),
        ("deberta-v2", {"system": "full-model"}),
    ],
    ids=[
        "bert",
        "distilbert",
        "distilbert's own head",
        "electra",
        "mpnet",
        "modernbert",
        "modernbert's own head",
        "modernbert by queries",
        "deberta-v2",
        "deberta-v2's own head",
    ],
)
def test_engine_answers_as_the_trained_model(
    encoder: Path, relatives: Callable[[str], Path], rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    kind: str, options: dict[str, Any],
) -> None:  # fmt: skip
    """Training runs transformers' encoder and a head of its own; inference must mean the same."""
    trained: list[ExitModel] = []
    fit = training_run.fit

    def keep(model: ExitModel, *args: object) -> None:
        fit(model, *args)  # type: ignore[arg-type]
        trained.append(model)

    monkeypatch.setattr(training_run, "fit", keep)
    source = encoder if kind == "bert" else relatives(kind)
    out = pfengine.train(config(source, rows, tmp_path / "ckpt", epochs=1, **options))
    engine = pfengine.load(out)
    assert engine.num_layers == options.get("layers", 3)
    assert engine.model.config.family.name == kind
    texts = ["good", "the plot is very bad", "a fine film"]
    for text, ours in zip(texts, engine.layer_logits(texts).transpose(1, 0, 2), strict=True):
        ids = torch.tensor([engine.tokenizer.backend.encode(text).ids])  # type: ignore[union-attr]
        with torch.no_grad():
            theirs = trained[0](input_ids=ids)["logits"][0].numpy()
        np.testing.assert_allclose(ours, theirs, atol=2e-5)  # fp32, three layers


@pytest.mark.slow
def test_same_seed_same_checkpoint(encoder: Path, rows: Path, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums over threads have no fixed order
    try:
        outs = [pfengine.train(config(encoder, rows, tmp_path / name, epochs=1, seed=3)) for name in ("a", "b")]
    finally:
        torch.set_num_threads(threads)
    assert (outs[0] / "model.safetensors").read_bytes() == (outs[1] / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *(
            (option, next(iter(option)))
            for option in (
                {"epochs": 0},
                {"epochs": float("nan")},
                {"epochs": "3"},
                {"epochs": 1e300},
                {"learning_rate": -1},
                {"learning_rate": float("inf")},
                {"weight_decay": -0.1},
                {"weight_decay": None},
                {"warmup": 1.0},
                {"warmup": "0"},
                {"speedup": 0.5},
                {"speedup": True},
                {"seed": -1},
                {"seed": 2**32},
                {"seed": 1.0},
                {"batch_size": 0},
                {"batch_size": 2**31},
                {"max_length": 2.5},
                {"max_length": None},
                {"hold_out": 0},
                {"max_rows": 0},
                {"save_every": -5},
                {"layers": 0},
                {"layers": True},
                {"frozen_layers": 0},
                {"labels": "ab"},
                {"labels": ("a",)},
                {"labels": ("a", "a")},
                {"labels": ("a", " ")},
                {"held_out": 3},
                {"data_format": "xml"},
            )
        ),
        ({"storage": "int4"}, "storage"),
        ({"precision": "fp16"}, "precision"),
        ({"dropout": 1.0}, "dropout"),
        ({"system": "deberta"}, "system"),
    ],
)
def test_wrong_options_are_named(encoder: Path, rows: Path, tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(pfengine.ConfigError, match=message):
        config(encoder, rows, tmp_path / "ckpt", **options)


@pytest.mark.parametrize(
    ("machine", "has", "precision"),
    [
        ("x86_64", "", "fp32"), ("x86_64", "avx512_bf16", "bf16"), ("AMD64", "amx_tile", "bf16"),
        ("aarch64", "", "fp32"), ("aarch64", "mkldnn", "bf16"),
        ("x86_64", "new gpu", "bf16"), ("x86_64", "old gpu, avx512_bf16", "fp32"),
    ],
)  # fmt: skip
def test_bf16_where_it_is_faster(monkeypatch: pytest.MonkeyPatch, machine: str, has: str, precision: str) -> None:
    monkeypatch.setattr(devices.platform, "machine", lambda: machine)
    for name in ("avx512_bf16", "amx_tile"):
        monkeypatch.setattr(torch.cpu, f"_is_{name}_supported", lambda name=name: name in has)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: has == "mkldnn", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: "gpu" in has)
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation or has == "new gpu"
    )
    asked = pfengine.TrainingConfig("model", "data", "out")
    assert asked.precision == "auto"
    assert asked.filled().precision == asked.record()["precision"] == precision
    for chosen in ("fp32", "bf16"):
        assert replace(asked, precision=chosen).filled().precision == chosen


def test_a_run_says_where_it_does_without_bf16(
    encoder: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for precision in ("fp32", "bf16"):
        monkeypatch.setattr(training_config, "trained_in", lambda precision=precision: precision)
        out = pfengine.train(config(encoder, rows, tmp_path / precision, epochs=0.1, precision="auto"))
        assert ("training in fp32: there are no instructions for bf16 here" in capsys.readouterr().err) == (
            precision == "fp32"
        )
        assert json.loads((out / "pfengine.json").read_text())["training"]["precision"] == precision


def test_numbers_of_numpy_are_numbers(encoder: Path, rows: Path, tmp_path: Path) -> None:
    given = config(encoder, rows, tmp_path, seed=np.int64(3), epochs=np.float32(2), hold_out=np.int32(5))
    assert json.loads(json.dumps(given.record()))["seed"] == 3
    assert (given.epochs, type(given.epochs), type(given.hold_out)) == (2.0, float, int)


def test_data_that_does_not_fit(encoder: Path, tmp_path: Path) -> None:
    file = tmp_path / "train.tsv"
    file.write_text("sentence\tlabel\na film\tgood\nthe plot\tperhaps\n")
    with pytest.raises(pfengine.ConfigError, match="row 1: label 'perhaps' is not one of good, bad"):
        pfengine.train(config(encoder, file, tmp_path / "ckpt", labels=("good", "bad")))
    with pytest.raises(pfengine.ConfigError, match="leaves none to train on"):
        pfengine.train(config(encoder, file, tmp_path / "ckpt", labels=None))
    file.write_text("words\tlabel\na film\tgood\n")
    with pytest.raises(pfengine.ConfigError, match="columns words, label"):
        pfengine.train(config(encoder, file, tmp_path / "ckpt"))
    file.write_text("sentence\tlabel\na film\tgood\nb\tbad\n")
    with pytest.raises(pfengine.CheckpointError, match=r"config\.json"):
        pfengine.train(config(tmp_path, file, tmp_path / "ckpt", labels=None, hold_out=1))
    assert not (tmp_path / "ckpt").exists()


def test_no_number_that_is_none_is_written(make_text_checkpoint: Callable[..., Path]) -> None:
    regression = {"problem_type": "regression"}
    path = make_text_checkpoint(labels=1, head="linear", criterion="never", config=regression)
    with pytest.warns(UserWarning, match="the same score, so there is no correlation"):
        training_run.add_calibration(path, ["a film"] * 3, np.array([1.0, 2.0, 3.0]), 2.0, 16)
    assert json.loads((path / "pfengine.json").read_text(), parse_constant=pytest.fail)["training"] == {}
    training_run.add_calibration(path, ["a film", "the", "very bad"], np.array([1.0, 2.0, 3.0]), 2.0, 16)
    assert -1 <= json.loads((path / "pfengine.json").read_text())["training"]["held_out_score"] <= 1
