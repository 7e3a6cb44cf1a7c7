"""Making a cascade of finished models, and writing it: built in a stage, read back, then put in place."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from . import saving
from .bundled import find
from .cascade_manifest import MANIFEST, MOST_MODELS, CascadeManifest, model_path
from .cascade_reader import CascadeCheckpoint, misfits, open_checkpoint, read_cascade
from .checkpoint import Checkpoint
from .errors import CheckpointError, ConfigError
from .exits.base import number
from .exits.text import faults as criterion_faults
from .file_hashes import describe
from .folder import Folder
from .manifest import Manifest
from .reader import read


@dataclass(frozen=True)
class Part:
    """One model of a cascade that is written; the fields are the arguments of `saving.fill`."""

    config: dict[str, Any]
    manifest: Manifest
    tensors: Mapping[str, Tensor]
    tokenizer: Mapping[str, bytes] | None = None


def part_of(ckpt: Checkpoint) -> Part:
    """A checkpoint as a model of a cascade."""
    config = {key: value for key, value in ckpt.backbone.raw.items() if key != "auto_map"}
    return Part(config, ckpt.manifest, ckpt.tensors, ckpt.tokenizer)


def cascade(
    models: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    criterion: str = "cascadebert",
    threshold: float | None = None,
) -> Path:
    """Put finished models in a cascade, and return the directory written.

    A row enters the first model. Where the criterion lets it leave, it is answered; otherwise it enters the next one.
    The last model answers what is left.

    models: two or more checkpoints, in the order in which rows enter them: the fastest first. Directories of ours or
    plain Hugging Face ones, or names of bundled checkpoints, all with the same labels in the same order. They may
    differ in depth, width, family, tokenizer and longest row, and each may have exits of its own.
    criterion: text of one that reads scores. Where it takes a number per exit, such as the temperatures of
    "cascadebert:0.9,1.5/1", it takes one per model. threshold: its knob; without one, `calibrate` finds it, and until
    then every row is answered by the last model.

    Raises ConfigError for options that make no sense, CheckpointError for models that do not go together.
    """
    if isinstance(models, (str, bytes, os.PathLike)) or not 2 <= len(models) <= MOST_MODELS:
        raise ConfigError(f"models must be a list of 2 to {MOST_MODELS} checkpoints; a cascade needs more than one")
    threshold = None if threshold is None else number("threshold", threshold)
    if wrong := criterion_faults(criterion, threshold):
        raise ConfigError(wrong[0])
    saving.check_writable(out, cascade=True)
    opened = [read(find(path)) for path in models]
    named = {f"model {i} ({ckpt.path})": ckpt for i, ckpt in enumerate(opened, 1)}
    if faults := misfits(named):
        raise CheckpointError(out, faults)
    manifest = CascadeManifest(len(opened), "cascade", criterion, threshold)
    with saving.replacing(out, cascade=True) as stage:
        fill_cascade(stage, manifest, [part_of(ckpt) for ckpt in opened])
    return Path(out)


def fill_cascade(stage: Path, manifest: CascadeManifest, parts: Sequence[Part]) -> CascadeCheckpoint:
    """Write the files of a cascade into an empty directory and read them back."""
    opened = {}
    for i, part in enumerate(parts, 1):
        folder = stage / model_path(i)
        with saving.explained(stage):
            folder.mkdir(parents=True)
        try:
            saving.fill(folder, part.config, part.manifest, part.tensors, part.tokenizer)
        except CheckpointError as error:
            raise CheckpointError(stage, [f"{model_path(i)}: {fault}" for fault in error.faults]) from None
        opened[f"{model_path(i)}/{MANIFEST}"] = Folder(folder).open(MANIFEST)
    with saving.explained(stage):
        written = replace(manifest, models=len(parts), files=describe(opened))
        (stage / MANIFEST).write_text(saving.manifest_text(written))
    return read_cascade(stage)


def copy(source: str | os.PathLike[str], out: str | os.PathLike[str]) -> Path:
    """Write a checkpoint or a cascade once more, somewhere else."""
    ckpt = open_checkpoint(source).checked()
    with saving.replacing(out, isinstance(ckpt, CascadeCheckpoint)) as stage:
        refill(stage, ckpt, ckpt.manifest)
    return Path(out)


def refill(stage: Path, ckpt: Checkpoint | CascadeCheckpoint, manifest: saving.AnyManifest) -> saving.AnyManifest:
    """Write what was read into an empty directory, with another manifest. Returns what its pfengine.json says now."""
    if isinstance(ckpt, CascadeCheckpoint):
        assert isinstance(manifest, CascadeManifest)
        return fill_cascade(stage, manifest, [part_of(each) for each in ckpt.models]).manifest
    assert isinstance(manifest, Manifest)
    return saving.fill(stage, ckpt.backbone.raw, manifest, ckpt.tensors, ckpt.tokenizer)
