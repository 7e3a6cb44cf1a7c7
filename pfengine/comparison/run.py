"""`pfengine compare`: several systems on one task, from one encoder, at equal layers and at equal time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .. import data
from ..errors import ConfigError
from ..options import whole
from ..training import TrainingConfig
from ..training.config import OF_ONE_RUN, TYPES
from ..training.pretrained import encoder_config
from ..training.resume import check_same_run, hash_files
from ..training.system import FALLBACKS
from ..training.systems import SYSTEMS
from .contestants import BASELINES, Contestant, read_all
from .results import Comparison
from .workshop import Measuring, Workshop

RENAMED = {"training_precision": "precision", "training_batch_size": "batch_size"}
CONTESTANTS = ("pfengine", "past-future", "linear", *BASELINES)
SPEEDUPS = (1.5, 2.0, 3.0, 4.0)


def compare(
    model: str | os.PathLike[str],
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    contestants: Sequence[str] = CONTESTANTS,
    seeds: Sequence[int] = (0,),
    speedups: Sequence[float] = SPEEDUPS,
    test: str | os.PathLike[str] | None = None,
    device: str = "auto",
    precision: str = "auto",
    batch_size: int = 32,
    repeats: int = 5,
    progress: Callable[[Iterable[Any], int], Iterable[Any]] | None = None,
    say: Callable[[str], None] = lambda stage: None,
    **training: Any,
) -> Comparison:
    """Train contestants alike, and judge them on rows that nothing was chosen on.

    contestants: as text, see `comparison.contestants`; the full model is always one of them. seeds: each is trained
    with every seed. speedups: of the encoder's layers; their thresholds are those that training calibrated on held-out
    rows. source: a directory with a train and a dev split, or a GLUE task's name; test: other rows than its dev split.
    device, precision, batch_size, repeats: of the measurement, in which each contestant's runs are interleaved with
    those of the full model. training: options of `TrainingConfig` for all of them; `training_precision` and
    `training_batch_size` are its `precision` and `batch_size`. progress: wraps the pairs of contestant and seed; say:
    is told what begins.

    What is made stays in `output`: called again, it makes only what is missing, and an interrupted training goes on.
    Raises ConfigError and CheckpointError before any training where something does not fit.
    """
    seeds, repeats, batch_size = list(seeds), whole("repeats", repeats), whole("batch_size", batch_size)
    if not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError(f"seeds are {', '.join(map(str, seeds)) or 'empty'}; give each once")
    speedups = tuple(sorted(set(map(float, speedups))))
    if not all(1 < speed < 1000 for speed in speedups):
        raise ConfigError(f"speedups are {', '.join(f'{speed:g}' for speed in speedups)}; each must be above 1")
    if misplaced := [name for name in training if name in OF_ONE_RUN]:
        raise ConfigError(f"{misplaced[0]} is not an option of all contestants; give it to one, such as 'linear:...'")
    training = {RENAMED.get(name, name): value for name, value in training.items()}
    if unknown := [name for name in training if name not in TYPES]:
        raise ConfigError(f"there is no option {unknown[0]!r}")
    found = read_all(contestants)
    directory, train_file = Path(output), data.locate(os.fspath(source), "train")
    file = data.locate(os.fspath(source), "dev") if test is None else Path(test)
    base = TrainingConfig(os.fspath(model), os.fspath(source), "", **training)
    layers = encoder_config(Path(model), ("0", "1"), None).num_layers
    for contestant in found.values():
        if contestant.path is None:
            _check(base, contestant)
    own = ("system", "seed", "speedup", *SYSTEMS[base.system].own, *(n for n in FALLBACKS if getattr(base, n) is None))
    described = {key: value for key, value in base.record().items() if key not in own}
    measuring = Measuring(file, speedups, precision, batch_size, repeats, device)
    described |= {f"measured {key}": value for key, value in measuring.__dict__.items() if key != "test"}
    held_out = [base.held_out] if base.held_out is not None else []
    inputs = {"data": hash_files(train_file, file, *held_out), "model": hash_files(os.fspath(model))}
    check_same_run(directory, described | {"test": file.name}, inputs, "a comparison")
    workshop = Workshop(base, directory, layers, found, measuring, say)
    pairs = [(name, seed) for seed in seeds for name in found]
    runs = [workshop.run(*pair) for pair in (pairs if progress is None else progress(pairs, len(pairs)))]
    return Comparison(list(found), seeds, speedups, layers, described, runs)


def _check(base: TrainingConfig, contestant: Contestant) -> None:
    """Raise ConfigError, which names the contestant, where its options do not fit."""
    options = dict(contestant.options)
    if contestant.teacher is not None:
        options["options"] = options.get("options", {}) | {"teacher": "trained before"}
    try:
        replace(base, **options)
    except ConfigError as error:
        raise ConfigError(f"contestant {contestant.name!r}: {error}") from None
