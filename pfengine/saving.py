"""Writing a checkpoint directory: built in a stage, checked by reading it back, then put in place."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from . import destination, file_hashes
from .cascade_manifest import MODELS, CascadeManifest, is_cascade, model_folders, parse_cascade
from .checkpoint import CONFIG, MANIFEST, WEIGHTS, is_checkpoint_file
from .errors import CheckpointError
from .folder import Folder
from .manifest import Manifest, parse_manifest
from .reader import read
from .storage import quantise_rows

AnyManifest = Manifest | CascadeManifest


def write(
    path: str | os.PathLike[str],
    config: dict[str, Any],
    manifest: Manifest,
    tensors: Mapping[str, Tensor],
    tokenizer: Mapping[str, bytes] | None = None,
) -> Path:
    """Write a checkpoint beside `path`, check it by reading it back, then put it in place.

    config: the backbone's config.json as a dict; tensors: fp32, by final key; tokenizer: contents of the tokenizer's
    files by name. See `replacing` for what happens to files that are already there.
    """
    with replacing(path) as stage:
        fill(stage, config, manifest, tensors, tokenizer)
    return Path(path)


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], cascade: bool = False) -> Iterator[Path]:
    """A directory to `fill` with a checkpoint. Leaving the block puts it at `path`; an error leaves `path` as it is.

    Files of an existing checkpoint are replaced once the new one is complete; other files beside them stay. cascade:
    will it hold a cascade? Raises CheckpointError where `path` is something other than a checkpoint, or cannot be
    written.
    """
    directory = destination.resolved(path)
    refuse_foreign(directory, cascade)
    with contextlib.ExitStack() as stack:
        with explained(path):
            stage = stack.enter_context(destination.replacing(directory))
        try:
            yield stage
        except CheckpointError as error:
            if error.path != stage:
                raise
            raise CheckpointError(path, error.faults) from None
        with explained(path):
            stack.close()


def fill(
    stage: Path,
    config: dict[str, Any],
    manifest: Manifest,
    tensors: Mapping[str, Tensor],
    tokenizer: Mapping[str, bytes] | None = None,
) -> Manifest:
    """Write the files of a checkpoint into an empty directory and read them back; arguments as in `write`.

    Returns what pfengine.json says now: `manifest` with its `files`.
    """
    with explained(stage):
        (stage / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        stored = quantise_rows(tensors) if manifest.storage == "int8-rows" else tensors
        save_file({key: value.contiguous() for key, value in stored.items()}, stage / WEIGHTS)
        (stage / WEIGHTS).chmod((stage / CONFIG).stat().st_mode)  # the umask's; safetensors makes it private
        for name, content in (tokenizer or {}).items():
            (stage / name).write_bytes(content)
        folder = Folder(stage)
        files = file_hashes.describe({name: folder.open(name) for name in folder.names})
        (stage / MANIFEST).write_text(manifest_text(replace(manifest, files=files)))
    return read(stage).manifest


def write_manifest(path: Path, manifest: AnyManifest) -> Path:
    """Replace pfengine.json of the checkpoint at `path`, in one step.

    CheckpointError where it is no longer the one that `manifest` was read from.
    """
    text = manifest_text(manifest)
    faults: list[str] = []
    if isinstance(manifest, CascadeManifest):
        parse_cascade(json.loads(text), faults)
    else:
        parse_manifest(json.loads(text), manifest.exit_layers[-1], faults)
    if faults:
        raise CheckpointError(path, faults)
    directory = destination.resolved(path)
    now = Folder(directory).json(MANIFEST)
    if not isinstance(now, dict) or (now.get("files") or {}) != manifest.files:
        raise CheckpointError(path, ["another checkpoint was saved there in the meantime; it was left as it is"])
    with explained(path), destination.beside(directory) as stage:
        (stage / MANIFEST).write_text(text)
        destination.move(stage / MANIFEST, directory)
    return path


@contextlib.contextmanager
def trial(path: Path, manifest: AnyManifest) -> Iterator[Path]:
    """A temporary copy of the checkpoint at `path` with another manifest, to try it before it is written."""
    with contextlib.ExitStack() as stack:
        with explained(path):
            stage = stack.enter_context(destination.beside(destination.resolved(path)))
            _link(path, stage)
            for folder in model_folders(path) if isinstance(manifest, CascadeManifest) else ():
                (stage / MODELS / folder.name).mkdir(parents=True)
                _link(folder, stage / MODELS / folder.name)
            (stage / MANIFEST).unlink()  # it may be a link
            (stage / MANIFEST).write_text(manifest_text(manifest))
        yield stage


def _link(path: Path, stage: Path) -> None:
    """The checkpoint's files in `path`, in another directory too."""
    for name in filter(is_checkpoint_file, os.listdir(path)):
        try:
            os.link(path / name, stage / name)
        except OSError:
            shutil.copyfile(path / name, stage / name)


def check_writable(path: str | os.PathLike[str], cascade: bool = False) -> None:
    """CheckpointError where a checkpoint could not be written to `path`; leaves nothing there. For before long work."""
    directory = destination.resolved(path)
    refuse_foreign(directory, cascade)
    with explained(path):
        destination.check_writable(directory)


def refuse_foreign(path: Path, cascade: bool = False) -> None:
    """CheckpointError where something other than a pfengine checkpoint would be replaced."""
    with explained(path):
        occupied = path.exists() and (not path.is_dir() or bool(destination.foreign(path)))
        if occupied and not (path / MANIFEST).exists():
            raise CheckpointError(path, ["exists and is not a pfengine checkpoint; choose another output directory"])
        if not (path / MODELS).is_dir():
            return
        if not is_cascade(path):
            if cascade:
                reason = f"has a folder '{MODELS}' that is not a cascade's; choose another output directory"
                raise CheckpointError(path, [reason])
            return
        for entry in (path / MODELS).glob("*/*"):
            if not is_checkpoint_file(entry.name):
                where = entry.relative_to(path)
                raise CheckpointError(path, [f"{where} is not a file of the cascade there; move it somewhere else"])


def manifest_text(manifest: AnyManifest) -> str:
    """What pfengine.json says."""
    return json.dumps(manifest.to_json(), indent=2) + "\n"


_HINTS = {
    errno.ENOSPC: "make room there, or choose another output directory",
    errno.EDQUOT: "your quota is used up; make room, or choose another output directory",
    errno.EFBIG: "the file is larger than the limit (`ulimit -f`) or the file system allows",
}


@contextlib.contextmanager
def explained(path: str | os.PathLike[str]) -> Iterator[None]:
    """Errors of the file system as a CheckpointError of one sentence."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise CheckpointError(path, [f"cannot be written: {explain(error)}; nothing was changed there"]) from None


def explain(error: Exception) -> str:
    """The reason of an OSError, or of a SafetensorError caused by one, and what to do about it."""
    number = error.errno if isinstance(error, OSError) else None
    if number is None and (found := re.search(r"\(os error (\d+)\)", str(error))):
        number = int(found[1])
    if number is None:
        return str(error)
    return f"{os.strerror(number)} ({_HINTS.get(number, 'choose another output directory')})"
