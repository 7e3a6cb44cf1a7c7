"""Converting checkpoints to ours, or ours to another storage. A new format is one file here and a line in SYSTEMS."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from .. import checkpoint, reader, saving
from ..errors import CheckpointError, ConfigError
from ..families import FAMILIES
from ..folder import Folder
from ..storage import StoredTensors
from ..weights import FLOATS
from . import past_future
from .source import find

SYSTEMS = {"past-future": past_future}
STORAGE = {"fp32": "float", "int8": "int8-rows"}  # how weights are stored, by precision
CLASSIFIERS = tuple(sorted({f"{family.classifier}.weight" for family in FAMILIES.values()}))

__all__ = ["SYSTEMS", "convert"]


def convert(
    source: str | os.PathLike[str], out: str | os.PathLike[str], *, system: str = "auto", precision: str = "fp32"
) -> Path:
    """Convert a checkpoint and return the directory written.

    source: directory with config.json and weights.safetensors, model.safetensors (or its shards) or pytorch_model.bin
    (or its shards; read as tensors only), under the original key names; a tokenizer is copied, where there
    is one. Also a checkpoint of ours, to store it in another precision, or a plain Hugging Face sequence-classification
    directory, for that or for its .bin. Symbolic links out of the directory are not followed, except those of a Hugging
    Face hub cache into its own `blobs`.
    system: "auto" | "past-future".
    precision: how the weights are stored, "fp32" | "int8": 8-bit numbers with a scale per row, a quarter of the size,
    and exactly what runs at precision "int8".

    Raises ConfigError for an unknown system or precision, CheckpointError with every fault of the source.
    """
    if precision not in STORAGE:
        raise ConfigError(f"precision is {precision!r}; weights are stored in {' or '.join(STORAGE)}")
    if system != "auto" and system not in SYSTEMS:
        raise ConfigError(f"system is {system!r}; it must be 'auto' or one of {', '.join(sorted(SYSTEMS))}")
    saving.check_writable(out)
    folder = Folder(source, own_files=True)
    tensors = find(folder)
    ours = folder.has(checkpoint.MANIFEST)
    names = [name for name in SYSTEMS if SYSTEMS[name].recognises(tensors)] if system == "auto" else [system]
    if system == "auto" and (ours or not names):
        if not ours and not any(key.endswith(CLASSIFIERS) for key in tensors):
            known = ", ".join(sorted(SYSTEMS))
            raise CheckpointError(
                source, [f"has no tensors of a known system ({known}), and no {' or '.join(CLASSIFIERS)}"]
            )
        ckpt = reader.read(folder, tensors)
        config = {key: value for key, value in ckpt.backbone.raw.items() if key != "auto_map"}
        manifest, converted, tokenizer = ckpt.manifest, ckpt.tensors, ckpt.tokenizer
    else:
        raw = checkpoint.read_config(folder)
        if not isinstance(raw, dict):
            raise CheckpointError(source, [f"{checkpoint.CONFIG}: is not a JSON object"])
        floats = {key: stored for key, stored in tensors.items() if stored.dtype in FLOATS}
        numbers = dict(StoredTensors(folder.path, floats))
        config, manifest, converted = SYSTEMS[names[0]].convert(folder.path, raw, numbers)
        tokenizer = checkpoint.tokenizer_files(folder)
        folder.check()
    return saving.write(out, config, replace(manifest, storage=STORAGE[precision]), converted, tokenizer)
