"""What the formats of systems with a linear classifier per layer have in common."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ..families import Family
from ..heads import PREFIX
from ..manifest import Manifest
from .source import Converted as Converted
from .source import Original, encoder_tensors, with_shapes


def linear_checkpoint(
    original: Original,
    raw: dict[str, Any],
    family: Family,
    poolers: Sequence[str],
    classifiers: Sequence[str],
    layers: int,
    manifest: Mapping[str, Any],
    learned: str | None = None,
) -> Converted:
    """config.json, pfengine.json and tensors of a checkpoint with a pooler and a linear classifier per layer.

    poolers, classifiers: keys without .weight and .bias, one for all layers or one per layer, where a key may stand
    several times. learned: the key of a learned score that all layers share, None where there is none. manifest:
    further fields of pfengine.json, `system` and `criterion` among them.
    """
    head = {
        f"{PREFIX}{name}.{kind}": original.stack([f"{key}.{kind}" for key in keys], dims)
        for name, keys in (("poolers", poolers), ("classifiers", classifiers))
        for kind, dims in (("weight", 2), ("bias", 1))
    }
    if learned is not None:
        head |= {
            f"{PREFIX}learned.{kind}": original.get(f"{learned}.{kind}", dims)
            for kind, dims in (("weight", 2), ("bias", 1))
        }
    original.check()
    labels = len(original.tensors[f"{classifiers[-1]}.bias"])
    config = with_shapes(raw, family, original.tensors, layers, labels)
    made = Manifest(
        head={"type": "linear", "pooler": _per_layer(poolers), "classifiers": _per_layer(classifiers)}
        | ({} if learned is None else {"learned": True}),
        exit_layers=tuple(range(1, layers + 1)),
        **manifest,
    )
    return config, made, encoder_tensors(family, original.tensors) | head


def _per_layer(keys: Sequence[str]) -> str:
    return "shared" if len(keys) == 1 else "per-layer"


def numbered(path: Path, tensors: Mapping[str, Tensor], pattern: str, system: str) -> list[str]:
    """The keys `pattern` with {} = 0, 1, ... that have a weight, in order.

    Raises CheckpointError where there are none, or one is missing before the last.
    """
    before, _, after = pattern.partition("{}")
    numbers = [
        key.removeprefix(before).removesuffix(f"{after}.weight")
        for key in tensors
        if key.startswith(before) and key.endswith(f"{after}.weight")
    ]
    there = {int(number) for number in numbers if number.isdecimal()}
    absent = set(range(max(there, default=0) + 1)) - there
    if absent:
        original = Original(path, tensors, system)
        original.get(f"{pattern.format(min(absent))}.weight", 2)
        original.check()
    return [pattern.format(number) for number in sorted(there)]


def has_highways(tensors: Collection[str], poolers: bool) -> bool:
    """Are these keys of an encoder with a highway after each layer, and have the highways poolers of their own?"""
    own = any(".highway." in key and ".pooler." in key for key in tensors)
    return own == poolers and any(key.endswith(".encoder.highway.0.classifier.weight") for key in tensors)


def highways(path: Path, tensors: Mapping[str, Tensor], family: Family, system: str) -> tuple[list[str], list[str]]:
    """Keys of poolers and classifiers: of the highway after each layer i < n, then the ordinary ones.

    The highway after the last layer is left out. DeeBERT's and BERxiT's code has one, and neither answers by it.
    """
    pattern = f"{family.prefix}encoder.highway.{{}}.classifier"
    found = [key.removesuffix(".classifier") for key in numbered(path, tensors, pattern, system)][:-1]
    pooler = f"{family.prefix}pooler"
    own = pooler if f"{pooler}.weight" in tensors else f"{pooler}.dense"  # ALBERT's is a linear layer alone
    poolers = [*(f"{key}.pooler.dense" for key in found), own]
    return poolers, [*(f"{key}.classifier" for key in found), "classifier"]
