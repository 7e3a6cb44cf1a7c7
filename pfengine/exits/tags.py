"""Criteria for heads that score words, by their first pieces (Li et al., ACL 2021). Uncertainty is u = H(p) / ln C.

Where a row of ids marks no words, every token is one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import ConfigError
from ..ops.rule import Clause, TokenRule
from .base import register
from .data import Binding, DataCriterion, Numbers

Clauses = tuple[Clause, ...]


@dataclass(frozen=True)
class _Tags(DataCriterion):
    tags = True
    threshold: Numbers


@register
@dataclass(frozen=True)
class SENTEEMax(_Tags):
    """SENTEE: a row leaves where the largest u of its words is < threshold."""

    name = "sentee-max"

    def clauses(self, at: Binding) -> Clauses:
        return (Clause("normalised_entropy", "<", at.threshold),)

    def tokens(self) -> TokenRule:
        return TokenRule("row", pool="max")


@register
@dataclass(frozen=True)
class SENTEEAverage(_Tags):
    """SENTEE: a row leaves where the mean u of its words is < threshold."""

    name = "sentee-avg"

    def clauses(self, at: Binding) -> Clauses:
        return (Clause("normalised_entropy", "<", at.threshold),)

    def tokens(self) -> TokenRule:
        return TokenRule("row", pool="mean")


@register
@dataclass(frozen=True)
class Token(_Tags):
    """A word leaves where its own u is < threshold. It is updated like all others for as long as its row goes on."""

    name = "token"

    def clauses(self, at: Binding) -> Clauses:
        return (Clause("normalised_entropy", "<", at.threshold),)

    def tokens(self) -> TokenRule:
        return TokenRule("token")


@dataclass(frozen=True)
class _Windowed(_Tags):
    """In the upper half of the layers the threshold is doubled, as in the authors' code."""

    size: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size % 2 == 0:
            raise ConfigError(f"the size of {self.name} is {self.size}; it must be odd, with the word in the middle")

    def clauses(self, at: Binding) -> Clauses:
        upper = at.layers > at.num_layers // 2
        return (Clause("normalised_entropy", "<", at.threshold * np.where(upper, np.float32(2), np.float32(1))),)


@register
@dataclass(frozen=True)
class TOKEEWindow(_Windowed):
    """A word leaves where the largest u in the window of `size` words around it is < threshold; none is frozen."""

    name = "tokee-window"

    def tokens(self) -> TokenRule:
        return TokenRule("token", window=self.size)


@register
@dataclass(frozen=True)
class TOKEE(_Windowed):
    """The published TOKEE: `TOKEEWindow`, and the pieces of a word that has left are frozen."""

    name = "tokee"

    def tokens(self) -> TokenRule:
        return TokenRule("token", window=self.size, freezes=True)
