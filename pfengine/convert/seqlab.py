"""Converting taggers of SENTEE's and TOKEE's authors (LeeSureman/Sequence-Labeling-Early-Exit)."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import CheckpointError
from ..families import FAMILIES
from ..heads import PREFIX
from ..manifest import Manifest
from ..messages import warn
from .linear import Converted, numbered
from .source import Original, encoder_tensors, with_shapes

ENCODER, CLASSIFIER = "ptm_encoder.", "classfiers.{}.w"  # the second is spelt so there
# of their command line; the first value of each is that of their README
OPTIONS: dict[str, tuple[str, dict[Any, str]]] = {
    "keep_norm_same": ("frozen", {1: "renormalised", 0: "kept"}),
    "copy_wordpiece": ("freezes", {"all": "words", "first": "first-pieces"}),
}


def recognises(tensors: Collection[str]) -> bool:
    return "classfiers.0.w.weight" in tensors


def convert(path: Path, raw: dict[str, Any], tensors: dict[str, Tensor]) -> Converted:
    """Original config and tensors -> config.json, pfengine.json and tensors of a checkpoint. The encoder is a BERT.

    `keep_norm_same` and `copy_wordpiece` of config.json say which states freeze, and how. Where they are missing, their
    README's values are taken, with a warning. The criterion is the published one, `tokee`, without a threshold.
    """
    head, missing, faults = {"type": "tagger"}, [], []
    for key, (ours, values) in OPTIONS.items():
        given = raw.get(key, next(iter(values)))
        if key not in raw:
            missing.append(f"{key} = {given!r}")
        if type(given) not in (int, str) or given not in values:
            faults.append(f"config.json: '{key}' is {given!r}; it must be {' or '.join(map(repr, values))}")
        else:
            head[ours] = values[given]
    if faults:
        raise CheckpointError(path, faults)
    tensors = {
        f"bert.{key.removeprefix(ENCODER)}" if key.startswith(ENCODER) else key: value for key, value in tensors.items()
    }
    original, family = Original(path, tensors, "SENTEE or TOKEE"), FAMILIES["bert"]
    keys = numbered(path, tensors, CLASSIFIER, "SENTEE or TOKEE")
    classifiers = {
        f"{PREFIX}classifiers.{kind}": original.stack([f"{key}.{kind}" for key in keys], dims)
        for kind, dims in (("weight", 2), ("bias", 1))
    }
    original.check()
    labels = classifiers[f"{PREFIX}classifiers.bias"].shape[1]
    config = {key: value for key, value in raw.items() if key not in OPTIONS}
    manifest = Manifest("seqlab-early-exit", head, "tokee", exit_layers=tuple(range(1, len(keys) + 1)))
    if missing:
        warn(f"{path}: config.json lacks {' and '.join(missing)}, the values of the authors' README, which are taken")
    encoder = encoder_tensors(family, tensors)
    return with_shapes(config, family, tensors, len(keys), labels), manifest, encoder | classifiers
