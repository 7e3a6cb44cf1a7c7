"""Losses and gradients of the model as it is trained against the authors' code."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel

import pfengine
from pfengine import reader
from pfengine.training.freezing import Freezing
from pfengine.training.past_future import PastFutureModel

HERE = Path(__file__).parent.parent
FOLDERS = (HERE / "golden" / "past-future", HERE.parent.parent / "shared" / "goldens" / "past-future")
CASES = sorted(
    {
        case.name: case for folder in FOLDERS for case in folder.glob("*/") if (case / "labels.safetensors").exists()
    }.items()
)


@pytest.fixture(scope="module", params=[path for _, path in CASES], ids=[name for name, _ in CASES])
def case(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture(scope="module", params=[0, 2], ids=["freeze0", "freeze2"])
def freeze(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.fixture(scope="module")
def trained(
    case: Path, freeze: int, tmp_path_factory: pytest.TempPathFactory
) -> tuple[PastFutureModel, dict[str, torch.Tensor]]:
    """The golden's weights in our training model, dropout 0, and one forward pass over all its rows.

    freeze: the lowest layers that are detached, surely so at the beginning of a run.
    """
    ckpt = reader.read(pfengine.convert(case, tmp_path_factory.mktemp("converted") / "ckpt"))
    raw = json.loads((ckpt.path / "config.json").read_text())
    backbone = AutoModel.from_config(AutoConfig.for_model(**raw), add_pooling_layer=False)
    prefix = ckpt.backbone.family.prefix
    weights = {key.removeprefix(prefix): value for key, value in ckpt.tensors.items() if key.startswith(prefix)}
    missing, extra = backbone.load_state_dict(weights, strict=False)
    assert not extra
    assert all("position_ids" in key for key in missing)
    model = PastFutureModel(backbone, ckpt.backbone, ckpt.manifest.head, freezing=Freezing("lower", freeze))
    model.objective = "authors"
    model.load_head(ckpt.tensors)
    inputs = load_file(case / "inputs.safetensors")
    if ckpt.backbone.family.name == "roberta":  # as the authors' script: no token types; padding has its own positions
        inputs.pop("token_type_ids")
    model.train()
    out = model(labels=load_file(case / "labels.safetensors")["labels"], **inputs)
    out["loss"].backward()
    return model, out


def test_losses(case: Path, freeze: int, trained: tuple) -> None:
    suffix = "_freeze2" if freeze else ""
    expected = load_file(case / "expected.safetensors")
    _, out = trained
    for ours, theirs in (("weighted_ce", "weighted_ce"), ("imitation", "imitation"), ("loss", "total")):
        assert out[ours].item() == pytest.approx(expected[f"loss.{theirs}{suffix}"].item(), abs=5e-5), ours
    logits = out["logits"].detach().transpose(0, 1).numpy()
    np.testing.assert_allclose(logits, expected["train_logits_per_layer" + suffix].numpy(), atol=5e-5)
    labels = load_file(case / "labels.safetensors")["labels"]
    each = [torch.nn.functional.cross_entropy(torch.from_numpy(layer), labels).item() for layer in logits]
    np.testing.assert_allclose(each, expected["loss.ce_per_layer" + suffix].numpy(), atol=5e-5)


def original_name(key: str, prefix: str) -> tuple[str, int | None]:
    """Our parameter name -> the authors' and, for a pooler of many, None (their norms are added up)."""
    if key.startswith("backbone."):
        return prefix + key.removeprefix("backbone."), None
    return {
        "exit_head.learners_weight": f"{prefix}pred_layer.weight",
        "exit_head.learners_bias": f"{prefix}pred_layer.bias",
        "exit_head.projections_weight": "classifiers.weight",
        "exit_head.projections_bias": "classifiers.bias",
        "exit_head.gate_weight": "classifiers.gate_proj.weight",
        "exit_head.gate_bias": "classifiers.gate_proj.bias",
    }.get(key, key), None


def test_gradients_flow_where_the_authors_let_them(case: Path, freeze: int, trained: tuple) -> None:
    model, _ = trained
    norms = json.loads((case / "grad_norms.json").read_text())["freeze2_detached" if freeze else "freeze0"]
    prefix = model.backbone_config.family.prefix
    checked = 0
    for key, parameter in model.named_parameters():
        if key.startswith("exit_head.poolers"):
            part = key.rsplit("_", 1)[1]
            names = [f"{prefix}pooler.{part}"]
            if parameter.shape[0] > 1:
                names = [f"{prefix}poolers.{i}.dense.{part}" for i in range(parameter.shape[0])]
            theirs = sum(norms[name] ** 2 for name in names) ** 0.5
        else:
            theirs = norms[original_name(key, prefix)[0]]
        if theirs is None:  # below a detached layer
            assert parameter.grad is None, key
            assert freeze, key
            continue
        assert parameter.grad is not None, key
        if theirs < 1e-5:  # key biases: analytically zero, noise
            continue
        ours = parameter.grad.norm().item()
        assert ours == pytest.approx(theirs, rel=1e-3), key
        checked += 1
    assert checked > 30 or prefix == "albert."
    assert checked > 15
