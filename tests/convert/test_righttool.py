"""RightTool's checkpoints: what is read of them beside what the goldens show, and what is wrong with damaged ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import pfengine

CASE = Path(__file__).parents[3] / "shared" / "goldens" / "righttool" / "bert_n2_l0135"
pytestmark = pytest.mark.skipif(
    not CASE.is_dir(), reason="the goldens are not beside the repository, in shared/goldens"
)


def changed(path: Path, change: Callable[[dict[str, Any], dict[str, np.ndarray]], Any]) -> Path:
    """A copy of the case, with another config or other tensors."""
    raw, tensors = json.loads((CASE / "config.json").read_text()), load_file(CASE / "weights.safetensors")
    change(raw, tensors)
    (path / "config.json").write_text(json.dumps(raw))
    save_file(tensors, path / "weights.safetensors")
    return path


def test_without_temperatures_it_is_not_calibrated(tmp_path: Path) -> None:
    """Logits are those at temperature 1."""
    theirs = json.loads((CASE / "config.json").read_text())["temperatures"]
    out = pfengine.convert(changed(tmp_path, lambda raw, _: raw.pop("temperatures")), tmp_path / "out")
    rows = [{"input_ids": [5, 9, 30]}, {"input_ids": [7]}]
    plain = pfengine.load(out, criterion="never").layer_logits(rows)
    calibrated = pfengine.load(pfengine.convert(CASE, tmp_path / "calibrated"), criterion="never").layer_logits(rows)
    np.testing.assert_allclose(plain, calibrated * np.array(theirs, np.float32)[:, None, None], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda raw, t: raw.update(temperatures=[1, 1]), r"'temperatures' is \[1, 1\]; it must be 4 numbers > 0"),
        (lambda raw, t: raw.update(temperatures=[1, 1, 0, 1]), "it must be 4 numbers > 0"),
        (lambda raw, t: raw.update(temperatures=[1, True, 1, 1]), "it must be 4 numbers > 0"),
        (lambda raw, t: t.pop("_sum_weights.2"), "'_sum_weights.2' is missing; a RightTool checkpoint has it with 1"),
        (
            lambda raw, t: t.update({"_sum_weights.2": np.ones(2, np.float32)}),
            r"'_sum_weights' have \[1, 2, 2, 6\] numbers; each must have more than the one before",
        ),
        (
            lambda raw, t: t.update({"_classification_layers.1.weight": np.ones((2, 47), np.float32)}),
            r"'_classification_layers.1.weight' has shape \[2, 47\]; it must have \[2, 48\], for 48 numbers of a state",
        ),
        (
            lambda raw, t: t.update({"_classification_layers.1.weight": np.ones((2, 50), np.float32)}),
            r"'_classification_layers.2.weight' has shape \[2, 48\]; it must have \[2, 52\], .* and 2 logits of each",
        ),
        (lambda raw, t: t.pop("bert_model.pooler.dense.bias"), "'bert.pooler.dense.bias' is missing"),
    ],
)
def test_damaged(tmp_path: Path, change: Any, said: str) -> None:
    with pytest.raises(pfengine.CheckpointError, match=said):
        pfengine.convert(changed(tmp_path, change), tmp_path / "out")
