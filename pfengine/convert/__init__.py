"""Official research checkpoints to ours. A new format = one file here and one line in SYSTEMS."""

from __future__ import annotations

import os
from pathlib import Path

from .. import checkpoint
from ..errors import CheckpointError, ConfigError
from . import past_future
from .source import read_source

SYSTEMS = {"past-future": past_future}

__all__ = ["SYSTEMS", "convert"]


def convert(source: str | os.PathLike[str], out: str | os.PathLike[str], *, system: str = "auto") -> Path:
    """Convert an official checkpoint and return the directory written.

    source: directory with config.json and weights.safetensors, model.safetensors or pytorch_model.bin (read as tensors
    only), under the original key names; a tokenizer, where there is one, is taken along.
    system: "auto" | "past-future".

    Raises ConfigError for an unknown system, CheckpointError with every fault of the source.
    """
    if system != "auto" and system not in SYSTEMS:
        raise ConfigError(f"system is {system!r}; it must be 'auto' or one of {', '.join(sorted(SYSTEMS))}")
    raw, tensors = read_source(Path(source))
    names = [name for name in SYSTEMS if SYSTEMS[name].recognises(tensors)] if system == "auto" else [system]
    if not names:
        raise CheckpointError(source, [f"holds the tensors of no known system ({', '.join(sorted(SYSTEMS))})"])
    config, engine, converted = SYSTEMS[names[0]].convert(Path(source), raw, tensors)
    return checkpoint.write(out, config, engine, converted, Path(source))
