"""The checkpoint directory: round trips, and every fault named with file and key."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import pfengine
from pfengine import reader, saving
from pfengine.checkpoint import SCALE

Make = Callable[..., Path]  # the fixture make_checkpoint


@pytest.fixture
def ckpt(make_checkpoint: Make, tmp_path: Path) -> Path:
    return Path(shutil.copytree(make_checkpoint("bert", threshold=0.5), tmp_path / "ckpt"))


def edit(path: Path, file: str, **fields: Any) -> None:
    raw = json.loads((path / file).read_text())
    for key, value in fields.items():
        if value is ...:
            raw.pop(key)
        else:
            raw[key] = value
    (path / file).write_text(json.dumps(raw))


def faults(path: Path) -> list[str]:
    with pytest.raises(pfengine.CheckpointError) as caught:
        pfengine.load(path)
    assert str(path) in str(caught.value)
    assert isinstance(caught.value, ValueError)
    return caught.value.faults


@pytest.mark.parametrize("storage", ["float", "int8-rows"])
@pytest.mark.parametrize("family", ["bert", "roberta", "albert"])
def test_round_trip(make_checkpoint: Make, tmp_path: Path, family: str, storage: str) -> None:
    path = make_checkpoint(family, storage=storage, calibration=({"threshold": 0.3, "layer_speedup": 2.0},))
    first = reader.read(path)
    again = saving.write(tmp_path / "again", first.backbone.raw, first.manifest, first.tensors)
    second = reader.read(again)
    assert (second.backbone, second.manifest) == (first.backbone, first.manifest)
    assert second.tensors.keys() == first.tensors.keys()
    for key, value in first.tensors.items():
        assert value.dtype == torch.float32
        assert torch.equal(second.tensors[key], value), key  # int8 rows are stored again exactly


def test_int8_rows_are_within_half_a_step(make_checkpoint: Make) -> None:
    exact = reader.read(make_checkpoint("bert")).tensors
    path = make_checkpoint("bert", storage="int8-rows")
    stored = load_file(path / "model.safetensors")
    assert sum(value.dtype == torch.int8 for value in stored.values()) > 20
    for key, value in reader.read(path).tensors.items():
        if stored[key].dtype == torch.int8:
            step = stored[key + SCALE].unsqueeze(-1)
            assert ((value - exact[key]).abs() <= 0.5 * step * 1.001).all(), key
        else:
            assert torch.equal(value, exact[key])


WRONG_CONFIG = [
    ("model_type", "gpt2"), ("model_type", ...), ("hidden_size", ...), ("hidden_size", "48"), ("hidden_size", 50),
    ("num_hidden_layers", 0), ("num_attention_heads", True), ("intermediate_size", 1.5), ("vocab_size", -1),
    ("max_position_embeddings", ...), ("hidden_act", "swish"), ("layer_norm_eps", 0), ("layer_norm_eps", "tiny"),
    ("type_vocab_size", 0), ("pad_token_id", -1), ("id2label", {"0": "a", "2": "b"}), ("id2label", []),
    ("id2label", {"0": 1.5, "1": "b"}), ("problem_type", "ranking"), ("position_embedding_type", "relative_key"),
    ("is_decoder", True),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), WRONG_CONFIG)
def test_config_fields(ckpt: Path, key: str, value: Any) -> None:
    edit(ckpt, "config.json", **{key: value})
    assert any("config.json" in fault and f"'{key}'" in fault for fault in faults(ckpt))


WRONG_ENGINE = [
    ("format_version", ...), ("format_version", "1"), ("format_version", 2), ("format_version", 0), ("system", 3),
    ("system", ...), ("head", []), ("head", {"type": 4}), ("head", {"type": "mixture"}),
    ("head", {"type": "past-future"}),
    ("head", {"type": "past-future", "pooler": "per-layer", "gait": 1}), ("criterion", 5), ("threshold", "low"),
    ("threshold", float("nan")), ("exit_layers", ...), ("exit_layers", []), ("exit_layers", [1, 2]),
    ("exit_layers", [3, 2, 5]), ("exit_layers", [0, 5]), ("exit_layers", [1, 1, 5]), ("calibration", {}),
    ("calibration", [{"threshold": 1}]), ("storage", "int4"), ("training", "long"), ("treshold", 0.5),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), WRONG_ENGINE)
def test_engine_fields(ckpt: Path, key: str, value: Any) -> None:
    edit(ckpt, "pfengine.json", **{key: value})
    assert any(("pfengine.json" in fault and f"'{key}" in fault) or "'head." in fault for fault in faults(ckpt))


def test_unknown_format_version_says_what_to_do(ckpt: Path) -> None:
    edit(ckpt, "pfengine.json", format_version=7)
    (fault,) = faults(ckpt)
    assert "is 7; this pfengine reads version 1: install a newer pfengine" in fault


def test_several_faults_come_in_one_error(ckpt: Path) -> None:
    edit(ckpt, "config.json", hidden_size="x", vocab_size=...)
    edit(ckpt, "pfengine.json", system=..., threshold="x")
    found = faults(ckpt)
    for key in ("hidden_size", "vocab_size", "system", "threshold"):
        assert any(f"'{key}'" in fault for fault in found), key


@pytest.mark.parametrize("file", ["config.json", "pfengine.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe\x00"])
def test_json_files_that_are_none(ckpt: Path, file: str, content: bytes) -> None:
    (ckpt / file).write_bytes(content)
    assert any(fault.startswith(file) for fault in faults(ckpt))


def test_missing_files(ckpt: Path, tmp_path: Path) -> None:
    assert "is not a directory" in faults(tmp_path / "nowhere")[0]
    (ckpt / "model.safetensors").rename(ckpt / "pytorch_model.bin")
    (fault,) = faults(ckpt)
    assert "model.safetensors is missing" in fault
    assert "pytorch_model.bin is a pickle" in fault
    (ckpt / "config.json").unlink()
    assert faults(ckpt) == ["config.json is missing"]


@pytest.mark.parametrize("share", [0.0, 0.00001, 0.001, 0.3, 0.999])
def test_truncated_safetensors(ckpt: Path, share: float) -> None:
    file = ckpt / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    (fault,) = faults(ckpt)
    assert "model.safetensors is truncated or corrupt" in fault


@pytest.mark.parametrize("garbage", [b"\xff" * 64, b"\x08" + b"\0" * 7 + b"notjson!", b"PK\x03\x04" * 30])
def test_corrupt_safetensors(ckpt: Path, garbage: bytes) -> None:
    file = ckpt / "model.safetensors"
    file.write_bytes(garbage + file.read_bytes()[len(garbage) :])
    (fault,) = faults(ckpt)
    assert "model.safetensors is truncated or corrupt" in fault


def retensor(path: Path, **changes: Any) -> None:
    tensors = load_file(path / "model.safetensors")
    for key, value in changes.items():
        key = key.replace("__", ".")
        if value is ...:
            del tensors[key]
        else:
            tensors[key] = value
    save_file(tensors, path / "model.safetensors")


def test_tensors_missing_extra_and_misshapen_are_all_listed(ckpt: Path) -> None:
    retensor(
        ckpt,
        bert__encoder__layer__1__output__dense__weight=...,
        exit_head__gate__bias=...,
        exit_head__extra=torch.zeros(3),
        bert__embeddings__LayerNorm__weight=torch.zeros(7),
        exit_head__projections__bias=torch.zeros(5, 6, dtype=torch.int64),
    )
    found = faults(ckpt)
    assert len(found) == 5
    for part in (
        "'bert.encoder.layer.1.output.dense.weight' [48, 72] is missing",
        "'exit_head.gate.bias' [3] is missing",
        "'exit_head.extra' [3] is not a tensor of this model",
        "'bert.embeddings.LayerNorm.weight' has shape [7]; it must be [48]",
        "'exit_head.projections.bias' is torch.int64",
    ):
        assert any(part in fault for fault in found), part


def test_int8_without_or_with_wrong_scale(make_checkpoint: Make, tmp_path: Path) -> None:
    ckpt = Path(shutil.copytree(make_checkpoint("bert", storage="int8-rows"), tmp_path / "ckpt"))
    name = "bert.encoder.layer.0.intermediate.dense.weight"
    tensors = load_file(ckpt / "model.safetensors")
    scale = tensors.pop(name + SCALE)
    save_file(tensors, ckpt / "model.safetensors")
    assert f"'{name}{SCALE}' is missing" in faults(ckpt)[0]
    save_file(tensors | {name + SCALE: scale[:-1].clone()}, ckpt / "model.safetensors")
    assert f"'{name}{SCALE}'" in faults(ckpt)[0]


def test_label_map_that_does_not_fit_the_classifier(make_checkpoint: Make, tmp_path: Path) -> None:
    ckpt = Path(shutil.copytree(make_checkpoint("bert", labels=3, head="classifier"), tmp_path / "ckpt"))
    edit(ckpt, "config.json", id2label={"0": "no", "1": "yes"})
    assert any(
        "'id2label' names 2 labels, but model.safetensors 'classifier.weight' has 3 rows" in f for f in faults(ckpt)
    )


def test_label_map_that_does_not_fit_the_head(ckpt: Path) -> None:
    edit(ckpt, "config.json", id2label={"0": "no", "1": "yes"})
    assert any("exit_head.gate.weight" in fault for fault in faults(ckpt))


def test_tensors_of_old_transformers_are_understood(make_checkpoint: Make, tmp_path: Path) -> None:
    ckpt = Path(shutil.copytree(make_checkpoint("bert", head="classifier"), tmp_path / "ckpt"))
    before = pfengine.load(ckpt).layer_logits({"input_ids": [5, 6, 7]})
    tensors = load_file(ckpt / "model.safetensors")
    names = {key: key.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta") for key in tensors}
    old = {names[key]: value for key, value in tensors.items()}
    old["bert.embeddings.position_ids"] = torch.arange(520)[None]
    save_file(old, ckpt / "model.safetensors")
    (ckpt / "pfengine.json").unlink()
    assert (pfengine.load(ckpt).layer_logits({"input_ids": [5, 6, 7]}) == before).all()
