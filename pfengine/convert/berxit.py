"""Converting checkpoints of BERxiT's authors (castorini/berxit)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import CheckpointError
from ..families import find_family
from .linear import Converted, highways, linear_checkpoint
from .source import Original, family_of

ALIAS = "core."  # another name for the encoder, under which their checkpoints have it a second time
LEARNED = "encoder.lte_classifier"
WORDS = "embeddings.word_embeddings.weight"


def recognises(tensors: Collection[str]) -> bool:
    return any(key.startswith(f"{ALIAS}encoder.highway.0.") or f".{LEARNED}." in key for key in tensors)


def convert(path: Path, raw: dict[str, Any], tensors: Mapping[str, Tensor]) -> Converted:
    """Original config and tensors -> config.json, pfengine.json and tensors of a checkpoint.

    The exit after layer i < n is highway i; after the last layer the ordinary classifier answers. The encoder is read
    under its own name or, where it is not there, under the alias. The score `lte_classifier` is of how likely an answer
    is wrong; checkpoints without one, such as ALBERT's, leave by entropy.
    """
    own = {key: value for key, value in tensors.items() if not key.startswith(ALIAS)}
    if not any(key.endswith(WORDS) for key in own):
        known = find_family(raw.get("model_type"))
        if known is None:
            fault = f"config.json: 'model_type' is {raw.get('model_type')!r}; it must say what the encoder '{ALIAS}' is"
            raise CheckpointError(path, [fault])
        aliased = {key for key in tensors if key.startswith(ALIAS)}
        own |= {known.prefix + key.removeprefix(ALIAS): tensors[key] for key in sorted(aliased)}
    family = family_of(path, own)
    learned = f"{family.prefix}{LEARNED}"
    learns = f"{learned}.weight" in own
    poolers, classifiers = highways(path, own, family, "BERxiT")
    return linear_checkpoint(
        Original(path, own, "BERxiT"),
        raw,
        family,
        poolers=poolers,
        classifiers=classifiers,
        layers=len(classifiers),
        learned=learned if learns else None,
        manifest={"system": "berxit", "criterion": "learned" if learns else "entropy"},
    )
