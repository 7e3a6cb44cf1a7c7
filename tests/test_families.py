"""A family is data: one from outside the package is an entry of FAMILIES."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pfengine
from pfengine import reader, saving
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
