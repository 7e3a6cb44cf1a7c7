"""What a system is: a choice of exit head, criterion and recipe."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from ..convert.source import Cascaded, Converted
from ..errors import ConfigError
from ..heads import HEADS
from ..heads.past_future import CHOICES
from ..registry import origin
from .model import ExitModel
from .options import Option, given

HeadOf = Callable[[Mapping[str, Any], bool], dict[str, Any]]
_OPTION = re.compile(r"[a-z][a-z0-9_]*")
TAKEN = (*CHOICES, "form")
"""Options that a run is told only where its system takes them: those of heads, and the form of head and loss."""

FALLBACKS: Mapping[str, Any] = {"epochs": 3.0, "learning_rate": 5e-5, "averaging": 0.0}
"""Options of a run whose defaults a system may have of its own, and what they are where it has none."""


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
    options: those of `TAKEN` that it takes, such as "pooler". A run that is told another is refused.
    own: options that it declares itself, by name: `{"depth": Option("Layers of ...", COUNT, default=2)}`. A run gives
    them as `TrainingConfig(..., options={"depth": 3})` or `--depth 3`; the head function and the recipe find them among
    all options of the run.
    criterion, regression: the text that is written to checkpoints with labels, and to those for regression; None where
    the recipe cannot learn scores. Either may be a function of the `head` object.
    converter: None where no checkpoints of others are read.
    defaults: what runs of this system have in the place of `FALLBACKS`, where they are not told.
    label_sets: can the recipe learn labels that are given or not each by itself, as `losses.row_losses` takes them?

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
    defaults: Mapping[str, Any] = field(default_factory=dict)
    label_sets: bool = False

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
        if unknown := [option for option in self.options if option not in TAKEN]:
            raise ValueError(f"{which} takes {unknown[0]!r}, which is no option; there are {', '.join(TAKEN)}")
        if unknown := [name for name in self.defaults if name not in FALLBACKS]:
            raise ValueError(f"{which} has a default {unknown[0]!r}; it may have its own for {', '.join(FALLBACKS)}")
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
        chosen = given(options, *TAKEN)
        takes = f"it takes {', '.join(self.options)}" if self.options else "it takes none of that kind"
        faults = [
            f"{name} is {value!r}, an option that system {self.name!r} does not take; {takes}"
            for name, value in chosen.items()
            if name not in self.options
        ]
        if not faults:
            head = {**self.head, **chosen} if isinstance(self.head, Mapping) else self.head(options, shared_pooler)
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
