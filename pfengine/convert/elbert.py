"""Converting checkpoints of ELBERT's authors (shakeley/ELBERT)."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import CheckpointError
from .linear import Converted, linear_checkpoint, numbered
from .source import Original, family_of

ONE, SEVERAL = "albert.encoder.exit_out_layer.classifier", "albert.encoder.exit_out_layers.{}.classifier"
WINDOWS = {"bias_1": "elbert", "bias_2": "elbert-trend", "bias_3": "elbert-range"}  # criteria, by the authors' name


def recognises(tensors: Collection[str]) -> bool:
    return f"{ONE}.weight" in tensors or f"{SEVERAL.format(0)}.weight" in tensors


def convert(path: Path, raw: dict[str, Any], tensors: dict[str, Tensor]) -> Converted:
    """Original config and tensors -> config.json, pfengine.json and tensors of a checkpoint.

    One classifier serves all layers; where there are k, each serves a k-th of them.
    The criterion is that of config.json (thres_name, exit_thres, cnt_thres, margin, range_tmp), as far as it says.
    """
    layers, reads = raw.get("num_hidden_layers"), raw.get("pooler_input", "cls")
    faults = []
    if type(layers) is not int or layers < 1:
        faults.append(f"config.json: 'num_hidden_layers' is {layers!r}; it must be an integer >= 1")
    if reads != "cls":
        faults.append(f"config.json: 'pooler_input' is {reads!r}; only 'cls', the first token, can be converted")
    if faults or not isinstance(layers, int):
        raise CheckpointError(path, faults)
    keys = [ONE] if f"{ONE}.weight" in tensors else numbered(path, tensors, SEVERAL, "ELBERT")
    share = max(1, layers // len(keys))
    manifest: dict[str, Any] = {"system": "elbert", "criterion": _criterion(raw)}
    if isinstance(raw.get("exit_thres"), (int, float)):
        manifest["threshold"] = float(raw["exit_thres"])
    return linear_checkpoint(
        Original(path, tensors, "ELBERT"),
        raw,
        family_of(path, tensors),
        poolers=["albert.pooler"],
        classifiers=keys if len(keys) == 1 else [keys[min(i // share, len(keys) - 1)] for i in range(layers)],
        layers=layers,
        manifest=manifest,
    )


def _criterion(raw: dict[str, Any]) -> str:
    """The criterion of config.json, without its threshold. The README's default is bias_1 with a window of 8."""
    rule, size = raw.get("thres_name", "bias_1"), raw.get("cnt_thres", 8)
    if rule not in WINDOWS:
        return "normalised-entropy"
    further = raw.get("range_tmp", 0.1) if rule == "bias_3" else raw.get("margin", 0.0)
    return f"{WINDOWS[rule]}:,{size},{further}"
