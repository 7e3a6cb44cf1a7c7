"""Resuming interrupted work: only with the same options, data and model as it was started with."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .._version import __version__
from ..checkpoint import is_checkpoint_file
from ..errors import CheckpointError, ConfigError

NOTE = "options.json"


def check_same_run(directory: Path, options: dict[str, Any], inputs: dict[str, str], what: str) -> None:
    """Record options and inputs in a directory, created if need be; ConfigError where it holds a run with other ones.

    inputs: hashes of what the work reads: {"data": ..., "model": ...}. The version of pfengine must be the same too, as
    another may train differently; those of torch and transformers need not, as they change only rounding. what: is in
    the directory, for the message: "an interrupted run".
    """
    now = json.loads(json.dumps({"options": options, "inputs": inputs, "pfengine": __version__}))
    note = directory / NOTE
    if note.exists():
        _compare(directory, now, what)
    directory.mkdir(parents=True, exist_ok=True)
    written = directory / f"{NOTE}.new"
    with open(written, "w") as stream:
        stream.write(json.dumps(now, indent=2) + "\n")
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(written, note)


def _compare(directory: Path, now: dict[str, Any], what: str) -> None:
    anew = "remove the directory to start over"
    try:
        before = json.loads((directory / NOTE).read_bytes())
        options, inputs = dict(before["options"]), dict(before["inputs"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise ConfigError(f"{directory} holds {what}, but {NOTE} in it does not name its options; {anew}") from None
    if changed := _changed(options, now["options"]):
        raise ConfigError(
            f"{directory} holds {what} with another {', '.join(changed)}; finish it with the same options, or {anew}"
        )
    if changed := _changed(inputs, now["inputs"]):
        raise ConfigError(
            f"{directory} holds {what}, and its {' and '.join(changed)} changed since; restore what was there to "
            f"finish it, or {anew}"
        )
    if before.get("pfengine") != now["pfengine"]:
        raise ConfigError(
            f"{directory} holds {what} of pfengine {before.get('pfengine')}, and this is {now['pfengine']}; finish it "
            f"with that version, or {anew}"
        )


def _changed(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    return sorted(key for key in {*before, *now} if before.get(key) != now.get(key))


def hash_rows(*parts: Iterable[Any]) -> str:
    """A hash of several lists of rows or names."""
    found = hashlib.sha256()
    for part in parts:
        for item in part:
            found.update(json.dumps(item, default=str).encode() + b"\n")
        found.update(b"\n")
    return found.hexdigest()


def hash_files(*paths: str | Path) -> str:
    """A hash of files, and of the model's files in a directory. CheckpointError where one cannot be read."""
    found = hashlib.sha256()
    for path in map(Path, paths):
        if path.exists() and not path.is_dir() and not path.is_file():
            raise ConfigError(f"{path} is not a regular file, but it is read more than once; give a file")
        try:
            files = (
                [path / name for name in sorted(os.listdir(path)) if _is_of_model(name)] if path.is_dir() else [path]
            )
            for file in files:
                with open(file, "rb") as stream:
                    digest = hashlib.file_digest(stream, "sha256").hexdigest()
                found.update(f"{file.name if path.is_dir() else ''} {digest}\n".encode())
        except OSError as error:
            raise CheckpointError(path, [f"cannot be read: {error}"]) from None
    return found.hexdigest()


def _is_of_model(name: str) -> bool:
    return is_checkpoint_file(name) or name.endswith((".safetensors", ".bin", ".index.json"))
