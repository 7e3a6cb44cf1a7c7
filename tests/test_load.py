"""load(): paths, devices, precisions, lengths; and checkpoints whose faults hide."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import pfengine
from pfengine import extension, reader, saving

Make = Callable[..., Path]
ROW = {"input_ids": [3, 4, 5]}


@pytest.fixture
def ckpt(make_checkpoint: Make, tmp_path: Path) -> Path:
    return Path(shutil.copytree(make_checkpoint("bert", threshold=0.5), tmp_path / "ckpt"))


def test_paths(ckpt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ckpt.parent)
    expected = pfengine.load(ckpt).classify(ROW)
    for path in (str(ckpt), "ckpt", Path("ckpt"), "./ckpt/", Path("../") / ckpt.parent.name / "ckpt"):
        assert pfengine.load(path).classify(ROW) == expected


@pytest.mark.parametrize("path", ["nowhere", "a/b/c", "sst3", "\0", "x" * 5000], ids=lambda path: repr(path)[:10])
def test_paths_that_lead_nowhere(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(pfengine.CheckpointError, match="is not a directory"):
        pfengine.load(path)


def test_a_file_is_no_checkpoint(ckpt: Path) -> None:
    with pytest.raises(pfengine.CheckpointError, match="is not a directory"):
        pfengine.load(ckpt / "config.json")


def test_a_directory_of_ones_own_goes_before_a_bundled_one(ckpt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ckpt.parent)
    ckpt.rename("sst2")
    assert pfengine.load("sst2").num_layers == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "tpu"}, "device is 'tpu'"),
        ({"device": ""}, "device is ''"),
        ({"device": "mps"}, "device is 'mps'"),
        ({"device": None}, "device is None"),
        ({"device": 7}, "device is 7"),
        ({"precision": "fp8"}, "'auto', 'fp32', 'bf16', 'fp16' or 'int8'"),
        ({"precision": "FP32"}, "precision is 'FP32'"),
        ({"precision": None}, "precision is None"),
        ({"precision": torch.float32}, "precision is torch.float32"),
        ({"precision": "fp16"}, "fp16"),
        ({"precision": "fp16", "device": "cpu"}, "fp16"),
        ({"max_length": 0}, "max_length is 0; it must be a positive integer, at most 520"),
        ({"max_length": -5}, "max_length is -5; it must be a positive integer, at most 520"),
        ({"max_length": 521}, "1 to 520"),
        ({"max_length": "10"}, "max_length is '10'"),
        ({"max_length": 10.5}, "max_length is 10.5"),
        ({"max_length": True}, "max_length is True"),
    ],
    ids=repr,
)
def test_options_that_cannot_be_met(ckpt: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(pfengine.ConfigError, match=message):
        pfengine.load(ckpt, **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_a_gpu_that_is_not_there(ckpt: Path, device: str) -> None:
    with pytest.raises(pfengine.ConfigError, match="no GPU"):
        pfengine.load(ckpt, device=device)


def test_explicit_defaults_change_nothing(ckpt: Path) -> None:
    expected = pfengine.load(ckpt).classify(ROW)
    for options in ({"device": "cpu"}, {"device": torch.device("cpu")}, {"precision": "fp32"}, {"max_length": 520}):
        assert pfengine.load(ckpt, **options).classify(ROW) == expected  # type: ignore[arg-type]


GOOD = {"agreement": 0.995, "full_depth_agreement": 1.0, "layer_speedup_ratio": 0.99}


@pytest.mark.parametrize(
    ("checks", "fast", "guarantee", "expected"),
    [
        ({}, ["int8", "bf16"], None, "fp32"),
        ({"int8": GOOD, "bf16": GOOD}, ["int8", "bf16"], None, "int8"),
        ({"int8": GOOD, "bf16": GOOD}, [], None, "fp32"),
        ({"int8": GOOD | {"agreement": 0.98}, "bf16": GOOD}, ["int8", "bf16"], None, "bf16"),
        ({"int8": GOOD | {"full_depth_agreement": 0.98}, "bf16": GOOD}, ["int8"], None, "fp32"),
        ({"int8": GOOD | {"layer_speedup_ratio": 0.9}}, ["int8", "bf16"], None, "fp32"),
        ({"int8": GOOD, "bf16": GOOD}, ["int8", "bf16"], {"promise": "agreement"}, "fp32"),
    ],
)
def test_auto_is_the_fastest_that_passed_its_check(
    make_checkpoint: Make, checks: dict, fast: list, guarantee: Any, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not extension.has_cpu():
        pytest.skip(extension.status())
    monkeypatch.setattr("pfengine.ops.cpu.fast_precisions", lambda: fast)
    path = make_checkpoint("bert", precisions=checks, guarantee=guarantee)
    assert pfengine.load(path, criterion="never").precision == expected
    assert pfengine.load(path, criterion="never", precision="bf16").precision == "bf16"


def test_precisions_of_the_wrong_form_are_named(make_checkpoint: Make, tmp_path: Path) -> None:
    path = tmp_path / "ckpt"
    shutil.copytree(make_checkpoint("bert"), path)
    engine = json.loads((path / "pfengine.json").read_text())
    (path / "pfengine.json").write_text(json.dumps(engine | {"precisions": {"int8": {"agreement": "much"}}}))
    with pytest.raises(pfengine.CheckpointError, match=r"pfengine.json: 'precisions' is .* it must be an object of"):
        pfengine.load(path)


def test_bf16_is_close_and_is_not_fp32(make_checkpoint: Make, random_rows: Any) -> None:
    path = make_checkpoint("bert")
    rows = random_rows([3, 9, 40])
    exact = pfengine.load(path).layer_logits(rows)
    rough = pfengine.load(path, precision="bf16").layer_logits(rows)
    assert 0 < np.abs(exact - rough).max() < 0.1 * np.abs(exact).max()
    assert rough.dtype == np.float32


def test_max_length_cuts_ids(make_checkpoint: Make) -> None:
    path = make_checkpoint("roberta")  # two positions go to padding
    assert pfengine.load(path).max_length == 518
    ids = list(range(3, 80))
    with pytest.warns(UserWarning, match="1 of 1 rows had more than 10 tokens"):
        cut = pfengine.load(path, max_length=10).predict({"input_ids": ids})
    np.testing.assert_array_equal(cut.logits, pfengine.load(path).predict({"input_ids": ids[:10]}).logits)


def edit(path: Path, file: str, **fields: Any) -> None:
    raw = json.loads((path / file).read_text())
    (path / file).write_text(json.dumps(raw | fields))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("layers", [10**4, 10**9, 10**30])
def test_a_number_of_layers_nobody_has(ckpt: Path, layers: int) -> None:
    edit(ckpt, "config.json", num_hidden_layers=layers)
    with pytest.raises(pfengine.CheckpointError, match=r"config\.json: 'num_hidden_layers'") as caught:
        pfengine.load(ckpt)
    assert len(str(caught.value)) < 20_000


@pytest.mark.timeout(60)
@pytest.mark.parametrize("key", ["vocab_size", "hidden_size", "intermediate_size", "max_position_embeddings"])
def test_sizes_nobody_has(ckpt: Path, key: str) -> None:
    edit(ckpt, "config.json", **{key: 4 * 10**18})
    with pytest.raises(pfengine.CheckpointError, match="must be"):
        pfengine.load(ckpt)


@pytest.mark.parametrize("file", ["config.json", "pfengine.json"])
@pytest.mark.parametrize("content", ["[" * 100_000, '{"a":' * 100_000, "NaN", "\ufeff{}", "{'a': 1}"])
def test_json_that_is_none(ckpt: Path, file: str, content: str) -> None:
    (ckpt / file).write_text(content, encoding="utf-8")
    with pytest.raises(pfengine.CheckpointError, match=file.replace(".", r"\.")):
        pfengine.load(ckpt)


@pytest.mark.parametrize("file", ["config.json", "pfengine.json", "model.safetensors"])
def test_directories_in_the_place_of_files(ckpt: Path, file: str) -> None:
    (ckpt / file).unlink()
    (ckpt / file).mkdir()
    with pytest.raises(pfengine.CheckpointError, match=file.replace(".", r"\.")):
        pfengine.load(ckpt)


def test_every_cut_of_the_header_and_some_of_the_tensors(ckpt: Path) -> None:
    file = ckpt / "model.safetensors"
    content = file.read_bytes()
    cuts = [*range(12), 100, 8 + int.from_bytes(content[:8], "little") - 1, len(content) // 2, len(content) - 1]
    for cut in cuts:
        file.write_bytes(content[:cut])
        with pytest.raises(pfengine.CheckpointError, match=r"model\.safetensors is truncated or corrupt"):
            pfengine.load(ckpt)
    file.write_bytes(content + b"\0")
    with pytest.raises(pfengine.CheckpointError, match=r"model\.safetensors is truncated or corrupt"):
        pfengine.load(ckpt)
    file.write_bytes(content)
    assert pfengine.load(ckpt).classify(ROW)


def test_scales_without_int8_are_tensors_too_many(ckpt: Path) -> None:
    tensors = load_file(ckpt / "model.safetensors")
    name = "bert.encoder.layer.0.intermediate.dense.weight"
    save_file(tensors | {f"{name}.scale": torch.ones(72), "lonely.scale": torch.ones(1)}, ckpt / "model.safetensors")
    with pytest.raises(pfengine.CheckpointError) as caught:
        pfengine.load(ckpt)
    assert len(caught.value.faults) == 2
    assert f"{name}.scale" in str(caught.value)
    assert "lonely.scale" in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_float_weights_of_any_width(ckpt: Path, dtype: torch.dtype) -> None:
    tensors = {key: value.to(dtype) for key, value in load_file(ckpt / "model.safetensors").items()}
    save_file(tensors, ckpt / "model.safetensors")
    for key, value in reader.read(ckpt).tensors.items():
        assert torch.equal(value, tensors[key].float()), key


def test_label_names_in_any_order(ckpt: Path) -> None:
    edit(ckpt, "config.json", id2label={"2": "two", "0": "zero", "1": "one"})
    assert pfengine.load(ckpt).labels == ("zero", "one", "two")


def test_int8_storage_keeps_rows_of_zeros(make_checkpoint: Make, tmp_path: Path) -> None:
    good = reader.read(make_checkpoint("bert"))
    name = "bert.embeddings.word_embeddings.weight"
    tensors = {**good.tensors}
    tensors[name][5] = 0
    tensors[name][6] = 0
    tensors[name][6, 3] = 1e-30
    engine = pfengine.checkpoint.Manifest(**(vars(good.manifest) | {"storage": "int8-rows"}))
    restored = reader.read(saving.write(tmp_path / "out", good.backbone.raw, engine, tensors)).tensors
    assert torch.isfinite(restored[name]).all()
    assert (restored[name][5] == 0).all()
    assert restored[name][6, 3].item() == pytest.approx(1e-30)


def test_writing_takes_the_tokenizer_along(text_checkpoint: Path, tmp_path: Path) -> None:
    good = reader.read(text_checkpoint)
    out = saving.write(tmp_path / "a" / "b", good.backbone.raw, good.manifest, good.tensors, good.tokenizer)
    text = "the film is very good"
    assert pfengine.load(out).classify(text) == pfengine.load(text_checkpoint).classify(text)
    again = saving.write(out, good.backbone.raw, good.manifest, good.tensors, good.tokenizer)  # its own, over itself
    assert pfengine.load(again).classify(text) == pfengine.load(text_checkpoint).classify(text)
    assert sorted(os.listdir(tmp_path / "a")) == ["b"]


@pytest.mark.parametrize("kind", ["file", "link"])
def test_writing_over_something_else_is_refused(ckpt: Path, tmp_path: Path, kind: str) -> None:
    good = reader.read(ckpt)
    (tmp_path / "mine").write_text("years of work")
    target = tmp_path / "mine"
    if kind == "link":
        target = tmp_path / "link"
        target.symlink_to("mine")
    with pytest.raises(pfengine.CheckpointError, match="not a pfengine checkpoint"):
        saving.write(target, good.backbone.raw, good.manifest, good.tensors)
    assert (tmp_path / "mine").read_text() == "years of work"
    (tmp_path / "empty").mkdir()
    assert reader.read(saving.write(tmp_path / "empty", good.backbone.raw, good.manifest, good.tensors))


def test_loading_does_not_touch_the_files(ckpt: Path) -> None:
    def state() -> dict[str, tuple[bytes, int]]:
        return {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in ckpt.iterdir()}

    before = state()
    for file in ckpt.iterdir():
        file.chmod(0o444)
    pfengine.load(ckpt).classify([ROW] * 3)
    assert state() == before


def test_two_engines_of_one_checkpoint_are_independent(ckpt: Path) -> None:
    first, second = pfengine.load(ckpt, criterion="never"), pfengine.load(ckpt, threshold=99)
    assert first.predict(ROW).exit_layers.tolist() == [5]
    assert second.predict(ROW).exit_layers.tolist() == [1]
    assert first.predict(ROW).exit_layers.tolist() == [5]
