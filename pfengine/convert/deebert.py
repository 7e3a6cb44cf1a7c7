"""Converting checkpoints of DeeBERT's authors (castorini/DeeBERT), and of transformers' port in research_projects."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from torch import Tensor

from .linear import linear_checkpoint, numbered
from .source import Converted, Original, family_of


def recognises(tensors: Collection[str]) -> bool:
    """COSEE's keys are the same, without poolers of the highways' own."""
    return any(key.endswith(".encoder.highway.0.classifier.weight") for key in tensors) and any(
        ".highway." in key and ".pooler." in key for key in tensors
    )


def convert(path: Path, raw: dict[str, Any], tensors: dict[str, Tensor]) -> Converted:
    """Original config and tensors -> config.json, pfengine.json and tensors of a checkpoint.

    The exit after layer i < n is highway i. After the last layer the ordinary classifier answers, as in the paper. The
    authors' code has a highway there too, which its own recipe never trains; it is left out.
    """
    family = family_of(path, tensors)
    prefix = family.prefix
    highways = [
        key.removesuffix(".classifier")
        for key in numbered(path, tensors, f"{prefix}encoder.highway.{{}}.classifier", "DeeBERT")
    ][:-1]
    return linear_checkpoint(
        Original(path, tensors, "DeeBERT"),
        raw,
        family,
        poolers=[*(f"{key}.pooler.dense" for key in highways), f"{prefix}pooler.dense"],
        classifiers=[*(f"{key}.classifier" for key in highways), "classifier"],
        layers=len(highways) + 1,
        manifest={"system": "deebert", "criterion": "entropy"},
    )
