"""Converting checkpoints of ElasticBERT's authors (fastnlp/ElasticBERT), fine-tuned for classification."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from ..errors import CheckpointError
from .linear import Converted, linear_checkpoint, numbered
from .source import Original, family_of

PREFIX = "elasticbert."
T = TypeVar("T")


def recognises(tensors: Collection[str]) -> bool:
    return any(key.startswith(f"{PREFIX}encoder.pooler.") for key in tensors) and "classifiers.0.weight" in tensors


def as_bert(tensors: Mapping[str, T]) -> dict[str, T]:
    """Under the names of BERT, which the encoder is; pre-trained ones have the same prefix."""
    return {f"bert.{key.removeprefix(PREFIX)}" if key.startswith(PREFIX) else key: tensors[key] for key in tensors}


def convert(path: Path, raw: dict[str, Any], tensors: dict[str, Tensor]) -> Converted:
    """Original config and tensors -> config.json, pfengine.json and tensors of a checkpoint. The encoder is a BERT."""
    tensors = as_bert(tensors)
    family = family_of(path, tensors)
    poolers = numbered(path, tensors, "bert.encoder.pooler.{}.dense", "ElasticBERT")
    layers = numbered(path, tensors, "bert.encoder.layer.{}.attention.self.query", "ElasticBERT")
    if len(poolers) != len(layers):
        raise CheckpointError(
            path, [f"has exits after the last {len(poolers)} of {len(layers)} layers only; train one per layer"]
        )
    return linear_checkpoint(
        Original(path, tensors, "ElasticBERT"),
        raw,
        family,
        poolers=poolers,
        classifiers=numbered(path, tensors, "classifiers.{}", "ElasticBERT"),
        layers=len(layers),
        manifest={"system": "elasticbert", "criterion": "entropy"},
    )
