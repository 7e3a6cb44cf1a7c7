"""Makes what is missing: checkpoints, and what was measured of them. Everything stays in one directory."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .. import checkpoint
from ..evaluation import evaluate
from ..strict_json import dumps
from ..training import TrainingConfig, train
from ..training.config import TYPES
from .contestants import FULL, Contestant


@dataclass(frozen=True)
class Measuring:
    """How all contestants are measured. test: rows that nothing was chosen on. batch_size: rows per batch."""

    test: Path
    speedups: tuple[float, ...]
    precision: str
    batch_size: int
    repeats: int
    device: str = "auto"


@dataclass(frozen=True)
class Workshop:
    """base: the training run whose options all share. layers: of the encoder. say: is told what begins."""

    base: TrainingConfig
    directory: Path
    layers: int
    contestants: dict[str, Contestant]
    measuring: Measuring
    say: Callable[[str], None]

    def run(self, name: str, seed: int) -> dict[str, Any]:
        """What was measured of a contestant trained with this seed; made now where it is missing."""
        note = self.directory / f"{self._path(name, seed).name}.json"
        if not note.exists():
            found = self._measured(name, seed)
            part = note.with_suffix(".part")
            part.write_text(dumps(found, indent=2) + "\n")
            os.replace(part, note)
        found = json.loads(note.read_text())
        return found

    def _path(self, name: str, seed: int) -> Path:
        contestant = self.contestants[name]
        own = self.directory / f"{contestant.stem}-s{seed}"
        return own if contestant.path is None else own.with_name(contestant.stem)

    def config(self, name: str, seed: int) -> TrainingConfig:
        """The training run of a contestant; those that it needs are trained first."""
        contestant = self.contestants[name]
        options: dict[str, Any] = dict(contestant.options)
        if contestant.share > 1:
            options["layers"] = self.layers // contestant.share
        if contestant.start is not None:
            options["model"] = str(self.trained(contestant.start, seed))
        if contestant.teacher is not None:
            options["options"] = options.get("options", {}) | {"teacher": str(self.trained(contestant.teacher, seed))}
        return replace(self.base, output=str(self._path(name, seed)), **{"seed": seed, **options})

    def trained(self, name: str, seed: int) -> Path:
        """The checkpoint of a contestant. Training that was interrupted goes on."""
        contestant, path = self.contestants[name], self._path(name, seed)
        if contestant.path is not None:
            return contestant.path
        if not (path / checkpoint.MANIFEST).exists():
            config = self.config(name, seed)
            self.say(f"training {name}, seed {seed}")
            start = time.perf_counter()
            train(config)
            (self.directory / f"{path.name}.seconds").write_text(f"{time.perf_counter() - start:.0f}\n")
        return path

    def _measured(self, name: str, seed: int) -> dict[str, Any]:
        """Settings by key: "1x" is full depth; a speed that the contestant does not reach is left out."""
        path, reference = self.trained(name, seed), self.trained(FULL, seed)
        self.say(f"measuring {name}, seed {seed}")
        measuring, manifest = self.measuring, json.loads((path / checkpoint.MANIFEST).read_text())
        wanted = wanted_speedups(manifest, self.layers, measuring.speedups)
        beside = {} if name == FULL else {"compare": [path], "speedups": [1.0, *wanted.values()]}
        report = evaluate(
            reference, measuring.test, precision=measuring.precision, batch_size=measuring.batch_size,
            repeats=measuring.repeats, device=measuring.device, answers=True, **beside,  # type: ignore[arg-type]
        )  # fmt: skip
        settings = [each for each in report.settings if each.checkpoint == str(path)]
        keys = ["1x", *wanted] if len(settings) == 1 + len(wanted) else ["1x"]
        found = report.to_json()
        own = [each for each in found["settings"] if each["checkpoint"] == str(path)]
        (curve,) = [each for each in found["curves"] if each["checkpoint"] == str(path)]
        seconds = self.directory / f"{path.name}.seconds"
        for part in (curve, *own):
            del part["checkpoint"]
        return {
            "contestant": name,
            "seed": seed,
            "criterion": manifest["criterion"],
            "command": self.command(name, seed),
            "training_seconds": float(seconds.read_text()) if seconds.exists() else None,
            "settings": dict(zip(keys, own, strict=True)),
            "curve": curve,
            "truth": found["truth"],
            "conditions": {
                key: found[key]
                for key in ("data", "rows", "mean_tokens", "precision", "batch_size", "repeats", "machine")
            },
        }

    def command(self, name: str, seed: int) -> str | None:
        """How its checkpoint is made, with names in the place of paths; None for a finished one."""
        if self.contestants[name].path is not None:
            return None
        config, defaults, told = self.config(name, seed), TrainingConfig("", "", ""), []
        skipped = ("model", "data", "output", "options", "labels")
        given = {key: getattr(config, key) for key in TYPES} | dict(config.options)
        for key, value in given.items():
            if key in skipped or (key in TYPES and value == getattr(defaults, key)):
                continue
            text = Path(value).name if isinstance(value, str) and os.sep in value else _shown(value)
            told += [f"--{key.replace('_', '-')}", text]
        names = [Path(config.model).name, f"{Path(config.data).name}/", f"{self._path(name, seed).name}/"]
        return " ".join(["pfengine train", *names, *told])


def wanted_speedups(manifest: dict[str, Any], layers: int, speedups: Sequence[float]) -> dict[str, float]:
    """For each speed, such as "2x" of the encoder's layers, the layer speed-up to ask the checkpoint for.

    Where its calibration table does not reach a speed the nearest that there is takes its place, once; what it has at
    full depth is left out.
    """
    reached = sorted(point["layer_speedup"] for point in manifest.get("calibration", ()))
    if not reached or reached[-1] <= 1:
        return {}
    depth = manifest.get("exit_layers", [layers])[-1]  # a cascade is as deep as its last model
    found: dict[str, float] = {}
    for speed in speedups:
        own = min(max(speed * depth / layers, reached[0]), reached[-1])
        if own > 1 and own not in found.values():
            found[f"{speed:g}x"] = own
    return found


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
