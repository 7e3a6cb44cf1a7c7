"""FastBERT's checkpoints beyond the goldens: the package's keys, what config.json says, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import pfengine

Change = Callable[[dict[str, np.ndarray], dict[str, Any]], Any]
ROWS = [{"input_ids": [3, 7, 9, 5, 11], "token_type_ids": [0, 0, 0, 1, 1]}, {"input_ids": [4]}]


@pytest.fixture
def changed(shared: Path, tmp_path: Path) -> Callable[[Change], Path]:
    """changed(change) -> a golden case after change(tensors, config)."""
    case = shared / "goldens" / "fastbert" / "bert_n2"

    def make(change: Change) -> Path:
        tensors, config = load_file(case / "weights.safetensors"), json.loads((case / "config.json").read_text())
        change(tensors, config)
        out = tmp_path / "changed"
        out.mkdir()
        (out / "config.json").write_text(json.dumps(config))
        save_file(tensors, out / "weights.safetensors")
        return out

    return make


def logits(source: Path, out: Path) -> np.ndarray:
    return pfengine.load(pfengine.convert(source, out), criterion="never", precision="fp32").layer_logits(ROWS)


def as_in_the_package(tensors: dict[str, np.ndarray], config: dict[str, Any]) -> None:
    """Encoder under `kernel`, with the pretraining's own layers left in; a config without the classifier's numbers."""
    for key in [key for key in tensors if not key.startswith("classifiers.")]:
        tensors[f"kernel.{key}"] = tensors.pop(key)
    tensors["kernel.target.mlm_linear_1.weight"] = np.ones((48, 48), np.float32)
    for key in [key for key in config if key not in ("emb_size", "feedforward_size", "hidden_size", "heads_num")]:
        del config[key]


def test_the_package_on_pypi(changed: Callable[[Change], Path], shared: Path, tmp_path: Path) -> None:
    found = logits(changed(as_in_the_package), tmp_path / "package")
    script = logits(shared / "goldens" / "fastbert" / "bert_n2", tmp_path / "script")
    np.testing.assert_array_equal(found, script)


def test_what_is_written(changed: Callable[[Change], Path], tmp_path: Path) -> None:
    source = changed(lambda tensors, config: config.update(id2label={"0": "bad", "1": "good"}))
    ckpt = pfengine.load(pfengine.convert(source, tmp_path / "out")).checkpoint
    assert (ckpt.manifest.system, ckpt.manifest.criterion) == ("fastbert", "fastbert")
    assert ckpt.manifest.head == {"type": "attentive", "width": 128, "heads": 2, "pooling": "first"}
    assert (ckpt.backbone.layer_norm_eps, ckpt.backbone.type_vocab_size) == (1e-12, 2)
    assert ckpt.backbone.labels == ("bad", "good")


def drop(part: str) -> Change:
    return lambda tensors, config: [tensors.pop(key) for key in list(tensors) if part in key]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            drop("2.self_atten.linear_layers.1.bias"),
            r"'classifiers.2.self_atten.linear_layers.1.bias' is missing; a Fa",
        ),
        (drop("classifiers.2."), r"'classifiers.2.output_layer_0.weight' is missing; a FastBERT checkpoint has it"),
        (drop("classifiers.3."), "the encoder has more layers than the 3 that have a classifier"),
        (drop("transformer.3."), r"'encoder.transformer.3.self_attn.linear_layers.0.weight' is missing"),
        (drop("segment"), r"'embedding.segment_embedding.weight' is missing"),
        (
            lambda tensors, _: tensors.update({"embedding.segment_embedding.weight": np.ones((1, 48), np.float32)}),
            "segment_embedding.weight' has one row, which is padding's",
        ),
        (lambda _, config: config.update(pooling="last"), "'pooling' is 'last'; only first or max can be converted"),
        (lambda _, config: config.update(heads_num=True), "'heads_num' is True; it must be an integer >= 1"),
        (lambda _, config: config.pop("heads_num"), "'heads_num' is None; it must be an integer >= 1"),
        (lambda _, config: config.update(classifier_heads_num=3), "'head.width' is 128, which the 3 heads do not divi"),
        (lambda _, config: config.update(hidden_act="linear"), "'hidden_act' is 'linear'; it must be one of"),
        (
            lambda tensors, _: [
                tensors.update({key: value[:1]}) for key, value in tensors.items() if "output_layer_2" in key
            ],
            "'classifiers.0.output_layer_2.bias' has one entry; the criterion needs two labels",
        ),
    ],
)
def test_refused(changed: Callable[[Change], Path], tmp_path: Path, change: Change, said: str) -> None:
    with pytest.raises(pfengine.CheckpointError, match=said):
        pfengine.convert(changed(change), tmp_path / "out", system="fastbert")
    assert not (tmp_path / "out").exists()
