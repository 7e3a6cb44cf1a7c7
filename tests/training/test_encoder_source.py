"""The encoder that is trained is read and checked as a checkpoint is: from whichever file, nothing drawn at random."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

import pfengine
from pfengine.training.pretrained import encoder_config, read_encoder

NAME = "encoder.layer.1.output.dense.weight"


@pytest.fixture
def source(encoder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(encoder, tmp_path / "encoder"))


def backbone(source: Path, layers: int | None = None) -> Any:
    return read_encoder(source, encoder_config(source, ("no", "yes"), layers)).backbone


@pytest.mark.parametrize("form", ["as saved", "pickle", "with prefix and a head", "shards"])
@pytest.mark.parametrize("layers", [None, 2])
def test_weights_are_those_transformers_reads(source: Path, form: str, layers: int | None) -> None:
    tensors = load_file(source / "model.safetensors")
    expected = AutoModel.from_pretrained(source, add_pooling_layer=False).state_dict()
    if form != "as saved":
        (source / "model.safetensors").unlink()
    if form == "pickle":
        torch.save(tensors, source / "pytorch_model.bin")
    elif form == "shards":
        places = {}
        for i in range(2):
            part = {key: tensors[key] for key in sorted(tensors)[i::2]}
            save_file(part, source / f"part{i}.safetensors")
            places |= dict.fromkeys(part, f"part{i}.safetensors")
        (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    elif form != "as saved":
        more = {f"bert.{key}": value for key, value in tensors.items()} | {"cls.predictions.bias": torch.ones(3)}
        save_file(more, source / "model.safetensors")
    state = torch.random.get_rng_state()
    found = backbone(source, layers)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert found.training
    assert len(found.encoder.layer) == (layers or 3)
    for key, value in found.state_dict().items():
        assert torch.equal(value, expected[key]), key


@pytest.mark.parametrize("pooler", ["per-layer", "shared"])
def test_pretrained_elasticbert(source: Path, pooler: str, tmp_path: Path) -> None:
    """The encoder that its authors publish has a model type, a prefix, and a pooler per layer, where exits start."""
    raw = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(raw | {"model_type": "elasticbert", "num_output_layers": 3}))
    plain = load_file(source / "model.safetensors")
    poolers = torch.randn(3, 48, 49, generator=torch.Generator().manual_seed(0)) / 10
    own = {f"encoder.pooler.{i}.dense.weight": poolers[i, :, 1:].contiguous() for i in range(3)}
    own |= {f"encoder.pooler.{i}.dense.bias": poolers[i, :, 0].contiguous() for i in range(3)}
    named = {f"elasticbert.{key}": value for key, value in (plain | own).items() if not key.startswith("pooler.")}
    save_file(named, source / "model.safetensors")
    assert all(torch.equal(value, plain[key]) for key, value in backbone(source, 2).state_dict().items())

    (tmp_path / "train.tsv").write_text("sentence\tlabel\n" + "".join(f"a {i}\t{i % 2}\n" for i in range(20)))
    pfengine.train(
        pfengine.TrainingConfig(
            model=str(source), data=str(tmp_path / "train.tsv"), output=str(tmp_path / "out"), system="elasticbert",
            pooler=pooler, epochs=0.1, learning_rate=1e-9, hold_out=4, precision="fp32",
        )
    )  # fmt: skip
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "bert"
    found = load_file(tmp_path / "out" / "model.safetensors")["exit_head.poolers.weight"]
    torch.testing.assert_close(
        found, poolers[:, :, 1:] if pooler == "per-layer" else poolers[2:, :, 1:], atol=1e-6, rtol=0
    )
    assert len(pfengine.load(tmp_path / "out").classify(["a 1", "a 2"])) == 2


class Evil:
    def __reduce__(self) -> Any:
        return os.mkdir, ("was-run",)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        ("missing", rf"'bert\.{NAME}' \[48, 64\] is missing"),
        ("nan", rf"'bert\.{NAME}' has 1 NaN or infinite values"),
        ("pickle", r"cannot be read as tensors alone: it holds posix\.mkdir"),
        ("fifo", "config.json is not a regular file"),
        ("list", "config.json: is not a JSON object"),
        ("odd", "'num_hidden_layers' is 'three'"),
        ("theirs", "config.json: transformers cannot build an encoder from it: "),
    ],
)  # fmt: skip
@pytest.mark.timeout(60)
def test_what_cannot_be_trained(source: Path, monkeypatch: pytest.MonkeyPatch, harm: str, message: str) -> None:
    monkeypatch.chdir(source)
    tensors = load_file(source / "model.safetensors")
    raw = json.loads((source / "config.json").read_text())
    if harm == "missing":
        del tensors[NAME]
    elif harm == "nan":
        tensors[NAME][3, 5] = float("nan")
    save_file(tensors, source / "model.safetensors")
    if harm == "pickle":
        (source / "model.safetensors").unlink()
        torch.save({NAME: Evil()}, source / "pytorch_model.bin")
    elif harm == "fifo":
        (source / "config.json").unlink()
        os.mkfifo(source / "config.json")
    elif harm in ("list", "odd", "theirs"):
        wrong = {
            "list": [raw],
            "odd": raw | {"num_hidden_layers": "three"},
            "theirs": raw | {"hidden_dropout_prob": "x"},
        }
        (source / "config.json").write_text(json.dumps(wrong[harm]))
    with pytest.raises(pfengine.CheckpointError, match=message) as caught:
        backbone(source)
    assert "weights_only" not in str(caught.value)
    assert not (source / "was-run").exists()
