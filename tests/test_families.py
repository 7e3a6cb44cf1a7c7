"""A family is data: one from outside the package is an entry of FAMILIES."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pfengine
from pfengine import reader, saving
from pfengine.evaluation import tuned
from pfengine.families import BERT, FAMILIES


def test_a_family_from_outside(
    make_checkpoint: Callable[..., Path],
    random_rows: Callable[..., list[dict[str, Any]]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    path = make_checkpoint("bert")
    ckpt, rows = reader.read(path), random_rows([5, 9, 3])
    config = ckpt.backbone.raw | {"model_type": "mine"}
    tensors = {
        key.replace("bert.encoder.layer.", "bert.stack.").replace("bert.", "mine.", 1): value
        for key, value in ckpt.tensors.items()
    }
    with pytest.raises(pfengine.CheckpointError, match="'model_type' is 'mine'; it must be one of albert, bert"):
        saving.write(tmp_path / "mine", config, ckpt.manifest, tensors)
    mine = replace(BERT, name="mine", model_types=("mine",), prefix="mine.", block_key="stack.{layer}.")
    monkeypatch.setitem(FAMILIES, "mine", mine)
    ours = pfengine.load(saving.write(tmp_path / "mine", config, ckpt.manifest, tensors), precision="fp32")
    assert ours.model.config.family is mine
    theirs = pfengine.load(path, precision="fp32")
    np.testing.assert_array_equal(ours.layer_logits(rows), theirs.layer_logits(rows))


@pytest.mark.slow
@pytest.mark.parametrize("layers", [6, pytest.param(24, marks=pytest.mark.wide)])
def test_the_size_of_xlm_r_large(tmp_path: Path, layers: int) -> None:
    """Layers of 1,024, in every precision that runs here, beside transformers. Random weights."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.XLMRobertaConfig(
        vocab_size=1000, hidden_size=1024, num_hidden_layers=layers, num_attention_heads=16, intermediate_size=4096,
        max_position_embeddings=514, type_vocab_size=1, num_labels=3,
    )  # fmt: skip
    model = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    model.save_pretrained(tmp_path)
    draw = np.random.default_rng(0)
    rows = [draw.integers(5, 1000, length).tolist() for length in (3, 512, 1, 25, 130, 64, 17, 40)]
    with torch.inference_mode():
        expected = np.concatenate([model(input_ids=torch.tensor([row])).logits.numpy() for row in rows])
    for precision in tuned.precisions():
        engine = pfengine.load(tmp_path, precision=precision)
        found = engine.predict([{"input_ids": row} for row in rows]).logits
        # fp32 differs by rounding alone; else a share of the logits' range, as in bench/engines.py
        allowed = {"fp32": 3e-5, "bf16": 0.05 * np.ptp(expected), "int8": 0.15 * np.ptp(expected)}[precision]
        assert np.abs(found - expected).max() <= allowed, precision
        alone = [engine.predict([{"input_ids": row}]).logits[0] for row in rows]
        np.testing.assert_array_equal(found, alone)
