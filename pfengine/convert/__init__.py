"""Other checkpoints to ours, and ours to another storage. A new format = one file here and one line in SYSTEMS."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from .. import checkpoint, saving
from ..errors import CheckpointError, ConfigError
from . import past_future
from .source import read_source

SYSTEMS = {"past-future": past_future}
STORAGE = {"fp32": "float", "int8": "int8-rows"}  # what weights are kept as, by precision

__all__ = ["SYSTEMS", "convert"]


def convert(
    source: str | os.PathLike[str], out: str | os.PathLike[str], *, system: str = "auto", precision: str = "fp32"
) -> Path:
    """Convert a checkpoint and return the directory written.

    source: directory with config.json and weights.safetensors, model.safetensors or pytorch_model.bin (read as tensors
    only), under the original key names; a tokenizer, where there is one, is taken along. Also a checkpoint of ours, or
    a plain Hugging Face sequence-classification directory, to keep it in another precision.
    system: "auto" | "past-future".
    precision: what the weights are kept in, "fp32" | "int8": rows of 8-bit numbers with a scale each, a quarter of the
    size, and just what runs at precision "int8".

    Raises ConfigError for an unknown system or precision, CheckpointError with every fault of the source.
    """
    if precision not in STORAGE:
        raise ConfigError(f"precision is {precision!r}; weights are kept in {' or '.join(STORAGE)}")
    if system != "auto" and system not in SYSTEMS:
        raise ConfigError(f"system is {system!r}; it must be 'auto' or one of {', '.join(sorted(SYSTEMS))}")
    saving.try_destination(out)
    if system == "auto" and (Path(source) / checkpoint.ENGINE).exists():
        return _keep(Path(source), out, precision)
    raw, tensors = read_source(Path(source))
    names = [name for name in SYSTEMS if SYSTEMS[name].recognises(tensors)] if system == "auto" else [system]
    if not names and any(str(name).endswith("ForSequenceClassification") for name in raw.get("architectures") or ()):
        return _keep(Path(source), out, precision)
    if not names:
        raise CheckpointError(source, [f"holds the tensors of no known system ({', '.join(sorted(SYSTEMS))})"])
    config, engine, converted = SYSTEMS[names[0]].convert(Path(source), raw, tensors)
    engine = replace(engine, storage=STORAGE[precision])
    return saving.write(out, config, engine, converted, checkpoint.tokenizer_files(Path(source)))


def _keep(source: Path, out: str | os.PathLike[str], precision: str) -> Path:
    """A checkpoint that `load` reads, with its weights kept in that precision."""
    ckpt = checkpoint.read(source)
    engine = replace(ckpt.engine, storage=STORAGE[precision])
    return saving.write(out, ckpt.backbone.raw, engine, ckpt.tensors, ckpt.tokenizer)
