"""Criteria: they turn signals into leave or stay. A new one is a class of about ten lines with `@register`."""

from __future__ import annotations

from ..ops.rule import Clause, TokenRule
from .base import CRITERIA, Criterion, Outputs, register
from .criteria import (
    BEEM,
    ELBERT,
    PCEE,
    CascadeBERT,
    Confidence,
    ELBERTRange,
    ELBERTTrend,
    Energy,
    Entropy,
    FastBERT,
    Learned,
    Margin,
    NormalisedEntropy,
    Patience,
    Voting,
)
from .data import Binding, DataCriterion, Numbers
from .fixed import Never, Replay
from .tags import TOKEE, SENTEEAverage, SENTEEMax, TOKEEWindow, Token
from .text import parse

__all__ = [
    "BEEM",
    "CRITERIA",
    "ELBERT",
    "PCEE",
    "TOKEE",
    "Binding",
    "CascadeBERT",
    "Clause",
    "Confidence",
    "Criterion",
    "DataCriterion",
    "ELBERTRange",
    "ELBERTTrend",
    "Energy",
    "Entropy",
    "FastBERT",
    "Learned",
    "Margin",
    "Never",
    "NormalisedEntropy",
    "Numbers",
    "Outputs",
    "Patience",
    "Replay",
    "SENTEEAverage",
    "SENTEEMax",
    "TOKEEWindow",
    "Token",
    "TokenRule",
    "Voting",
    "parse",
    "register",
]
