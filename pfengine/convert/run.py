"""Converting checkpoints to ours, or ours to another storage."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from .. import checkpoint, reader, saving
from ..cascade_manifest import CascadeManifest, is_cascade
from ..cascade_reader import begin_cascade
from ..cascade_saving import Part, fill_cascade, part_of
from ..errors import CheckpointError, ConfigError
from ..families import FAMILIES
from ..folder import Folder
from ..storage import StoredTensors
from ..training.systems import SYSTEMS, Converter
from ..weights import FLOATS
from .source import Cascaded, find

STORAGE = {"fp32": "float", "int8": "int8-rows"}  # how weights are stored, by precision
CLASSIFIERS = tuple(sorted({f"{family.classifier}.weight" for family in FAMILIES.values()}))

__all__ = ["convert", "converters"]


def converters() -> dict[str, Converter]:
    """Those of all systems that have one, by the system's name."""
    return {name: each.converter for name, each in SYSTEMS.items() if each.converter is not None}


def convert(
    source: str | os.PathLike[str], out: str | os.PathLike[str], *, system: str = "auto", precision: str = "fp32"
) -> Path:
    """Convert a checkpoint and return the directory written.

    source: directory with config.json and weights.safetensors, model.safetensors (or its shards) or pytorch_model.bin
    (or its shards; read as tensors only), under the original key names; a tokenizer is copied, where there
    is one. Also a checkpoint of ours, to store it in another precision, or a plain Hugging Face sequence-classification
    directory, for that or for its .bin. Symbolic links out of the directory are not followed, except those of a Hugging
    Face hub cache into its own `blobs`.
    system: the name of one with a converter, such as "past-future"; "auto": the one whose tensors these are.
    precision: how the weights are stored, "fp32" | "int8": 8-bit numbers with a scale per row, a quarter of the size,
    and exactly what runs at precision "int8".

    A cascade, of ours or of its authors, becomes a cascade. Raises ConfigError for an unknown system or precision,
    CheckpointError with every fault of the source.
    """
    if precision not in STORAGE:
        raise ConfigError(f"precision is {precision!r}; weights are stored in {' or '.join(STORAGE)}")
    known = converters()
    if system != "auto" and system not in known:
        own = "or one of your own with a converter, whose module must be imported first"
        raise ConfigError(f"system is {system!r}; it must be one of auto, {', '.join(sorted(known))}, {own}")
    saving.check_writable(out)
    folder = Folder(source, own_files=True)
    if is_cascade(folder):
        if system != "auto":
            raise ConfigError(f"{os.fspath(source)} is a cascade of ours; leave system at 'auto'")
        return _write_cascade(out, *_read_cascade(folder), STORAGE[precision])
    tensors = find(folder)
    ours = folder.has(checkpoint.MANIFEST)
    names = [name for name in known if known[name].recognises(tensors)] if system == "auto" else [system]
    if len(names) > 1 and not ours:
        raise CheckpointError(source, [f"may be of several systems ({', '.join(names)}); name one of them as system"])
    if system == "auto" and (ours or not names):
        if not ours and not any(key.endswith(CLASSIFIERS) for key in tensors):
            listed = ", ".join(sorted(known))
            raise CheckpointError(
                source, [f"has no tensors of a known system ({listed}), and no {' or '.join(CLASSIFIERS)}"]
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
        made = known[names[0]].convert(folder.path, raw, numbers)
        tokenizer = checkpoint.tokenizer_files(folder)
        folder.check()
        if isinstance(made, Cascaded):
            return _write_cascade(
                out, made.manifest, [Part(*each, tokenizer) for each in made.models], STORAGE[precision]
            )
        config, manifest, converted = made
    return saving.write(out, config, replace(manifest, storage=STORAGE[precision]), converted, tokenizer)


def _read_cascade(folder: Folder) -> tuple[CascadeManifest, list[Part]]:
    ckpt = begin_cascade(folder).checked()
    return ckpt.manifest, [part_of(each) for each in ckpt.models]


def _write_cascade(out: str | os.PathLike[str], manifest: CascadeManifest, parts: list[Part], storage: str) -> Path:
    saving.check_writable(out, cascade=True)
    with saving.replacing(out, cascade=True) as stage:
        fill_cascade(
            stage, manifest, [replace(part, manifest=replace(part.manifest, storage=storage)) for part in parts]
        )
    return Path(out)
