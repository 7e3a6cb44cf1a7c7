"""Cascades of CascadeBERT's authors give their numbers: every golden case that lies in the folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

import pfengine
from pfengine.exits.signals import signal

FOLDER = Path(__file__).parents[3] / "shared" / "goldens" / "cascadebert"
CASES = sorted(case.parent for case in FOLDER.glob("*/config.json"))
# the goldens were made by another implementation in fp32, on other kernels
TOLERANCE = 1e-4

pytestmark = pytest.mark.skipif(not CASES, reason="the goldens are not beside the repository, in shared/goldens")


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture(scope="module")
def engine(case: Path, tmp_path_factory: pytest.TempPathFactory) -> pfengine.Engine:
    """Recognised by its tensors."""
    return pfengine.load(pfengine.convert(case, tmp_path_factory.mktemp("converted") / "out"), criterion="never")


@pytest.fixture(scope="module")
def rows(case: Path) -> list[dict[str, np.ndarray]]:
    inputs = load_file(case / "inputs.safetensors")
    return [
        {"input_ids": inputs["input_ids"][i, :n], "token_type_ids": inputs["token_type_ids"][i, :n]}
        for i, n in enumerate(inputs["attention_mask"].sum(1))
    ]


def test_logits_of_every_model(case: Path, engine: pfengine.Engine, rows: list[Any]) -> None:
    expected = load_file(case / "expected.safetensors")
    logits = engine.layer_logits(rows)
    np.testing.assert_allclose(logits, expected["logits_per_model"], atol=TOLERANCE, rtol=0)
    confidences = signal("confidence", torch.from_numpy(logits)).numpy()
    np.testing.assert_allclose(confidences, expected["criterion_per_model"], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("batch_size", [1, 3, None])
def test_models_layers_and_answers(
    case: Path, engine: pfengine.Engine, rows: list[Any], batch_size: int | None
) -> None:
    config, expected = json.loads((case / "config.json").read_text()), load_file(case / "expected.safetensors")
    assert config["thresholds"]
    for k, threshold in enumerate(config["thresholds"]):
        out = engine.predict(rows, criterion=f"cascadebert:{threshold}", batch_size=batch_size)
        np.testing.assert_array_equal(out.models, expected[f"exit_model.{k}"])
        np.testing.assert_array_equal(out.exit_layers, expected[f"layers_spent.{k}"])
        np.testing.assert_allclose(out.logits, expected[f"final_logits.{k}"], atol=TOLERANCE, rtol=0)


def test_what_it_is(case: Path, engine: pfengine.Engine) -> None:
    config = json.loads((case / "config.json").read_text())
    manifest = engine.checkpoint.manifest
    assert (manifest.system, manifest.criterion, manifest.threshold) == ("cascadebert", "cascadebert", None)
    assert engine.exit_layers == tuple(np.cumsum(config["cascade_model_layers"]))


def test_scores_of_regression(tmp_path: Path) -> None:
    tensors = load_file(CASES[0] / "weights.safetensors")
    for key in [key for key in tensors if key.startswith("cascade_classifiers.")]:
        tensors[key] = tensors[key][:1]
    (tmp_path / "config.json").write_text((CASES[0] / "config.json").read_text())
    save_file(tensors, tmp_path / "weights.safetensors")
    engine = pfengine.load(pfengine.convert(tmp_path, tmp_path / "out"))
    assert engine.checkpoint.manifest.criterion is None
    assert engine.predict({"input_ids": [5, 6]}).models.tolist() == [2]
    assert engine.predict({"input_ids": [5, 6]}, criterion="patience:1,9").models.tolist() == [2]


CHANGES = {
    "classifier": (lambda t: t.pop("cascade_classifiers.0.bias"), r"'cascade_classifiers\.0\.bias' is missing"),
    "pooler": (lambda t: t.pop("cascade_models.1.pooler.dense.weight"), r"1\.pooler\.dense\.weight' is missing"),
    "layer": (
        lambda t: [t.pop(key) for key in list(t) if key.startswith("cascade_models.1.encoder.layer.1.")],
        r"'cascade_models\.1\.encoder\.layer\.1\.attention\.self\.query\.weight' is missing",
    ),
    "norm": (
        lambda t: t.pop("cascade_models.0.encoder.layer.0.output.LayerNorm.bias"),
        r"models/1: .*layer\.0\.output\.LayerNorm\.bias' \[48\] is missing",
    ),
    "one": (
        lambda t: [t.pop(key) for key in list(t) if not key.startswith(("cascade_models.0", "cascade_classifiers.0"))],
        "has one classifier; a cascade has two models or more",
    ),
}


@pytest.mark.parametrize(("change", "said"), CHANGES.values(), ids=CHANGES)
def test_damaged(tmp_path: Path, change: Any, said: str) -> None:
    tensors = load_file(CASES[0] / "weights.safetensors")
    change(tensors)
    (tmp_path / "config.json").write_text((CASES[0] / "config.json").read_text())
    save_file(tensors, tmp_path / "weights.safetensors")
    with pytest.raises(pfengine.CheckpointError, match=said):
        pfengine.convert(tmp_path, tmp_path / "out", system="cascadebert")
    assert not (tmp_path / "out").exists()
