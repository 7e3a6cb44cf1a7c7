"""What a training run is told: each option's name, type, default, limits and help, for Python and the command line."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, cast, get_args, get_origin, get_type_hints

from ..data import FORMATS
from ..devices import trained_in
from ..errors import ConfigError, shown
from ..exits import DataCriterion
from ..exits.text import has_knob, lacks_threshold, parse_form
from ..heads.past_future import CHOICES
from ..manifest import STORAGES
from .freezing import FreezingKind
from .options import COUNT, EPOCHS, NOT_NEGATIVE, POSITIVE, SEED, SHARE, SPEEDUP, Option, read_own
from .past_future import NAIVE, Objective
from .system import FALLBACKS
from .systems import SYSTEMS


def _systems() -> str:
    """The systems and what they are, as help."""
    *others, last = (f"{name} ({system.summary})" for name, system in SYSTEMS.items())
    return f"{', '.join(others)} or {last}."


def _default(name: str) -> str:
    """The default of an option that systems may have their own for, as help."""
    own = [f"{system.name}: {system.defaults[name]:g}" for system in SYSTEMS.values() if name in system.defaults]
    return f"[default: {'; '.join([*own, f'others: {FALLBACKS[name]:g}']) if own else f'{FALLBACKS[name]:g}'}]"


@dataclass(frozen=True)
class TrainingConfig:
    """Options of `pfengine train`; `Option.help` of each says what it means.

    form sets the head and the loss; pooler, learner, incorporate, states, gate and reads replace single options of the
    head (see `heads.past_future.Options`). With incorporate "ensemble" or "vote" plain classifiers are trained, and
    combined by that strategy.

    criterion: as text whose threshold is left out, for it is calibrated on the held-out rows for the layer speed-up
    `speedup`. Whether the head gives what it reads is checked before the training.

    labels: default: the GLUE task's, or those in the data as they are written, in numeric order where all are integers,
    else sorted; labels that are all numbers, at least one of them with a fraction, are scores: regression.

    options: those that the system declares itself (`System.own`), by name: {"exits": (1, 4, 12)}. epochs, learning_rate
    and averaging: None for the system's own defaults; see `filled`, which decides on a precision, too.

    Raises ConfigError with every fault found.
    """

    model: Annotated[str, Option("Pretrained encoder in Hugging Face layout, or a checkpoint to start from.")]
    data: Annotated[str, Option("A directory with a train split, a file, or a GLUE task's name.")]
    output: Annotated[str, Option("Checkpoint directory to write.")]
    system: Annotated[str, Option(_systems(), choices=SYSTEMS)] = "pfengine"
    form: Annotated[
        str | None,
        Option(
            "Head and loss of past-future: paper (its equations; the default) or authors (their code).",
            choices=get_args(Objective),
        ),
    ] = None
    pooler: Annotated[
        str | None, Option("Pooler of the states: none, per-layer or shared.", choices=CHOICES["pooler"])
    ] = None
    learner: Annotated[str | None, Option("Imitation learner: linear or tanh.", choices=CHOICES["learner"])] = None
    incorporate: Annotated[
        str | None,
        Option(
            "How states become scores: concat, concat-shared, max, avg, attention or lstm; ensemble and vote combine "
            "plain classifiers.",
            choices=(*CHOICES["incorporate"], *NAIVE),
        ),
    ] = None
    states: Annotated[
        str | None, Option("States that the head reads: past-future, past or future.", choices=CHOICES["states"])
    ] = None
    gate: Annotated[
        str | None,
        Option("Weights of the merging gate: row, label or none.", choices=CHOICES["gate"]),
    ] = None
    reads: Annotated[
        str | None,
        Option(
            "What the exits read after each layer: first (the first token), mean (of all tokens) or query (their mean, "
            "weighed by learned queries).",
            choices=CHOICES["reads"],
        ),
    ] = None
    criterion: Annotated[
        str | None,
        Option("Criterion instead of the system's own, without a threshold: patience, or confidence:,1.2."),
    ] = None
    layers: Annotated[int | None, Option("Use only the first layers of the encoder.", COUNT)] = None
    labels: Annotated[
        tuple[str, ...] | None,
        Option("Label names in id order, with commas between; or a file with one name per line."),
    ] = None
    data_format: Annotated[
        str,
        Option("auto (by the file's name; else text), text, tsv, csv, jsonl, parquet or conll.", choices=FORMATS),
    ] = "auto"
    text_column: Annotated[str | None, Option("Column of the text.")] = None
    pair_column: Annotated[str | None, Option("Column of the second text.")] = None
    label_column: Annotated[str | None, Option("Column of the label.")] = None
    epochs: Annotated[float | None, Option(f"Passes over the training rows. {_default('epochs')}", EPOCHS)] = None
    batch_size: Annotated[int, Option("Rows per training step and device.", COUNT)] = 32
    learning_rate: Annotated[
        float | None,
        Option(f"Highest learning rate; it falls linearly to 0. {_default('learning_rate')}", POSITIVE),
    ] = None
    weight_decay: Annotated[float, Option("Weight decay of AdamW.", NOT_NEGATIVE)] = 0.0
    warmup: Annotated[float, Option("Share of the steps over which the learning rate rises.", SHARE)] = 0.06
    averaging: Annotated[
        float | None,
        Option(
            "Keep a moving average of the weights, which remembers this share of the steps; 0: the last step's. "
            f"{_default('averaging')}",
            SHARE,
        ),
    ] = None
    max_length: Annotated[int, Option("Longest row in tokens; longer rows are truncated.", COUNT)] = 128
    dropout: Annotated[float, Option("Dropout of the states that the exits' classifiers read.", SHARE)] = 0.1
    freezing: Annotated[
        FreezingKind,
        Option("Freezing of lower layers: none, layers (paper) or lower (authors).", choices=get_args(FreezingKind)),
    ] = "none"
    frozen_layers: Annotated[int, Option("How many of the lowest layers 'lower' freezes.", COUNT)] = 2
    precision: Annotated[
        str,
        Option(
            "fp32, bf16 (autocast; the weights stay fp32), or auto: bf16 where the hardware has instructions for it.",
            choices=("auto", "fp32", "bf16"),
        ),
    ] = "auto"
    seed: Annotated[int, Option("Seed of everything random.", SEED)] = 0
    unlabelled: Annotated[
        str | None,
        Option("File with more rows, whose labels are not read, for systems that also learn from such rows."),
    ] = None
    held_out: Annotated[str | None, Option("File with rows to calibrate thresholds on.")] = None
    hold_out: Annotated[int, Option("Without one: training rows set aside for that.", COUNT)] = 1000
    max_rows: Annotated[int | None, Option("Use only the first rows.", COUNT)] = None
    save_every: Annotated[int, Option("Steps between saves that an interrupted run resumes from.", COUNT)] = 500
    speedup: Annotated[
        float,
        Option("Layer speed-up that the checkpoint runs at by default.", SPEEDUP),
    ] = 2.0
    storage: Annotated[str, Option("How weights are stored: float or int8-rows.", choices=STORAGES)] = "float"
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("model", "data", "output", "unlabelled", "held_out"):
            value = getattr(self, name)
            if isinstance(value, os.PathLike):
                object.__setattr__(self, name, os.fspath(value))
            elif not isinstance(value, str) and not (value is None and DEFAULTS[name] is None):
                raise ConfigError(f"{name} is {value!r}; it must be a path")
        faults = self._value_faults() + self._label_faults() + self._criterion_faults()
        if not faults:
            faults += self._misfits()
        if faults:
            raise ConfigError("; ".join(faults))

    def _value_faults(self) -> list[str]:
        """What is wrong with numbers and choices. Numbers of numpy become Python's, which JSON takes."""
        faults = []
        for name, option in OPTIONS.items():
            value = getattr(self, name)
            if (option.limits is None and not option.choices) or (value is None and DEFAULTS[name] is None):
                continue
            try:
                object.__setattr__(self, name, option.read(name, value))
            except ValueError as error:
                faults.append(str(error))
        return faults

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

    def _criterion_faults(self) -> list[str]:
        """What is wrong with the criterion's text, which is kept as checkpoints have it."""
        if self.criterion is None:
            return []
        given: Any = self.criterion  # may be anything
        if not isinstance(given, str):
            return [f"criterion is {given!r}; it must be text such as 'patience'"]
        try:
            rule = parse_form(given)
        except ConfigError as error:
            return [str(error)]
        if not isinstance(rule, DataCriterion):
            return []
        if has_knob(type(rule)) and not lacks_threshold(given):
            return [
                f"criterion is {shown(given)}; leave out its threshold, {rule.form!r}: that is calibrated for speedup"
            ]
        object.__setattr__(self, "criterion", rule.form)
        return []

    def _misfits(self) -> list[str]:
        """Options that the system does not take, or that do not fit together."""
        system, given = SYSTEMS[self.system], cast(Any, self.options)
        if not isinstance(given, Mapping):
            return [f"options is {given!r}; it must be a dict of options by name"]
        if taken := [name for name in system.own if name in TYPES]:
            return [f"system {self.system!r} declares an option {taken[0]!r}, and every run has one of that name"]
        given, faults = read_own(system.own, given, self.system)
        if faults:
            return faults
        object.__setattr__(self, "options", given)
        try:
            self.head(shared_pooler=False)
        except ConfigError as error:
            return [str(error)]
        return []

    def filled(self) -> TrainingConfig:
        """The same run, with its system's defaults and this machine's precision where it was told nothing."""
        return replace(self, **self._missing())

    def _missing(self) -> dict[str, Any]:
        system = SYSTEMS[self.system]
        defaults = {**FALLBACKS, **({"form": "paper"} if "form" in system.options else {}), **system.defaults}
        missing = {name: value for name, value in defaults.items() if getattr(self, name) is None}
        return missing | ({"precision": trained_in()} if self.precision == "auto" else {})

    def flat(self) -> dict[str, Any]:
        """All options by name, filled, those that the system declares itself among them."""
        own = {name: option.default for name, option in SYSTEMS[self.system].own.items()}
        return own | {name: getattr(self, name) for name in TYPES} | self._missing() | dict(self.options)

    def model_paths(self) -> list[str]:
        """The model to start from, and what options of the system name beside it."""
        own = {name: option for name, option in SYSTEMS[self.system].own.items() if option.path}
        return [self.model, *(self.flat()[name] for name in own if self.flat()[name] is not None)]

    def head(self, shared_pooler: bool, layers: int | None = None) -> dict[str, Any]:
        """The `head` object of pfengine.json.

        shared_pooler: exit heads of this family share one pooler, unless `pooler` says otherwise. layers: how many the
        encoder has, once it is known; the option `layers` until then.
        """
        options = self.flat() | ({} if layers is None else {"layers": layers})
        return SYSTEMS[self.system].head_config(options, shared_pooler)

    def record(self) -> dict[str, Any]:
        """For pfengine.json: all options except what the head says and paths, which mean nothing elsewhere."""
        left_out = ("output", "labels", "storage", *CHOICES)
        record = {key: value for key, value in self.flat().items() if key not in left_out and value is not None}
        if self.data_format == "auto":
            del record["data_format"]
        paths = (name for name, option in SYSTEMS[self.system].own.items() if option.path)
        for name in ("model", "data", "unlabelled", "held_out", *paths):
            if name in record:
                record[name] = Path(record[name]).name
        return record


TYPES: dict[str, Any] = {}  # without their options
OPTIONS: dict[str, Option] = {}
for _name, _hint in get_type_hints(TrainingConfig, include_extras=True).items():
    if get_origin(_hint) is Annotated:
        TYPES[_name], OPTIONS[_name] = get_args(_hint)
DEFAULTS: dict[str, Any] = {field.name: field.default for field in fields(TrainingConfig) if field.name in OPTIONS}

OF_ONE_RUN = ("model", "data", "output", "system", "seed", "options", "speedup")
"""Options that are not the same for several runs that are compared."""
