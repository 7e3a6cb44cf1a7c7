"""The checkpoint directory, written: beside its place first, then moved there."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from .checkpoint import CONFIG, ENGINE, WEIGHTS, read
from .config import EngineConfig, parse_engine
from .errors import CheckpointError
from .storage import quantise_rows


def write(
    path: str | os.PathLike[str],
    config: dict[str, Any],
    engine: EngineConfig,
    tensors: Mapping[str, Tensor],
    tokenizer: Mapping[str, bytes] | None = None,
) -> Path:
    """Write a checkpoint beside `path`, check it by reading it back, then move it into place.

    config: the backbone's config.json as a dict; tensors: fp32, by final key; tokenizer: contents of the tokenizer's
    files by name. An existing checkpoint at `path` is replaced only once the new one is whole; any other non-empty
    directory is refused.
    """
    path = Path(path)
    refuse_foreign(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        temporary.chmod(0o755)
        (temporary / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        (temporary / ENGINE).write_text(json.dumps(engine.to_json(), indent=2) + "\n")
        stored = quantise_rows(tensors) if engine.storage == "int8-rows" else tensors
        save_file({key: value.contiguous() for key, value in stored.items()}, temporary / WEIGHTS)
        for name, content in (tokenizer or {}).items():
            (temporary / name).write_bytes(content)
        for file in temporary.iterdir():
            file.chmod(0o644)
        read(temporary)
        if path.exists():
            backup = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
            try:
                os.replace(path, backup / "old")
                try:
                    os.replace(temporary, path)
                except OSError:
                    os.replace(backup / "old", path)
                    raise
                shutil.rmtree(backup / "old")
            finally:
                with contextlib.suppress(OSError):  # not empty where the old checkpoint could not be moved back
                    backup.rmdir()
        else:
            os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return path


def write_engine(path: Path, engine: EngineConfig, out: str | os.PathLike[str] | None = None) -> Path:
    """Replace pfengine.json of the checkpoint at `path`, or of a copy of it at `out`; never half of it."""
    if out is not None and Path(out).resolve() != path.resolve():
        ckpt = read(path)
        return write(out, ckpt.backbone.raw, engine, ckpt.tensors, ckpt.tokenizer)
    faults: list[str] = []
    text = json.dumps(engine.to_json(), indent=2) + "\n"
    parse_engine(json.loads(text), engine.exit_layers[-1], faults)
    if faults:
        raise CheckpointError(path, faults)
    file, temporary = tempfile.mkstemp(prefix=f".{ENGINE}.", dir=path)
    try:
        with os.fdopen(file, "w") as stream:
            stream.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path / ENGINE)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
    return path


def refuse_foreign(path: Path) -> None:
    """CheckpointError where something other than a checkpoint of ours would be replaced."""
    if path.exists() and not (path / ENGINE).exists() and (not path.is_dir() or any(path.iterdir())):
        raise CheckpointError(path, ["exists and is no pfengine checkpoint; choose another output directory"])
