"""Converting checkpoints of COSEE's authors (He-Jianing/COSEE), as their examples/train.py saves them."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from torch import Tensor

from .linear import Converted, has_highways, linear_checkpoint, numbered
from .source import Original, family_of


def recognises(tensors: Collection[str]) -> bool:
    """DeeBERT's keys are the same, with a pooler of each highway's own."""
    return has_highways(tensors, poolers=False)


def convert(path: Path, raw: dict[str, Any], tensors: dict[str, Tensor]) -> Converted:
    """Original config and tensors -> config.json, pfengine.json and tensors of a checkpoint.

    The encoder's pooler serves all exits. The authors' script for evaluation has a pooler per highway, which their
    training neither has nor saves; it is not followed.
    """
    family = family_of(path, tensors)
    prefix = family.prefix
    highways = numbered(path, tensors, f"{prefix}encoder.highway.{{}}.classifier", "COSEE")
    return linear_checkpoint(
        Original(path, tensors, "COSEE"),
        raw,
        family,
        poolers=[f"{prefix}pooler.dense"],
        classifiers=[*highways, "classifier"],
        layers=len(highways) + 1,
        manifest={"system": "cosee", "criterion": "energy"},
    )
