"""A checkpoint read and checked whole: files and configs (`checkpoint`), exit head (`heads`), criterion (`exits`)."""

from __future__ import annotations

import os
from collections.abc import Mapping

from . import checkpoint
from .checkpoint import Checkpoint
from .config import BackboneConfig
from .errors import shown
from .exits import text as criteria
from .families import Shapes
from .folder import Folder
from .heads import HEADS
from .manifest import Manifest
from .storage import Stored


def read(path: str | os.PathLike[str] | Folder, tensors: Mapping[str, Stored] | None = None) -> Checkpoint:
    """As `begin_reading`, but waits until all files are checked."""
    return begin_reading(path, tensors).checked()


def begin_reading(path: str | os.PathLike[str] | Folder, tensors: Mapping[str, Stored] | None = None) -> Checkpoint:
    """As `checkpoint.read_files`, with the heads in `HEADS` and the criteria there are."""
    return checkpoint.read_files(path, check_model, tensors)


def check_model(backbone: BackboneConfig, manifest: Manifest) -> tuple[list[str], Shapes]:
    """Faults of the head and the criterion, a sentence each; shapes of the head's tensors where it has no fault."""
    of_criterion = criteria.faults(manifest.criterion, manifest.threshold)
    head = HEADS.get(manifest.head["type"])
    if head is None:
        known = ", ".join(sorted(HEADS))
        return [f"'head.type' is {shown(manifest.head['type'])}; this pfengine has {known}", *of_criterion], {}
    of_head = head.config_faults(manifest.head)
    return of_head + of_criterion, {} if of_head else head.shapes(backbone, manifest.head)
