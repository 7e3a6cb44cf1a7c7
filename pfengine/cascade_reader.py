"""A cascade read and checked whole: each of its models, and whether they go together."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from . import file_hashes
from .cascade_manifest import MANIFEST, CascadeManifest, is_cascade, model_folders, model_path, parse_cascade
from .checkpoint import Checkpoint
from .config import BackboneConfig
from .errors import CheckpointError, shown
from .exits import text as criteria
from .folder import Folder
from .heads import HEADS
from .reader import begin_reading


@dataclass(frozen=True)
class CascadeCheckpoint:
    """A checked cascade: its manifest, and the checkpoints of its models in the order in which rows enter them."""

    path: Path
    manifest: CascadeManifest
    models: tuple[Checkpoint, ...]

    @property
    def backbone(self) -> BackboneConfig:
        """The last model's. Labels and problem type are those of all models."""
        return self.models[-1].backbone

    def checked(self) -> CascadeCheckpoint:
        """Wait until the weights are hashed; CheckpointError where they are not those saved with this checkpoint."""
        return replace(self, models=tuple(each.checked() for each in self.models))

    def without_tensors(self) -> CascadeCheckpoint:
        return replace(self, models=tuple(each.without_tensors() for each in self.models))


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint | CascadeCheckpoint:
    """A checkpoint or a cascade, as `reader.begin_reading` reads them: weights are still being hashed."""
    folder = Folder(path)
    return begin_cascade(folder) if is_cascade(folder) else begin_reading(folder)


def read_cascade(path: str | os.PathLike[str]) -> CascadeCheckpoint:
    """A cascade whose files are all checked."""
    return begin_cascade(Folder(path)).checked()


def begin_cascade(folder: Folder) -> CascadeCheckpoint:
    """Read and check a cascade. Raises CheckpointError with every fault found, those of its models by their folder."""
    faults: list[str] = []
    manifest = parse_cascade(folder.json(MANIFEST), faults)
    if manifest is None:
        raise CheckpointError(folder.path, faults)
    faults += [f"{MANIFEST}: {fault}" for fault in criteria.faults(manifest.criterion, manifest.threshold)]
    models, opened = [], {}
    for number in range(1, manifest.models + 1):
        name = model_path(number)
        try:
            inner = Folder(folder.path / name)
            if inner.has(MANIFEST):
                opened[f"{name}/{MANIFEST}"] = inner.open(MANIFEST)
            models.append(begin_reading(inner))
        except CheckpointError as error:
            faults += [f"{name}: {fault}" for fault in error.faults]
    names = [f"models/{each.name}" for each in model_folders(folder.path)]
    faults += [
        f"{name} is no model of this cascade, whose 'models' in {MANIFEST} is {manifest.models}; remove it"
        for name in names
        if name not in map(model_path, range(1, manifest.models + 1))
    ]
    if manifest.files:
        mixed = file_hashes.listing_faults(manifest.files, opened)
        faults += mixed + file_hashes.content_faults(manifest.files, opened)
    if len(models) == manifest.models:
        faults += misfits({model_path(number): model for number, model in enumerate(models, 1)})
    folder.check()
    if faults:
        raise CheckpointError(folder.path, faults)
    return CascadeCheckpoint(folder.path, manifest, tuple(models))


def misfits(models: dict[str, Checkpoint]) -> list[str]:
    """Why models, by the names that messages give them, make no cascade; a sentence each."""
    first, *others = models
    faults = []
    for name in models:
        kind = models[name].manifest.head["type"]
        if HEADS[kind].tags:
            faults.append(f"{name} tags tokens (head {shown(kind)}); a cascade is of models that classify rows")
    for name in others:
        for what, of in (
            ("labels", lambda each: each.backbone.labels),
            ("problem_type", lambda each: each.backbone.problem_type),
        ):
            here, there = of(models[name]), of(models[first])
            if here != there:
                faults.append(
                    f"{name} has {what} {shown(here)}, and {first} has {shown(there)}; all models of a cascade must "
                    "have the same, in the same order"
                )
        if (models[name].tokenizer is None) != (models[first].tokenizer is None):
            has, lacks = (name, first) if models[first].tokenizer is None else (first, name)
            faults.append(f"{has} has a tokenizer and {lacks} has none; all models of a cascade need one, or none does")
    return faults
