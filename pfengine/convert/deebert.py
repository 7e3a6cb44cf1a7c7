"""Converting checkpoints of DeeBERT's authors (castorini/DeeBERT), and of transformers' port in research_projects."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from torch import Tensor

from . import berxit
from .linear import Converted, has_highways, highways, linear_checkpoint
from .source import Original, family_of


def recognises(tensors: Collection[str]) -> bool:
    """COSEE's keys are the same, without poolers of the highways' own; BERxiT's have more."""
    return has_highways(tensors, poolers=True) and not berxit.recognises(tensors)


def convert(path: Path, raw: dict[str, Any], tensors: dict[str, Tensor]) -> Converted:
    """Original config and tensors -> config.json, pfengine.json and tensors of a checkpoint.

    The exit after layer i < n is highway i. After the last layer the ordinary classifier answers, as in the paper. The
    authors' code has a highway there too, which its own recipe never trains; it is left out.
    """
    family = family_of(path, tensors)
    poolers, classifiers = highways(path, tensors, family, "DeeBERT")
    return linear_checkpoint(
        Original(path, tensors, "DeeBERT"),
        raw,
        family,
        poolers=poolers,
        classifiers=classifiers,
        layers=len(classifiers),
        manifest={"system": "deebert", "criterion": "entropy"},
    )
