"""Which files were saved together: `files` of pfengine.json has their sizes and SHA-256, checked when they are read."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from .errors import CheckpointError
from .folder import File

Files = Mapping[str, Mapping[str, Any]]  # name -> {"size": bytes, "sha256": hex}


def described(directory: Path) -> dict[str, dict[str, Any]]:
    """The field `files` for all files of a directory, sorted by name. OSError where one cannot be read."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(directory.iterdir()):
        with open(path, "rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
            found[path.name] = {"size": os.fstat(stream.fileno()).st_size, "sha256": digest}
    return found


def faults(files: Files, present: Mapping[str, File], hashed: Collection[str]) -> list[str]:
    """What differs from `files`, a sentence each; nothing where `files` is empty, as in older checkpoints.

    present: the files that are there and could be a checkpoint's, by name. Sizes of all are compared, and the hashes of
    those that are in `hashed`.
    """
    if not files:
        return []
    found = [f"{name} is missing, though 'files' of pfengine.json lists it; {_MEND}" for name in files
             if name not in present]  # fmt: skip
    found += [f"{name} was not saved with this checkpoint; {_MEND}" for name in sorted(present) if name not in files]
    for name in sorted(files.keys() & present.keys()):
        saved, file = files[name], present[name]
        if file.size != saved["size"]:
            found.append(f"{name} has {file.size} bytes, but {saved['size']} were saved with it; {_MEND}")
        elif name in hashed and hashlib.file_digest(file.stream(), "sha256").hexdigest() != saved["sha256"]:
            found.append(f"{name} is not the file that was saved with this checkpoint; {_MEND}")
    return found


_MEND = "save or copy the checkpoint again, or remove 'files' from pfengine.json to accept a deliberate edit"


class Check:
    """The same in a thread of its own, for weights: they are hashed while they are packed."""

    def __init__(self, files: Files, present: Mapping[str, File], hashed: Collection[str]) -> None:
        self._found: list[str] = []
        self._error: CheckpointError | None = None
        self._thread = threading.Thread(target=self._run, args=(files, present, hashed), daemon=True)
        self._thread.start()

    def _run(self, *arguments: Any) -> None:
        try:
            self._found = faults(*arguments)
        except CheckpointError as error:
            self._error = error

    def faults(self) -> list[str]:
        """Waits for the end; what differs. CheckpointError where a file could not be read, or changed meanwhile."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._found
