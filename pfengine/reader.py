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
    head, kind = manifest.head, HEADS.get(manifest.head["type"])
    if kind is None:
        return [f"'head.type' is {shown(head['type'])}; it must be one of {HEADS.known}", *of_criterion], {}
    if of_head := kind.config_faults(head) or kind.misfits(backbone, head):
        return of_head + of_criterion, {}
    able = kind.layers(backbone, head)
    if unable := [layer for layer in manifest.exit_layers if layer not in able]:
        of_criterion.insert(
            0, f"'exit_layers' has {unable[0]}, but this head answers after {', '.join(map(str, able))} only"
        )
    return of_criterion, kind.shapes(backbone, head)
