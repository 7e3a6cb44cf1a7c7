"""Exit heads: what turns the states so far into logits at each layer. A new head = one file and one line here."""

from __future__ import annotations

from .base import ExitHead, HeadState
from .classifier import Classifier
from .past_future import PastFuture

HEADS: dict[str, type[ExitHead]] = {"classifier": Classifier, "past-future": PastFuture}

__all__ = ["HEADS", "Classifier", "ExitHead", "HeadState", "PastFuture"]
