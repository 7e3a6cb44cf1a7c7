"""The checkpoints that come with the package, by name."""

from __future__ import annotations

import os
from pathlib import Path

from .errors import ConfigError
from .messages import warn

BUNDLED = Path(__file__).parent / "checkpoints"


def find(path: str | os.PathLike[str]) -> Path:
    """The directory that a path or a bundled checkpoint's name stands for. A local folder of that name goes first.

    Raises ConfigError where the path is empty or of another type.
    """
    name = os.fsdecode(path) if isinstance(path, (str, bytes, os.PathLike)) else ""
    if not name:
        what = "empty" if isinstance(path, (str, bytes)) else f"of type {type(path).__name__}"
        raise ConfigError(f"path is {what}; give a checkpoint directory or the name of a bundled checkpoint")
    bundled = BUNDLED / name
    if name != os.path.basename(name) or not os.path.isdir(bundled):
        return Path(name)
    if not os.path.isdir(name):
        return bundled
    warn(
        f"{name!r} is the local folder {os.path.abspath(name)}, which hides the bundled checkpoint of that name; "
        f"for the bundled one give {str(bundled)!r}, for the folder './{name}'"
    )
    return Path(name)
