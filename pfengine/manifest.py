"""Which files were saved together: `files` of pfengine.json has their sizes and SHA-256, checked when they are read."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from io import BufferedReader
from typing import Any

Files = Mapping[str, Mapping[str, Any]]  # name -> {"size": bytes, "sha256": hex}
Open = Callable[[str], BufferedReader]  # name -> the file, open for reading in binary


def described(names: Iterable[str], open_file: Open) -> dict[str, dict[str, Any]]:
    """The field `files` for these files, sorted by name. OSError where one cannot be read."""
    found: dict[str, dict[str, Any]] = {}
    for name in sorted(names):
        with open_file(name) as stream:
            found[name] = {
                "size": os.fstat(stream.fileno()).st_size,
                "sha256": _sha256(stream),
            }
    return found


def faults(files: Files, present: Collection[str], open_file: Open, hashed: Callable[[str], bool]) -> list[str]:
    """What differs from `files`, a sentence each; nothing where `files` is empty, as in older checkpoints.

    present: names of the files that are there and could be a checkpoint's. Sizes of all are compared, and the hashes of
    those that `hashed` picks.
    """
    if not files:
        return []
    found = [f"{name} is missing, though 'files' of pfengine.json lists it; {_MEND}" for name in files
             if name not in present]  # fmt: skip
    found += [f"{name} was not saved with this checkpoint; {_MEND}" for name in sorted(present) if name not in files]
    for name, saved in files.items():
        if name not in present:
            continue
        try:
            with open_file(name) as stream:
                size = os.fstat(stream.fileno()).st_size
                if size != saved["size"]:
                    found.append(f"{name} has {size} bytes, but {saved['size']} were saved with it; {_MEND}")
                elif hashed(name) and _sha256(stream) != saved["sha256"]:
                    found.append(f"{name} is not the file that was saved with this checkpoint; {_MEND}")
        except OSError as error:
            found.append(f"{name} cannot be read: {error}")
    return found


def _sha256(stream: BufferedReader) -> str:
    """In large pieces: a thread that hashes waits for Python's lock after each."""
    size = os.fstat(stream.fileno()).st_size
    found, piece = hashlib.sha256(), memoryview(bytearray(min(size + 1, _PIECE)))
    while size := stream.readinto(piece):
        found.update(piece[:size])
    return found.hexdigest()


_PIECE = 8 << 20
_MEND = "save or copy the checkpoint again, or remove 'files' from pfengine.json to accept a deliberate edit"


class Check:
    """The same in a thread of its own, for weights: they are hashed while they are packed."""

    def __init__(self, files: Files, present: Collection[str], open_file: Open, hashed: Callable[[str], bool]) -> None:
        self._found: list[str] = []
        self._thread = threading.Thread(
            target=lambda: self._found.extend(faults(files, present, open_file, hashed)), daemon=True
        )
        self._thread.start()

    def faults(self) -> list[str]:
        """Waits for the end; what differs."""
        self._thread.join()
        return self._found
