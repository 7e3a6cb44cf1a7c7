"""Converting checkpoints of the Past-Future authors' code (lancopku/Early-Exit)."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from torch import Tensor

from ..config import MAX_LAYERS
from ..errors import CheckpointError
from ..heads import PREFIX
from ..manifest import Manifest
from .source import Original, family_of, with_shapes


def recognises(tensors: Collection[str]) -> bool:
    return "classifiers.gate_proj.weight" in tensors and any(key.endswith("pred_layer.weight") for key in tensors)


def convert(
    path: Path, raw: dict[str, Any], tensors: dict[str, Tensor]
) -> tuple[dict[str, Any], Manifest, dict[str, Tensor]]:
    """Original config and tensors -> config.json, pfengine.json and tensors of a checkpoint.

    Shapes come from the tensors. BERT and RoBERTa have one pooler per layer (and an unused one), ALBERT one for all.
    Learners and projections are stored there as [slot, in, out]; the learner of slot 0 is never used.
    """
    family = family_of(path, tensors)
    original = Original(path, tensors, "Past-Future")
    get = original.get
    projections, projection_bias = get("classifiers.weight", 3), get("classifiers.bias", 2)
    learners, learner_bias = get(f"{family.prefix}pred_layer.weight", 3), get(f"{family.prefix}pred_layer.bias", 2)
    gate, gate_bias = get("classifiers.gate_proj.weight", 2), get("classifiers.gate_proj.bias", 1)
    layers, labels = projections.shape[0], gate_bias.shape[0]
    if not 1 <= layers <= MAX_LAYERS:
        raise CheckpointError(path, [f"'classifiers.weight' has {layers} layers; it must be 1 to {MAX_LAYERS}"])
    if family.shares_pooler:
        poolers = [f"{family.prefix}pooler"]
    else:
        poolers = [f"{family.prefix}poolers.{i}.dense" for i in range(layers)]
    pooler_weights = original.stack([f"{key}.weight" for key in poolers], 2)
    pooler_biases = original.stack([f"{key}.bias" for key in poolers], 1)
    if not original.faults and labels < 2:
        original.faults.append(
            "'classifiers.gate_proj.bias' has one entry: the system has no regression, entropy needs two labels"
        )
    original.check()

    converted = {key: value for key, value in tensors.items() if key.startswith(family.prefix)}
    for key in list(converted):
        if key.startswith(tuple(f"{family.prefix}{part}" for part in ("pooler.", "poolers.", "pred_layer."))):
            del converted[key]
    converted |= {
        f"{PREFIX}poolers.weight": pooler_weights,
        f"{PREFIX}poolers.bias": pooler_biases,
        f"{PREFIX}learners.weight": learners[1:].transpose(1, 2),
        f"{PREFIX}learners.bias": learner_bias[1:],
        f"{PREFIX}projections.weight": projections.transpose(1, 2),
        f"{PREFIX}projections.bias": projection_bias,
        f"{PREFIX}gate.weight": gate,
        f"{PREFIX}gate.bias": gate_bias,
    }
    manifest = Manifest(
        system="past-future",
        head={"type": "past-future", "pooler": "shared" if family.shares_pooler else "per-layer"},
        criterion="entropy",
        exit_layers=tuple(range(1, layers + 1)),
    )
    return with_shapes(raw, family, tensors, layers, labels), manifest, converted
