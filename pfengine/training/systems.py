"""The table of systems: how each is built, trained and converted. What the table says is what runs.

A system is a choice of exit head, criterion and recipe. A new one is an entry here, or from outside the package

    register(System("mine", "what it is", head={"type": "linear", "pooler": "none"}, recipe=Mine, criterion="margin"))

after which `train(system="mine")`, `attach(system="mine")` and, where it has a converter, `convert(system="mine")` take
it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from ..convert import (
    berxit,
    cascadebert,
    cosee,
    deebert,
    elasticbert,
    elbert,
    fastbert,
    pabee,
    past_future,
    righttool,
    seqlab,
)
from ..convert.source import Cascaded, Converted
from ..errors import ConfigError
from ..heads import HEADS
from ..heads.past_future import CHOICES
from ..registry import Registry, origin
from .beem import OPTIONS as beem_options
from .beem import BEEMModel
from .berxit import OPTIONS as berxit_options
from .berxit import BERxiTModel, berxit_head
from .cascadebert import OPTIONS as cascadebert_options
from .cascadebert import CascadeModel
from .cosee import OPTIONS as cosee_options
from .cosee import COSEEModel
from .deebert import DeeBERTModel
from .elasticbert import OPTIONS as elasticbert_options
from .elasticbert import ElasticBERTModel
from .elbert import OPTIONS as elbert_options
from .elbert import ELBERTModel
from .fastbert import FastBERTModel
from .leebert import OPTIONS as leebert_options
from .leebert import LeeBERTModel
from .model import ExitModel
from .options import Option
from .past_future import past_future_head, past_future_recipe
from .plain import FullModel, LinearModel, linear_head
from .pooled import PooledModel
from .righttool import OPTIONS as righttool_options
from .righttool import RightToolModel, righttool_head
from .student import OPTIONS as student_options
from .student import StudentModel
from .tagging import AUTHORS_OPTIONS as authors_options
from .tagging import OPTIONS as tokee_options
from .tagging import TagModel, TOKEEModel, tokee_head
from .voting import OPTIONS as voting_options
from .voting import VotingModel

HeadOf = Callable[[Mapping[str, Any], bool], dict[str, Any]]
_OPTION = re.compile(r"[a-z][a-z0-9_]*")


@runtime_checkable
class Converter(Protocol):
    """A module or object that converts checkpoints of a system's authors."""

    def recognises(self, tensors: Collection[str]) -> bool:
        """Are these the keys of such a checkpoint?"""

    def convert(self, path: Path, raw: dict[str, Any], tensors: dict[str, Tensor]) -> Converted | Cascaded:
        """Their config.json and tensors to our config.json, pfengine.json and tensors; of several models, to a cascade.

        path: of the directory, for the CheckpointError with everything that is wrong.
        """


@dataclass(frozen=True, repr=False)
class System:
    """One system.

    name: as `--system` and pfengine.json have it. summary: for `--help`, a few words.
    head: the `head` object of pfengine.json: a dict, or a function of all options of the run by name and of whether
    exit heads of the encoder's family share a pooler unless told otherwise. In a dict, the run's options that the
    system takes replace entries. The function raises ConfigError for options that do not fit together.
    recipe: the `ExitModel` to train, or a function that makes one from the same arguments.
    options: the options of heads, such as "pooler", that it takes (`heads.past_future.CHOICES`).
    own: options that it declares itself, by name: `{"depth": Option("Layers of ...", COUNT, default=2)}`. A run gives
    them as `TrainingConfig(..., options={"depth": 3})` or `--depth 3`; the head function and the recipe find them among
    all options of the run.
    criterion, regression: the text that is written to checkpoints with labels, and to those for regression; None where
    the recipe cannot learn scores. Either may be a function of the `head` object.
    converter: None where no checkpoints of others are read.

    Raises TypeError or ValueError for what it cannot be made of.
    """

    name: str
    summary: str
    head: HeadOf | Mapping[str, Any]
    recipe: Callable[..., ExitModel] = ExitModel
    options: tuple[str, ...] = ()
    criterion: str | Callable[[Mapping[str, Any]], str] = "never"
    regression: str | Callable[[Mapping[str, Any]], str] | None = "never"
    converter: Converter | None = None
    own: Mapping[str, Option] = field(default_factory=dict)

    def __post_init__(self) -> None:
        which = f"system {self.name!r}"
        if isinstance(self.head, Mapping) and not isinstance(self.head.get("type"), str):
            raise ValueError(f"{which}: its head has no type, such as 'linear'")
        if not isinstance(self.head, Mapping) and not callable(self.head):
            raise TypeError(f"{which}: its head is {self.head!r}; it must be a dict or a function")
        if not callable(self.recipe):
            raise TypeError(f"{which}: its recipe is {self.recipe!r}; it must be a subclass of ExitModel or a function")
        if self.converter is not None and not isinstance(self.converter, Converter):
            raise TypeError(f"{which}: its converter {origin(self.converter)} must define recognises and convert")
        if unknown := [option for option in self.options if option not in CHOICES]:
            raise ValueError(f"{which} takes {unknown[0]!r}, which is no option; there are {', '.join(CHOICES)}")
        for name, option in self.own.items():
            if not (isinstance(name, str) and _OPTION.fullmatch(name) and isinstance(option, Option)):
                raise TypeError(f"{which}: its own option {name!r} must be a name of a-z, 0-9 and _, and an Option")
            if option.default is not None:
                option.read(f"{which}: the default of {name}", option.default)

    def __repr__(self) -> str:
        """Without addresses, so that one which is registered again is known to be the same."""
        values = {field.name: getattr(self, field.name) for field in fields(self)} | {"own": tuple(self.own)}
        return f"System({', '.join(f'{name}={origin(value)}' for name, value in values.items())})"

    def head_config(self, options: Mapping[str, Any], shared_pooler: bool) -> dict[str, Any]:
        """The `head` object of a training run with these options, checked.

        Raises ConfigError where options do not fit the system or each other.
        """
        given = {name: options[name] for name in CHOICES if options.get(name) is not None}
        takes = f"it takes {', '.join(self.options)}" if self.options else "it takes none of that kind"
        faults = [
            f"{name} is {value!r}, an option that system {self.name!r} does not take; {takes}"
            for name, value in given.items()
            if name not in self.options
        ]
        if not faults:
            head = {**self.head, **given} if isinstance(self.head, Mapping) else self.head(options, shared_pooler)
            name, kind = head.get("type"), HEADS.get(head.get("type", ""))
            unknown = f"system {self.name!r} has a head of type {name!r}; it must be one of {HEADS.known}"
            faults = [unknown] if kind is None else kind.config_faults(head)
        if faults:
            raise ConfigError("; ".join(faults))
        return head

    def criterion_of(self, head: Mapping[str, Any], regression: bool = False) -> str | None:
        """The criterion's text for a checkpoint with this `head` object; None where it cannot learn regression."""
        criterion = self.regression if regression else self.criterion
        return criterion(head) if callable(criterion) else criterion


SYSTEMS: Registry[System] = Registry("system")
"""Systems by name. Filled by `register`."""


def register(system: System) -> System:
    """Put a system into the table. Returns it.

    Raises TypeError for what is no `System`, ValueError for a name that another one has or that is not of small
    letters, digits, - and _.
    """
    if not isinstance(system, System):
        raise TypeError(f"{system!r} is no System")
    SYSTEMS.add(system.name, system)
    return system


for _system in (
    System(
        "past-future",
        "learners imitate the states to come",
        past_future_head,
        past_future_recipe,
        options=tuple(CHOICES),
        criterion="entropy",
        converter=past_future,
    ),
    System(
        "linear",
        "a classifier after every layer",
        linear_head,
        LinearModel,
        options=("pooler", "reads"),
        criterion="entropy",
    ),
    System(
        "deebert",
        "exits added to a fine-tuned model",
        {"type": "linear", "pooler": "per-layer"},
        DeeBERTModel,
        criterion="entropy",
        converter=deebert,
    ),
    System(
        "fastbert",
        "self-distillation of classifiers with attention of their own",
        {"type": "attentive", "width": 128, "heads": 2, "pooling": "first"},
        FastBERTModel,
        criterion="fastbert",
        converter=fastbert,
    ),
    System(
        "pabee",
        "patience",
        {"type": "linear", "pooler": "shared"},
        PooledModel,
        options=("pooler", "reads"),
        criterion="patience",
        converter=pabee,
    ),
    System(
        "pcee",
        "patience with confidence",
        {"type": "linear", "pooler": "shared"},
        PooledModel,
        options=("pooler", "reads"),
        criterion="pcee",
    ),
    System(
        "beem",
        "confidences of exits that agree, added up",
        {"type": "linear", "pooler": "shared"},
        BEEMModel,
        options=("pooler", "reads"),
        own=beem_options,
        criterion="beem",
    ),
    System(
        "voting",
        "exits trained to differ, which vote; experimental",
        {"type": "linear", "pooler": "shared"},
        VotingModel,
        options=("pooler", "reads"),
        own=voting_options,
        criterion="voting",
        regression=None,
    ),
    System(
        "leebert",
        "exits that learn from each other, with learned weights; experimental",
        {"type": "linear", "pooler": "shared"},
        LeeBERTModel,
        options=("pooler", "reads"),
        own=leebert_options,
        criterion="patience",
    ),
    System(
        "cosee",
        "each exit learns from the rows that would leave near it",
        {"type": "linear", "pooler": "shared"},
        COSEEModel,
        options=("pooler", "reads"),
        own=cosee_options,
        criterion="energy",
        regression=None,
        converter=cosee,
    ),
    System(
        "elbert",
        "a confidence window over one shared classifier",
        {"type": "linear", "pooler": "shared", "classifiers": "shared"},
        ELBERTModel,
        options=("pooler", "reads"),
        own=elbert_options,
        criterion="elbert",
        converter=elbert,
    ),
    System(
        "elasticbert",
        "all exits' losses, balanced on their way back",
        {"type": "linear", "pooler": "per-layer"},
        ElasticBERTModel,
        options=("pooler", "reads"),
        own=elasticbert_options,
        criterion="entropy",
        converter=elasticbert,
    ),
    System(
        "cascadebert",
        "complete models of several depths in a cascade",
        {"type": "classifier"},
        CascadeModel,
        own=cascadebert_options,
        criterion="cascadebert",
        regression=None,
        converter=cascadebert,
    ),
    System(
        "righttool",
        "calibrated classifiers at chosen layers",
        righttool_head,
        RightToolModel,
        options=("pooler",),
        criterion="confidence",
        converter=righttool,
        own=righttool_options,
    ),
    System(
        "berxit",
        "classifiers that learn when to exit",
        berxit_head,
        BERxiTModel,
        options=("pooler", "reads"),
        criterion=lambda head: "learned" if head.get("learned") else "entropy",
        regression=lambda head: "learned" if head.get("learned") else "never",
        converter=berxit,
        own=berxit_options,
    ),
    System(
        "sentee",
        "tags words, and a row leaves with all of them",
        {"type": "tagger"},
        TagModel,
        criterion="sentee-max",
    ),
    System(
        "tokee",
        "tags words, and each leaves by itself",
        tokee_head,
        TOKEEModel,
        own=tokee_options,
        criterion="tokee",
    ),
    System(
        "seqlab-early-exit",
        "the same, as its authors' code trains it",
        tokee_head,
        TOKEEModel,
        own=authors_options,
        criterion="tokee",
        converter=seqlab,
    ),
    System("full-model", "one after the last layer", {"type": "classifier"}, FullModel),
    System(
        "student",
        "the same, distilled from a full model of more layers",
        {"type": "classifier"},
        StudentModel,
        own=student_options,
    ),
):
    register(_system)
