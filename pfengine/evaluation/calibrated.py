"""What `calibrate` found, and writing it into a checkpoint."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from .. import data, saving
from ..api import Engine
from ..bundled import BUNDLED
from ..cascade_manifest import CascadeManifest
from ..cascade_reader import open_checkpoint
from ..cascade_saving import refill
from ..errors import ConfigError
from ..exits.guarantee import Guarantee
from ..exits.placement import Placement
from ..messages import warn
from .precisions import check_precisions

FEW_ROWS = 30


@dataclass(frozen=True)
class LayerChoice:
    """Exits chosen by time: predicted and measured seconds per row, beside those of all exits at equal agreement."""

    chosen: Placement
    every: Placement
    measured_seconds: float
    measured_every: float
    measured_full_depth: float


@dataclass(frozen=True)
class Calibration:
    """What `calibrate` found and wrote."""

    checkpoint: str
    data: str
    rows: int
    criterion: str
    threshold: float | None
    exit_layers: tuple[int, ...]
    table: list[dict[str, Any]]
    guarantee: Guarantee | None
    layers: LayerChoice | None
    precisions: dict[str, dict[str, Any]]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def outcome(
    manifest: saving.AnyManifest,
    target: Path,
    source: str | Path,
    rows: int,
    exit_layers: tuple[int, ...],
    promised: Guarantee | None,
    choice: LayerChoice | None,
    precisions: dict[str, dict[str, Any]],
) -> Calibration:
    return Calibration(
        checkpoint=os.fspath(target),
        data=data.display_name(Path(source)) if Path(source) == data.STDIN else Path(source).name,
        rows=rows,
        criterion=manifest.criterion or "",
        threshold=manifest.threshold,
        exit_layers=exit_layers,
        table=list(manifest.calibration),
        guarantee=promised,
        layers=choice,
        precisions=precisions,
    )


def target_of(engine: Engine, path: str | os.PathLike[str], out: str | os.PathLike[str] | None) -> Path:
    """Where to write: the engine's own directory, or `out`. ConfigError where that is the package's own."""
    directory = engine.checkpoint.path
    if out is None and BUNDLED in directory.parents:
        raise ConfigError(f"{path} is bundled with the package; give the calibrated copy a directory with out")
    return directory if out is None or os.path.realpath(out) == os.path.realpath(directory) else Path(out)


def write(
    engine: Engine, manifest: saving.AnyManifest, target: Path, texts: list[Any], notify: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    """Write the checkpoint with this manifest, and in it how other precisions answer, which is returned."""
    directory = engine.checkpoint.path
    notify("bf16 and int8 beside fp32")
    if target == directory:
        with saving.trial(directory, manifest) as stage:
            precisions = check_precisions(stage, texts)
        saving.write_manifest(directory, replace(manifest, precisions=precisions))
    else:
        with saving.replacing(target, isinstance(manifest, CascadeManifest)) as stage:
            written = refill(stage, open_checkpoint(directory).checked(), manifest)
            precisions = check_precisions(stage, texts)
            saving.write_manifest(stage, replace(written, precisions=precisions))
    return precisions


def warn_of_few(rows: list[Any], source: str | Path) -> None:
    if len(rows) < FEW_ROWS:
        warn(f"{source} has {len(rows)} rows; thresholds from fewer than {FEW_ROWS} are unreliable")
