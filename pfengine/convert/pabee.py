"""Converting checkpoints of PABEE's authors (JetRunner/PABEE), and of transformers' port in research_projects."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from torch import Tensor

from .linear import Converted, linear_checkpoint, numbered
from .source import Original, family_of

POOLERS = ("bert.pooler.dense", "albert.pooler")  # one for all layers


def recognises(tensors: Collection[str]) -> bool:
    return "classifiers.0.weight" in tensors and any(f"{pooler}.weight" in tensors for pooler in POOLERS)


def convert(path: Path, raw: dict[str, Any], tensors: dict[str, Tensor]) -> Converted:
    """Original config and tensors -> config.json, pfengine.json and tensors of a checkpoint.

    For regression the authors' default tolerance lets no row leave, so that no criterion is written. Give one with a
    tolerance, such as criterion="patience:3,0.5".
    """
    family = family_of(path, tensors)
    pooler = next((key for key in POOLERS if f"{key}.weight" in tensors), POOLERS[0])
    classifiers = numbered(path, tensors, "classifiers.{}", "PABEE")
    scores = len(tensors[f"{classifiers[0]}.weight"]) == 1
    return linear_checkpoint(
        Original(path, tensors, "PABEE"),
        raw,
        family,
        poolers=[pooler],
        classifiers=classifiers,
        layers=len(classifiers),
        manifest={"system": "pabee", "criterion": None if scores else "patience"},
    )
