"""Converting checkpoints of RightTool's authors (allenai/sledgehammer)."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..heads import PREFIX
from ..manifest import Manifest
from .linear import Converted, numbered
from .source import Original, encoder_tensors, family_of, with_shapes

ENCODER, OURS = "bert_model.", "bert."
CLASSIFIER, MIX = "_classification_layers.{}", "_sum_weights.{}"


def recognises(tensors: Collection[str]) -> bool:
    return MIX.format(0) in tensors and f"{CLASSIFIER.format(0)}.weight" in tensors


def convert(path: Path, raw: dict[str, Any], tensors: Mapping[str, Tensor]) -> Converted:
    """Original config and tensors -> config.json, pfengine.json and tensors of a checkpoint. The encoder is a BERT.

    Exit c has one mixing weight per state that it reads, so their number says after which layer it stands. The authors
    keep temperatures apart from their checkpoints: here they are the list `temperatures` of config.json, one per exit,
    and 1 where there is none.
    """
    tensors = {
        OURS + key.removeprefix(ENCODER) if key.startswith(ENCODER) else key: value for key, value in tensors.items()
    }
    family = family_of(path, tensors)
    original = Original(path, tensors, "RightTool")
    classifiers = numbered(path, tensors, CLASSIFIER, "RightTool")
    exits = len(classifiers)
    mixes = [original.get(MIX.format(c), 1) for c in range(exits)]
    weights = [original.get(f"{key}.weight", 2) for key in classifiers]
    bias = original.stack([f"{key}.bias" for key in classifiers], 1)
    pooler = {
        f"{PREFIX}poolers.{part}": original.stack([f"{OURS}pooler.dense.{part}"], dims)
        for part, dims in (("weight", 2), ("bias", 1))
    }
    temperatures = raw.get("temperatures", [1.0] * exits)
    if not isinstance(temperatures, list) or len(temperatures) != exits or not all(map(_is_temperature, temperatures)):
        original.faults.append(f"config.json: 'temperatures' is {temperatures!r}; it must be {exits} numbers > 0")
    original.check()
    layers, labels, hidden = [len(mix) for mix in mixes], len(bias[0]), pooler[f"{PREFIX}poolers.bias"].shape[1]
    if layers != sorted(set(layers)):
        original.faults.append(f"'_sum_weights' have {layers} numbers; each must have more than the one before")
    previous = any(weight.shape[1] > hidden for weight in weights)
    for c, (key, weight) in enumerate(zip(classifiers, weights, strict=True)):
        expected = [labels, hidden + c * labels * previous]
        if list(weight.shape) != expected:
            original.faults.append(
                f"'{key}.weight' has shape {list(weight.shape)}; it must have {expected}, for {hidden} numbers of a "
                f"state{f' and {labels} logits of each exit before it' if previous else ''}"
            )
    original.check()
    head = pooler | {
        f"{PREFIX}mix.weight": torch.stack([F.pad(mix, (0, layers[-1] - len(mix))) for mix in mixes]),
        f"{PREFIX}classifiers.weight": torch.stack([weight[:, :hidden] for weight in weights]),
        f"{PREFIX}classifiers.bias": bias,
        f"{PREFIX}log_temperatures": torch.tensor(temperatures, dtype=torch.float64, device="cpu").log().float(),
    }
    if previous:
        width = (exits - 1) * labels
        read = [F.pad(weight[:, hidden:], (0, hidden + width - weight.shape[1])) for weight in weights]
        head[f"{PREFIX}previous.weight"] = torch.stack(read)
    manifest = Manifest(
        system="righttool",
        head={"type": "mixed", "layers": layers, "previous": previous, "pooler": "shared"},
        criterion="confidence",
        exit_layers=tuple(layers),
    )
    config = with_shapes(raw, family, tensors, layers[-1], labels)
    return config, manifest, encoder_tensors(family, tensors) | head


def _is_temperature(value: Any) -> bool:
    return type(value) in (int, float) and value > 0 and math.isfinite(value)
