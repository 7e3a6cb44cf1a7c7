"""The manifest of a cascade, pfengine.json of type "cascade": what runs between its models, checked.

    out/pfengine.json
    out/models/1/    a complete checkpoint: the model that every row enters first
    out/models/2/    the model for rows that the first one is not sure of, and so on

A cascade has no config.json and no weights of its own. `files` lists the pfengine.json of each model, and each of these
lists the files beside it. So a mixture of two cascades is refused.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .folder import Folder
from .json_fields import Fields, is_int
from .manifest import FORMAT_VERSION, is_files, judged_fields, read_version

TYPE, MODELS, MANIFEST = "cascade", "models", "pfengine.json"
MOST_MODELS = 16


@dataclass(frozen=True)
class CascadeManifest:
    """The contents of a cascade's pfengine.json."""

    models: int  # how many there are, at least 2
    system: str = "cascade"
    criterion: str | None = None  # between models: it reads the scores of each model's answer
    threshold: float | None = None
    calibration: tuple[dict[str, Any], ...] = ()
    guarantee: dict[str, Any] | None = None
    precisions: dict[str, dict[str, Any]] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    files: dict[str, dict[str, Any]] = field(default_factory=dict, repr=False, compare=False)

    def to_json(self) -> dict[str, Any]:
        return {
            "format_version": FORMAT_VERSION,
            "type": TYPE,
            "system": self.system,
            "models": self.models,
            "criterion": self.criterion,
            "threshold": self.threshold,
            "calibration": list(self.calibration),
            "training": self.training,
        } | {key: value for key in ("guarantee", "precisions", "files") if (value := getattr(self, key))}


def model_path(number: int) -> str:
    """Where the model of a number, 1-based, is within the directory: "models/1"."""
    return f"{MODELS}/{number}"


def parse_cascade(raw: dict[str, Any], faults: list[str]) -> CascadeManifest | None:
    """Check a cascade's pfengine.json; faults are appended to `faults`."""
    fields = Fields(raw, MANIFEST, faults)
    if not read_version(fields):
        return None
    known = set(CascadeManifest.__dataclass_fields__) | {"format_version", "type"}
    for key in sorted(set(raw) - known):
        fields.fault(key, f"is not a field of a cascade in format version {FORMAT_VERSION}")
    count = fields.get(
        "models", f"how many models there are, 2 to {MOST_MODELS}", lambda v: is_int(v) and 2 <= v <= MOST_MODELS, 2
    )
    listed = {f"{model_path(number)}/{MANIFEST}" for number in range(1, count + 1)}
    return CascadeManifest(
        models=count,
        system=fields.get("system", "a string", lambda v: isinstance(v, str) and bool(v), ""),
        files=fields.get(
            "files",
            f"an object of {', '.join(sorted(listed))} with 'size' and 'sha256'",
            lambda v: is_files(v) and set(v) == listed,
            {},
            {},
        ),
        **judged_fields(fields),
    )


def is_cascade(path: str | os.PathLike[str] | Folder) -> bool:
    """Does a directory hold a cascade? False where its pfengine.json cannot be read, which readers report."""
    try:
        folder = path if isinstance(path, Folder) else Folder(path)
        raw = folder.json(MANIFEST) if folder.has(MANIFEST) else None
    except ValueError:  # a CheckpointError
        return False
    return isinstance(raw, dict) and raw.get("type") == TYPE


def model_folders(directory: Path) -> list[Path]:
    """Where a cascade's models are, whatever their number is."""
    models = directory / MODELS
    return sorted(entry for entry in models.iterdir() if entry.is_dir()) if models.is_dir() else []
