"""Losses and gradients are those of each system's authors: every golden case that lies in the folders.

The authors' weights are converted, a recipe's loss is computed with what the converter makes of them, and gradients
flow back through the converter to the authors' own tensors.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModel

from pfengine.config import parse_backbone
from pfengine.training import SYSTEMS, ExitModel

FOLDER = Path(__file__).parents[3] / "shared" / "goldens"
TOLERANCE = 1e-4  # of losses: made by another implementation in fp32
NORMS = 1e-3  # of gradient norms, relative
NOISE = 1e-5  # the gradient of an attention key's bias is zero, and rounding in practice


class Run(NamedTuple):
    """A loss of a case: its name in expected.safetensors, in grad_norms.json, and where the recipe gives it."""

    loss: str
    norms: str
    phase: int = 0
    options: tuple[tuple[str, Any], ...] = ()
    step: int = 0  # within an epoch


def runs(system: str, config: dict[str, Any]) -> list[Run]:
    if system == "deebert":
        last = config["num_hidden_layers"] > 1
        stages = [
            Run("stage1_final_head", "stage1_raw"),
            Run("stage2_sum_highways_but_last", "stage2_train_highway", 1),
        ]
        return stages[: 1 + last]
    if system == "fastbert":
        return [Run("stage1_finetune", "stage1_finetune"), Run("stage2_distill", "stage2_distill", 1)]
    if system == "elbert":
        return [Run("total", "train", options=(("layer_weights", config["weight_name"]),))]
    if system == "elasticbert":
        return [Run("total.entropy_variant", "entropy_variant"), Run("total.patience_variant", "patience_variant")]
    if system == "seqlab-early-exit":
        on = (("flooding", "on"),)
        return [
            Run("joint", "joint"),
            Run("self_sampling", "self_sampling", 1),
            Run("self_sampling_true_label_no_flooding", "self_sampling_true_label_no_flooding", 1),
            Run("self_sampling_defaults_flooding", "self_sampling_defaults_flooding", 1, on),
        ]
    if system == "righttool":
        return [Run("total", "train", options=(("mixing", "fixed"),))]
    if system == "berxit":
        return list(of_berxit(config))
    return [Run("total", "train")]


def of_berxit(config: dict[str, Any]) -> Iterator[Run]:
    """The loss of each strategy. Theirs counts layers from 0, and has learned scores of some families."""
    for name in ("raw", "only-highway", "all", "weight-linear"):
        yield Run(name.replace("only-", "only_"), name.replace("only-", "only_"), options=(("strategy", name),))
    yield Run("limit2", "limit2", options=(("strategy", "limit"), ("limit", 3)))
    for phase, name in enumerate(("raw", "only_highway")):
        yield Run(name, name, phase, (("strategy", "two-stage"),))
    if config["num_labels"] > 1:
        yield Run("self_distil", "self_distil", options=(("strategy", "self-distil"),))
    for strategy in ("alternate", *(["alternate-lte"] if "lte_thresholds" in config else [])):
        for name, step in (("even", 0), ("odd", 1), ("even", 4), ("odd", 7)):
            yield Run(f"{strategy}.{name}", f"{strategy}.{name}", options=(("strategy", strategy),), step=step)


def cases() -> Iterator[Any]:
    for system in ("berxit", "deebert", "fastbert", "pabee", "elbert", "elasticbert", "righttool", "seqlab-early-exit"):
        for file in sorted((FOLDER / system).glob("*/config.json")):
            for run in runs(system, json.loads(file.read_text())):
                yield pytest.param(file.parent, run, id=f"{system}-{file.parent.name}-{run.loss}-{run.step}")


CASES = list(cases())
pytestmark = pytest.mark.skipif(not CASES, reason="the goldens are not beside the repository, in shared/goldens")


def recipe_of(case: Path, options: dict[str, Any]) -> tuple[ExitModel, dict[str, Tensor], dict[str, Tensor]]:
    """The recipe's model, the authors' tensors as leaves, and the tensors that the converter makes of them."""
    system = SYSTEMS[case.parent.name]
    original = load_file(case / "weights.safetensors")
    leaves = {key: value.requires_grad_(value.is_floating_point()) for key, value in original.items()}
    assert system.converter is not None
    raw, manifest, tensors = system.converter.convert(case, json.loads((case / "config.json").read_text()), leaves)
    faults: list[str] = []
    config = parse_backbone(raw, faults)
    assert config is not None
    settings = AutoConfig.for_model(**{**raw, "attn_implementation": "eager"})
    backbone = AutoModel.from_config(settings, dtype=torch.float32)
    backbone.pooler = None
    model = system.recipe(backbone, config, manifest.head, options=options)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model.train(), leaves, tensors


def fastbert_loss(logits: Tensor, labels: Tensor, phase: int) -> Tensor:
    """By its formula, from the logits of every exit [exits, B, C]."""
    if not phase:
        return F.cross_entropy(logits[-1], labels)
    *students, teacher = logits.log_softmax(-1)
    return torch.stack([(teacher.exp() * (teacher - each)).sum() for each in students]).sum() / len(labels)


def of_words(inputs: dict[str, Tensor], labels: dict[str, Tensor], run: Run) -> tuple[dict[str, Tensor], float]:
    """The arguments of a tagger's model, and what the authors' loss adds to ours.

    They count |0 - (-1)| for every word of padding: a constant, without a gradient.
    """
    words = labels["labels"] != -100
    arguments = {
        "input_ids": inputs["input_ids"],
        "attention_mask": inputs["attention_mask"],
        "labels": labels["labels"],
    }
    arguments |= {"first_pieces": inputs["first_piece_pos"], "pieces": inputs["pieces_per_word"] * words}
    if run.phase:
        arguments["exits"] = labels["active_words"].sum(1)[words]
        arguments["before"] = labels["flooding_bias"].transpose(0, 1)[:, words]
    return arguments, float((~words).sum() / words.sum()) if run.options else 0.0


@pytest.mark.parametrize(("case", "run"), CASES)
def test_loss_and_gradients(case: Path, run: Run) -> None:
    model, leaves, tensors = recipe_of(case, dict(run.options))
    model.phase, model.epoch_step = model.phases()[run.phase], run.step
    inputs, labels = load_file(case / "inputs.safetensors"), load_file(case / "labels.safetensors")
    if "layer_weights" in dict(model.named_parameters()):
        with torch.no_grad():
            model.layer_weights.copy_(labels["W"])
    prefix = model.backbone_config.family.prefix
    values = {f"backbone.{key.removeprefix(prefix)}": value for key, value in tensors.items() if key.startswith(prefix)}
    values |= {f"exit_head.{name}": tensors[key] for name, key in model._keys.items()}
    if getattr(model, "last_pooler", None) is not None:  # BERxiT's: it is trained, and not converted
        theirs = f"{prefix}encoder.highway.{model.backbone_config.num_layers - 1}.pooler.dense"
        values |= {f"last_pooler.{part}": leaves[f"{theirs}.{part}"] for part in ("weight", "bias")}
    if not model.backbone_config.type_vocab_size and "token_type_ids" in inputs:
        del inputs["token_type_ids"]
    arguments, constant = {"labels": labels["labels"], **inputs}, 0.0
    if case.parent.name == "seqlab-early-exit":
        arguments, constant = of_words(inputs, labels, run)
    loss = torch.func.functional_call(model, values, (), arguments, strict=False)["loss"]
    expected, config = load_file(case / "expected.safetensors"), json.loads((case / "config.json").read_text())
    theirs_of_all = expected[f"loss.{run.loss}"].reshape(())
    if config.get("pooling") == "max":
        # The authors' maximum is taken over padding too, and this loss is of rows with padding. The formula that gives
        # it for their logits of such rows gives ours for their logits of the same rows alone.
        padded, alone = (
            fastbert_loss(expected[key], labels["labels"], run.phase)
            for key in ("logits_per_layer_padded", "logits_per_layer")
        )
        torch.testing.assert_close(padded, theirs_of_all, atol=TOLERANCE, rtol=0)
        torch.testing.assert_close(loss.detach(), alone, atol=TOLERANCE, rtol=0)
        return
    torch.testing.assert_close(loss.detach() + constant, theirs_of_all, atol=TOLERANCE, rtol=0)

    names = [key for key, value in leaves.items() if value.requires_grad]
    found = torch.autograd.grad(loss, [leaves[key] for key in names], allow_unused=True, retain_graph=True)
    norms = {key: 0.0 if g is None else float(g.norm()) for key, g in zip(names, found, strict=True)}
    expected_norms = json.loads((case / "grad_norms.json").read_text())[run.norms]
    assert any(expected_norms.values())
    for key, norm in expected_norms.items():
        if norm is None or norm < NOISE:
            assert norms[key] < NOISE * 10, key
        else:
            assert norms[key] == pytest.approx(norm, rel=NORMS), key
    if "grad_W" in expected and "layer_weights" in dict(model.named_parameters()):
        (own,) = torch.autograd.grad(loss, [model.layer_weights])
        np.testing.assert_allclose(own.numpy(), expected["grad_W"].numpy(), atol=TOLERANCE)
