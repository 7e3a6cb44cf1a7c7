"""Plain directories with a pickle alone become ones that load; nothing in it runs, and no link leads out."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import pfengine
from pfengine import reader

Make = Callable[..., Path]
TEXT = "the film is very good"
NAME = "classifier.weight"


@pytest.fixture
def plain(make_text_checkpoint: Make, tmp_path: Path) -> Path:
    """A classifier as transformers leaves it: config.json, weights, tokenizer."""
    path = Path(shutil.copytree(make_text_checkpoint(head="classifier"), tmp_path / "plain"))
    (path / "pfengine.json").unlink()
    return path


def pickle(path: Path, change: Callable[[dict[str, Tensor]], Any] = dict, **options: Any) -> Path:
    """pytorch_model.bin in the place of model.safetensors."""
    content = change(load_file(path / "model.safetensors"))
    (path / "model.safetensors").unlink()
    torch.save(content, path / "pytorch_model.bin", **options)
    return path


def transposed_twice(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return tensors | {NAME: tensors[NAME].t().contiguous().t()}


def tied(tensors: dict[str, Tensor]) -> dict[str, Any]:
    return {key: torch.nn.Parameter(value) for key, value in tensors.items()} | {
        "bert.pooler.dense.bias": tensors["bert.encoder.layer.0.output.dense.bias"],
        "bert.encoder.layer.0.output.dense.bias": tensors["bert.encoder.layer.0.output.dense.bias"],
    }


@pytest.mark.parametrize("architectures", [None, ["BertForSequenceClassification"], ["Odd"], 3, [1, None], {"a": []}])
def test_a_pickle_becomes_what_loads(plain: Path, tmp_path: Path, architectures: Any) -> None:
    expected = pfengine.load(plain).classify(TEXT)
    raw = json.loads((plain / "config.json").read_text())
    if architectures is not None:
        raw["architectures"] = architectures
    (plain / "config.json").write_text(json.dumps(raw))
    pickle(plain)
    with pytest.raises(pfengine.CheckpointError) as caught:
        pfengine.load(plain)
    words = str(caught.value).split("`")[1].split()
    assert words == ["pfengine", "convert", str(plain), "OUT"]  # and just that is what helps
    out = pfengine.convert(words[2], tmp_path / "out")
    assert pfengine.load(out).classify(TEXT) == expected
    assert reader.read(out).manifest.system == "full-model"


@pytest.mark.parametrize(
    ("change", "options"),
    [
        (transposed_twice, {}),
        (dict, {"_use_new_zipfile_serialization": False}),
        (lambda tensors: {f"module.{key}": value for key, value in tensors.items()}, {}),
        (lambda tensors: {key.removeprefix("bert."): value for key, value in tensors.items()}, {}),
        (lambda tensors: tensors | {"bert.embeddings.position_ids": torch.arange(64)[None]}, {}),
    ],
)  # fmt: skip
def test_forms_of_pickles(plain: Path, tmp_path: Path, change: Any, options: dict[str, Any]) -> None:
    expected = pfengine.load(plain).classify(TEXT)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (
            pfengine.load(pfengine.convert(pickle(plain, change, **options), tmp_path / "out")).classify(TEXT)
            == expected
        )


def test_tensors_that_share_their_memory(plain: Path, tmp_path: Path) -> None:
    tensors = tied(load_file(plain / "model.safetensors"))
    found = reader.read(pfengine.convert(pickle(plain, lambda _: tensors), tmp_path / "out")).tensors
    for key, value in tensors.items():
        assert torch.equal(found[key], value), key


def test_pickles_in_shards(plain: Path, tmp_path: Path) -> None:
    expected = pfengine.load(plain).classify(TEXT)
    tensors = load_file(plain / "model.safetensors")
    (plain / "model.safetensors").unlink()
    places = {}
    for i in range(2):
        part = {key: tensors[key] for key in sorted(tensors)[i::2]}
        torch.save(part, plain / f"pytorch_model-0000{i + 1}-of-00002.bin")
        places |= dict.fromkeys(part, f"pytorch_model-0000{i + 1}-of-00002.bin")
    (plain / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    with pytest.raises(pfengine.CheckpointError, match=r"which only `pfengine convert .* OUT` reads"):
        pfengine.load(plain)
    assert pfengine.load(pfengine.convert(plain, tmp_path / "out")).classify(TEXT) == expected
    (plain / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(pfengine.CheckpointError, match=r"pytorch_model-00002-of-00002\.bin is missing, which"):
        pfengine.convert(plain, tmp_path / "out2")


class Evil:
    def __reduce__(self) -> Any:
        return os.mkdir, ("was-run",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({NAME: Evil()}, r"cannot be read as tensors alone: it holds posix\.mkdir, and no code"),
        (torch.nn.Linear(2, 2), r"it holds torch\.nn\.modules\.linear\.Linear, and no code"),
        ({NAME: np.float64(3)}, r"it holds numpy\..*scalar, and no code"),
        ({"model": {NAME: torch.ones(2)}}, "is not a state dict"),
        ({NAME: torch.ones(2), "epoch": 3}, "is not a state dict"),
        ([torch.ones(2)], "is not a state dict"),
        ({NAME: torch.ones(2, 2).to_sparse()}, f"'{NAME}' is sparse or quantised"),
        ({NAME: torch.tensor([[float("nan")]])}, "is missing|NaN"),
        ({"bert.embeddings.word_embeddings.weight": torch.ones(2, 2)}, "of a known system .* and no classifier"),
        (b"", "it is damaged, or torch.save did not write it"),
        (b"PK\3\4" + bytes(500), "it is damaged, or torch.save did not write it"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "is a git-lfs pointer"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("legacy", [False, True])
def test_pickles_that_are_refused(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Any, message: str, legacy: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    pickle(plain, lambda _: content, _use_new_zipfile_serialization=not legacy)
    if isinstance(content, bytes):
        (plain / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(pfengine.CheckpointError, match=message) as caught:
        pfengine.convert(plain, tmp_path / "out")
    assert not any(advice in str(caught.value) for advice in ("weights_only", "safe_globals", "trust"))
    assert not (tmp_path / "was-run").exists()
    assert not (tmp_path / "out").exists()


def test_numbers_that_are_none(plain: Path, tmp_path: Path) -> None:
    pickle(plain, lambda tensors: tensors | {"classifier.bias": torch.tensor([0, float("inf"), 0])})
    with pytest.raises(pfengine.CheckpointError, match=r"pytorch_model\.bin: 'classifier\.bias' has 1 NaN or infinite"):
        pfengine.convert(plain, tmp_path / "out")


def test_code_of_its_own_is_not_taken_along(plain: Path, tmp_path: Path) -> None:
    raw = json.loads((plain / "config.json").read_text())
    (plain / "config.json").write_text(json.dumps(raw | {"auto_map": {"AutoModel": "evil.Model"}}))
    with pytest.warns(UserWarning, match="'auto_map' names code beside it, which is never run"):
        out = pfengine.convert(plain, tmp_path / "out")
    assert "auto_map" not in (out / "config.json").read_text()


def test_links_out_of_the_directory(plain: Path, tmp_path: Path) -> None:
    pickle(plain)
    (plain / "pytorch_model.bin").rename(tmp_path / "weights")
    (plain / "pytorch_model.bin").symlink_to("../weights")
    with pytest.raises(pfengine.CheckpointError, match=r"pytorch_model\.bin is a symbolic link out of this directory"):
        pfengine.convert(plain, tmp_path / "out")
