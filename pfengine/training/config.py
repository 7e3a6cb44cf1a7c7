"""What a training run is told."""

from __future__ import annotations

import math
import numbers
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from ..data import FORMATS
from ..errors import ConfigError
from ..heads import HEADS
from ..heads.past_future import CHOICES
from ..manifest import STORAGES
from .freezing import FreezingKind
from .past_future import Objective, head_of

System = Literal["past-future", "linear", "full-model"]
MOST, MOST_SEED = 2**31 - 1, 2**32 - 1  # numpy's
INTEGERS = ("layers", "batch_size", "max_length", "frozen_layers", "hold_out", "max_rows", "save_every")
NUMBERS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    **{name: (f"an integer > 0, at most {MOST}", lambda v: 0 < v <= MOST) for name in INTEGERS},
    "seed": (f"an integer from 0 to {MOST_SEED}", lambda v: 0 <= v <= MOST_SEED),
    "epochs": ("a number > 0, at most 1e6", lambda v: 0 < v <= 1e6),
    "learning_rate": ("a number > 0", lambda v: 0 < v < math.inf),
    "weight_decay": ("a number >= 0", lambda v: 0 <= v < math.inf),
    "warmup": ("a number in [0, 1)", lambda v: 0 <= v < 1),
    "dropout": ("a number in [0, 1)", lambda v: 0 <= v < 1),
    "speedup": ("a number >= 1", lambda v: 1 <= v < math.inf),
}
NAIVE = ("ensemble", "vote")  # strategies over the labels or probabilities of plain classifiers


@dataclass(frozen=True)
class TrainingConfig:
    """Options of `pfengine train`.

    model: pretrained encoder, a local directory in Hugging Face layout, or a checkpoint of ours, whose encoder is
    trained on. data: a directory with a `train` split, a file, or a GLUE task's name. output: where the checkpoint
    goes.

    system: "past-future"; "linear", a plain classifier after every layer; "full-model", one behind the last.
    form: Past-Future as the paper's equations or as the authors' code; sets head and loss. pooler, learner,
    incorporate, states, gate: single options of the head instead (see `heads.past_future.Options`); incorporate
    "ensemble" and "vote" are strategies over plain classifiers. layers: only the first k of the encoder.

    labels: names in id order; default: the GLUE task's, or those in the data as they stand there, in numeric order
    where all are integers, else sorted; labels that are all numbers, one of them with a fraction, are scores:
    regression. data_format: of `data`, as in `data.stream`. text_column, pair_column, label_column: default: the usual
    names. held_out: file with rows to calibrate thresholds on; without one, `hold_out` rows of the training data are
    not trained on but used for that.
    """

    model: str
    data: str
    output: str
    system: System = "past-future"
    form: Objective = "paper"
    pooler: str | None = None
    learner: str | None = None
    incorporate: str | None = None
    states: str | None = None
    gate: str | None = None
    layers: int | None = None
    labels: tuple[str, ...] | None = None
    data_format: str = "auto"
    text_column: str | None = None
    pair_column: str | None = None
    label_column: str | None = None
    epochs: float = 3.0
    batch_size: int = 32
    learning_rate: float = 5e-5
    weight_decay: float = 0.0
    warmup: float = 0.06  # share of the steps over which the learning rate rises; it then falls linearly to 0
    max_length: int = 128
    dropout: float = 0.1  # of the states in front of the head's classifiers
    freezing: FreezingKind = "none"
    frozen_layers: int = 2  # lowest layers that "lower" freezes
    precision: str = "bf16"  # "fp32" or "bf16" (autocast; weights stay fp32)
    seed: int = 0
    held_out: str | None = None
    hold_out: int = 1000
    max_rows: int | None = None
    save_every: int = 500  # optimiser steps between states from which an interrupted run goes on
    speedup: float = 2.0  # layer speed-up the checkpoint runs at unless told otherwise: sets its threshold
    storage: str = "float"  # how the checkpoint is stored: "float" or "int8-rows"

    def __post_init__(self) -> None:
        for name in ("model", "data", "output", "held_out"):
            value = getattr(self, name)
            if isinstance(value, os.PathLike):
                object.__setattr__(self, name, os.fspath(value))
            elif not isinstance(value, str) and not (name == "held_out" and value is None):
                raise ConfigError(f"{name} is {value!r}; it must be a path")
        faults = []
        optional = {field.name for field in fields(self) if field.default is None}
        for name, (kind, fits) in NUMBERS.items():
            value = getattr(self, name)
            if value is None and name in optional:
                continue
            whole = name == "seed" or name in INTEGERS
            wanted = numbers.Integral if whole else numbers.Real
            if isinstance(value, (bool, np.bool_)) or not isinstance(value, wanted) or not fits(value):
                faults.append(f"{name} is {value!r}; it must be {kind}")
            else:  # numpy's numbers too, which JSON does not know
                plain: Callable[[Any], Any] = int if whole else float
                object.__setattr__(self, name, plain(value))
        faults += self._label_faults()
        known: dict[str, tuple[Any, ...]] = {
            "system": get_args(System),
            "form": get_args(Objective),
            "freezing": get_args(FreezingKind),
            "precision": ("fp32", "bf16"),
            "storage": STORAGES,
            "data_format": FORMATS,
        }
        known |= {name: (None, *choices) for name, choices in CHOICES.items()}
        known["incorporate"] += NAIVE
        for name, choices in known.items():
            if getattr(self, name) not in choices:
                listed = ", ".join(choice for choice in choices if choice is not None)
                faults.append(f"{name} is {getattr(self, name)!r}; it must be one of {listed}")
        if not faults:
            faults += self._misfits()
        if faults:
            raise ConfigError("; ".join(faults))

    def _label_faults(self) -> list[str]:
        if self.labels is None:
            return []
        given: Any = self.labels  # may be anything
        if isinstance(given, str) or not all(isinstance(name, str) and name.strip() for name in self.labels):
            return [f"labels is {self.labels!r}; it must be a tuple of names, none of them empty"]
        names = tuple(name.strip() for name in self.labels)
        object.__setattr__(self, "labels", names)
        if len(names) < 2:
            return [f"labels is {names!r}; a classifier needs at least two"]
        return [f"labels has {name!r} twice" for name in sorted(set(names)) if names.count(name) > 1]

    def _misfits(self) -> list[str]:
        """Options of a head that this one has not."""
        given = [name for name in CHOICES if getattr(self, name) is not None]
        if self.system == "past-future" and self.incorporate not in NAIVE:
            return HEADS["past-future"].config_faults(self.head(shared_pooler=False))
        allowed = {"past-future": ["incorporate", "pooler"], "linear": ["pooler"], "full-model": []}[self.system]
        return [
            f"{name} is {getattr(self, name)!r}, an option of the past-future head, which this run does not train"
            for name in given
            if name not in allowed
        ]

    def head(self, shared_pooler: bool) -> dict[str, Any]:
        """The `head` object of pfengine.json.

        shared_pooler: exit heads of this family share one pooler, unless `pooler` says otherwise.
        """
        if self.system == "full-model":
            return {"type": "classifier"}
        own_pooler = "shared" if shared_pooler else "per-layer"
        if self.system == "linear" or self.incorporate in NAIVE:
            combine = self.incorporate if self.incorporate in NAIVE else "none"
            return {"type": "linear", "pooler": self.pooler or own_pooler, "combine": combine}
        pooler = self.pooler or (own_pooler if self.form == "authors" else None)
        return head_of(self.form, pooler=pooler, learner=self.learner, incorporate=self.incorporate,
                       states=self.states, gate=self.gate)  # fmt: skip

    def record(self) -> dict[str, Any]:
        """For pfengine.json: everything but the paths of this run, which mean nothing elsewhere, and what head says."""
        left_out = ("output", "labels", "storage", *CHOICES)
        record = {key: value for key, value in asdict(self).items() if key not in left_out and value is not None}
        if self.data_format == "auto":
            del record["data_format"]
        for name in ("model", "data", "held_out"):
            if name in record:
                record[name] = Path(record[name]).name
        return record
