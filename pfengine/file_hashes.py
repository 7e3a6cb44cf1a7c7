"""Which files were saved together: the manifest's `files` has their sizes and SHA-256, checked when they are read."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping
from typing import Any

from .errors import CheckpointError
from .folder import File

Files = Mapping[str, Mapping[str, Any]]  # name -> {"size": bytes, "sha256": hex}

_PIECE = 8 << 20  # bytes; large, because the hashing thread waits for the interpreter lock after each
_MEND = "save or copy the checkpoint again, or remove 'files' from pfengine.json to accept a deliberate edit"


def describe(opened: Mapping[str, File]) -> dict[str, dict[str, Any]]:
    """The field `files` for these files, sorted by name. CheckpointError where one cannot be read."""
    return {name: {"size": file.size, "sha256": _sha256(file)} for name, file in sorted(opened.items())}


def listing_faults(files: Files, present: Mapping[str, File]) -> list[str]:
    """Files that are missing, that were not saved with the others, or that have another size; a sentence each.

    present: all files that could be part of a checkpoint.
    """
    found = [f"{name} is missing, though 'files' of pfengine.json lists it; {_MEND}" for name in files
             if name not in present]  # fmt: skip
    found += [f"{name} was not saved with this checkpoint; {_MEND}" for name in sorted(present) if name not in files]
    found += [
        f"{name} has {file.size} bytes, but {files[name]['size']} were saved with it; {_MEND}"
        for name, file in present.items()
        if name in files and file.size != files[name]["size"]
    ]
    return found


def content_faults(files: Files, opened: Mapping[str, File]) -> list[str]:
    """Files of the right size whose content differs from what was saved; a sentence each."""
    found = []
    for name, file in opened.items():
        saved = files.get(name)
        if saved is None or file.size != saved["size"]:
            continue
        try:
            if _sha256(file) != saved["sha256"]:
                found.append(f"{name} is not the file that was saved with this checkpoint; {_MEND}")
        except CheckpointError as error:  # it changed while it was read
            found += error.faults
    return found


class HashCheck:
    """`content_faults` in a separate thread: weights are hashed while they are packed."""

    def __init__(self, files: Files, opened: Mapping[str, File]) -> None:
        self._found: list[str] = []
        self._thread = threading.Thread(target=lambda: self._found.extend(content_faults(files, opened)), daemon=True)
        self._thread.start()

    def faults(self) -> list[str]:
        """Wait for the thread, and return what differs."""
        self._thread.join()
        return self._found


def _sha256(file: File) -> str:
    found, piece = hashlib.sha256(), memoryview(bytearray(min(file.size, _PIECE)))
    for start in range(0, file.size, _PIECE):
        part = piece[: min(_PIECE, file.size - start)]
        file.read_into(part, start)
        found.update(part)
    return found.hexdigest()
