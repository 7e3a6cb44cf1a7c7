"""The models of a cascade, prepared: what an engine has in the place of a single `model.Model`."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from typing import Any

from .exits import Never
from .exits.selection import Selection
from .model import Model
from .tokenization import Tokenizer


@dataclass(frozen=True)
class Member:
    """One model of a cascade, what makes rows for it, and when rows leave it: by its checkpoint's own criterion.

    reading: a hash of what ids mean to it.
    """

    model: Model
    tokenizer: Tokenizer
    selection: Selection
    reading: str

    def reads_like(self, other: Member) -> bool:
        """Do both make the same row of a text that neither cuts?"""
        return self._read() == other._read()

    def _read(self) -> tuple[Any, ...]:
        own = self.tokenizer
        return self.reading, own.side, own.single_types, own.pair_types, own.config.type_vocab_size > 0

    @property
    def criterion(self) -> Any:
        return self.selection.criterion


@dataclass(frozen=True)
class Cascade:
    """Models in the order in which rows enter them. A row that one model is not sure of enters the next one.

    Layers are counted through all models: with models of 2 and 12 layers, layer 14 is the last one of the second. At
    full depth rows enter the last model only, and nothing leaves early there either.
    """

    members: tuple[Member, ...]

    @property
    def last(self) -> Model:
        """The model that takes full depth. Labels and problem type are the same for all."""
        return self.members[-1].model

    @functools.cached_property
    def ends(self) -> tuple[int, ...]:
        """The last layer of each model. The criterion between models is asked after these."""
        return tuple(itertools.accumulate(member.model.num_layers for member in self.members))

    @functools.cached_property
    def exit_layers(self) -> tuple[int, ...]:
        """The layers of all exits of all models."""
        starts = (0, *self.ends)
        return tuple(
            start + layer
            for start, member in zip(starts, self.members, strict=False)
            for layer in member.model.exit_layers
        )

    @functools.cached_property
    def takes_ids(self) -> bool:
        """Do ids mean the same to all models?"""
        return len({member.reading for member in self.members}) == 1

    def reader(self, criterion: Any) -> int:
        """The place of the model whose tokenizer reads the input first: the first one, at full depth the last."""
        return len(self.members) - 1 if isinstance(criterion, Never) else 0
