"""The authors' checkpoints give the authors' numbers: every golden case that lies in the folders."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_tensors
from safetensors.torch import save_file

import pfengine
from pfengine.exits.criteria import entropy

HERE = Path(__file__).parent.parent
FOLDERS = (HERE / "golden" / "past-future", HERE.parent.parent / "shared" / "goldens" / "past-future")
CASES = sorted(
    {case.name: case for folder in FOLDERS for case in folder.glob("*/") if (case / "config.json").exists()}.items()
)
# the goldens were made by another implementation in fp32, on other kernels
TOLERANCE = 5e-5


@pytest.fixture(scope="module", params=[path for _, path in CASES], ids=[name for name, _ in CASES])
def case(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture(scope="module")
def engine(case: Path, tmp_path_factory: pytest.TempPathFactory) -> pfengine.Engine:
    out = pfengine.convert(case, tmp_path_factory.mktemp("converted") / "ckpt", system="past-future")
    return pfengine.load(out)


@pytest.fixture(scope="module")
def rows(case: Path) -> list[dict[str, np.ndarray]]:
    inputs = load_file(case / "inputs.safetensors")
    lengths = inputs["attention_mask"].sum(1)
    return [
        {"input_ids": inputs["input_ids"][i, :n], "token_type_ids": inputs["token_type_ids"][i, :n]}
        for i, n in enumerate(lengths)
    ]


@pytest.fixture(scope="module")
def expected(case: Path) -> dict[str, np.ndarray]:
    return load_file(case / "expected.safetensors")


def test_logits_and_entropies_at_every_layer(engine, rows, expected) -> None:
    logits = engine.layer_logits(rows)
    np.testing.assert_allclose(logits, expected["logits_per_layer"], atol=TOLERANCE, rtol=0)
    signals = entropy(torch.from_numpy(logits)).numpy()
    np.testing.assert_allclose(signals, expected["criterion_per_layer"], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("batch_size", [1, 3, None])
def test_exit_layers_and_final_logits(engine, rows, expected, batch_size: int | None) -> None:
    assert len(expected["thresholds"]) > 0
    for k, threshold in enumerate(expected["thresholds"]):
        out = engine.predict(rows, threshold=float(threshold), batch_size=batch_size)
        np.testing.assert_array_equal(out.exit_layers, expected[f"exit_layer.{k}"])
        np.testing.assert_allclose(out.logits, expected[f"final_logits.{k}"], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("size", [None, 5])
def test_order_and_company_play_no_part(engine, rows, expected, size: int | None) -> None:
    order = np.random.default_rng(5).permutation(len(rows) * 3) % len(rows)
    for k, threshold in enumerate(expected["thresholds"]):
        out = engine.predict([rows[i] for i in order], threshold=float(threshold), batch_size=size)
        np.testing.assert_array_equal(out.exit_layers, expected[f"exit_layer.{k}"][order])
        np.testing.assert_allclose(out.logits, expected[f"final_logits.{k}"][order], atol=TOLERANCE, rtol=0)


def test_runs_at_full_depth_until_told_a_threshold(engine, rows, expected) -> None:
    out = engine.predict(rows)
    assert (out.exit_layers == engine.num_layers).all()
    np.testing.assert_allclose(out.logits, expected["logits_per_layer"][-1], atol=TOLERANCE, rtol=0)


def test_criterion_vectors(shared: Path) -> None:
    vectors = load_file(shared / "goldens" / "past-future" / "_criterion" / "vectors.safetensors")
    counts = [key.removeprefix("logits.") for key in vectors if key.startswith("logits.")]
    assert counts
    for count in counts:
        ours = entropy(torch.from_numpy(vectors[f"logits.{count}"])).numpy()
        theirs = vectors[f"criterion.{count}"]
        slip = np.isnan(theirs)  # p log p of the official code at p = 0; a saturated row has entropy 0
        np.testing.assert_allclose(ours[~slip], theirs[~slip], atol=1e-5)
        assert (ours[slip] < 1e-6).all()


@pytest.mark.parametrize("form", ["model.safetensors", "pytorch_model.bin", "half", "DataParallel"])
def test_all_forms_of_source(tmp_path: Path, form: str) -> None:
    case = FOLDERS[0] / "bert_n2"
    source = tmp_path / "source"
    source.mkdir()
    shutil.copy(case / "config.json", source)
    tensors = load_tensors(case / "weights.safetensors")
    if form == "model.safetensors":
        save_file(tensors, source / form)
    elif form == "half":
        save_file({key: value.half() for key, value in tensors.items()}, source / "weights.safetensors")
    elif form == "DataParallel":
        save_file({f"module.{key}": value for key, value in tensors.items()}, source / "weights.safetensors")
    else:
        torch.save(tensors, source / form)
    out = pfengine.convert(source, tmp_path / "out")  # the system is found by the keys
    ids = {"input_ids": [5, 9, 30, 7]}
    direct = pfengine.load(pfengine.convert(case, tmp_path / "direct")).layer_logits(ids)
    tolerance = 0.05 if form == "half" else 0  # weights rounded to 11 bits
    np.testing.assert_allclose(pfengine.load(out).layer_logits(ids), direct, atol=tolerance, rtol=0)


def copy_case(tmp_path: Path, drop: tuple[str, ...] = (), change: dict | None = None) -> Path:
    source = tmp_path / "source"
    source.mkdir()
    raw = json.loads((FOLDERS[0] / "bert_n2" / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(raw))
    tensors = load_tensors(FOLDERS[0] / "bert_n2" / "weights.safetensors")
    kept = {key: value for key, value in tensors.items() if key not in drop} | (change or {})
    save_file(kept, source / "weights.safetensors")
    return source


def test_sizes_come_from_the_tensors(tmp_path: Path) -> None:
    source = copy_case(tmp_path)
    raw = json.loads((source / "config.json").read_text())
    for key in ("num_labels", "vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size", "type_vocab_size"):
        del raw[key]
    del raw["max_position_embeddings"], raw["model_type"]
    (source / "config.json").write_text(json.dumps(raw | {"seed": 1, "thresholds": [0.1], "id2label": {"0": "a"}}))
    engine = pfengine.load(pfengine.convert(source, tmp_path / "out"))
    assert (engine.num_layers, engine.labels) == (6, ("LABEL_0", "LABEL_1"))


@pytest.mark.parametrize("missing", ["classifiers.weight", "bert.poolers.3.dense.bias", "bert.pred_layer.weight"])
def test_missing_tensors_are_named(tmp_path: Path, missing: str) -> None:
    source = copy_case(tmp_path, drop=(missing, "bert.encoder.layer.2.output.dense.weight"))
    with pytest.raises(pfengine.CheckpointError) as caught:
        pfengine.convert(source, tmp_path / "out", system="past-future")
    assert missing in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_not_a_source(tmp_path: Path) -> None:
    with pytest.raises(pfengine.ConfigError, match="past-future"):
        pfengine.convert(FOLDERS[0] / "bert_n2", tmp_path / "out", system="past-past")
    source = copy_case(tmp_path, drop=("classifiers.gate_proj.weight",))
    with pytest.raises(pfengine.CheckpointError, match="of a known system"):
        pfengine.convert(source, tmp_path / "out")
    (source / "weights.safetensors").rename(source / "other.bin")
    with pytest.raises(pfengine.CheckpointError, match="has no weights"):
        pfengine.convert(source, tmp_path / "out")
    (source / "pytorch_model.bin").write_bytes(b"\x80\x04nonsense")
    with pytest.raises(pfengine.CheckpointError, match=r"pytorch_model\.bin"):
        pfengine.convert(source, tmp_path / "out")


class Evil:
    def __reduce__(self):
        return (print, ("code ran",))


def test_pickles_run_no_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(FOLDERS[0] / "bert_n2" / "config.json", tmp_path)
    torch.save({"weight": Evil()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(pfengine.CheckpointError, match="tensors alone"):
        pfengine.convert(tmp_path, tmp_path / "out")
    assert "code ran" not in capsys.readouterr().out


def test_source_is_never_written_over(tmp_path: Path) -> None:
    source = copy_case(tmp_path)
    with pytest.raises(pfengine.CheckpointError, match="not a pfengine checkpoint"):
        pfengine.convert(source, source)
    assert sorted(file.name for file in source.iterdir()) == ["config.json", "weights.safetensors"]


@pytest.mark.parametrize("layers", [0, 2**40])
def test_a_number_of_layers_nobody_has(tmp_path: Path, layers: int) -> None:
    source = copy_case(tmp_path, change={"classifiers.weight": torch.empty(layers, 0, 0)})
    with pytest.raises(pfengine.CheckpointError, match=f"has {layers} layers; it must be 1 to 1000"):
        pfengine.convert(source, tmp_path / "out")
