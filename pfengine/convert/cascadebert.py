"""Converting checkpoints of CascadeBERT's authors (lancopku/CascadeBERT) to cascades."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from torch import Tensor

from ..cascade_manifest import CascadeManifest
from ..errors import CheckpointError
from ..families import FAMILIES
from ..manifest import Manifest
from .linear import numbered
from .source import Cascaded, Converted, Original, encoder_tensors, with_shapes

MODEL, CLASSIFIER = "cascade_models.{}.", "cascade_classifiers.{}"
QUERY = "encoder.layer.{}.attention.self.query"


def recognises(tensors: Collection[str]) -> bool:
    return "cascade_classifiers.0.weight" in tensors


def convert(path: Path, raw: dict[str, Any], tensors: dict[str, Tensor]) -> Cascaded:
    """Original config and tensors -> the manifest of a cascade, and a checkpoint per model. Each is a BERT.

    Depths come from the tensors: config.json describes the last model only. The threshold is an option of the authors'
    scripts, and is in none of their files. For regression no criterion is written, because a score has no confidence.
    """
    count = len(numbered(path, tensors, CLASSIFIER, "CascadeBERT"))
    if count < 2:
        raise CheckpointError(path, ["has one classifier; a cascade has two models or more"])
    models = tuple(_model(path, raw, tensors, number) for number in range(count))
    scores = len(tensors[f"{CLASSIFIER.format(0)}.weight"]) == 1
    return Cascaded(CascadeManifest(count, "cascadebert", None if scores else "cascadebert"), models)


def _model(path: Path, raw: dict[str, Any], tensors: dict[str, Tensor], number: int) -> Converted:
    family, prefix, classifier = FAMILIES["bert"], MODEL.format(number), CLASSIFIER.format(number)
    layers = len(numbered(path, tensors, prefix + QUERY, "CascadeBERT"))
    original = Original(path, tensors, "CascadeBERT")
    head = {
        f"{ours}.{part}": original.get(f"{theirs}.{part}", dims)
        for ours, theirs in ((family.pooler, f"{prefix}pooler.dense"), (family.classifier, classifier))
        for part, dims in (("weight", 2), ("bias", 1))
    }
    original.check()
    own = {family.prefix + key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    config = with_shapes(raw, family, own, layers, len(head[f"{family.classifier}.bias"]))
    manifest = Manifest("cascadebert", {"type": "classifier"}, "never", exit_layers=(layers,))
    return config, manifest, encoder_tensors(family, own) | head
