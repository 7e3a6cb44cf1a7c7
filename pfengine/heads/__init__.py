"""Exit heads: what turns the states so far into logits at each layer. A new head = one file and one line here."""

from __future__ import annotations

from .base import PREFIX, ExitHead, HeadState
from .classifier import Classifier
from .linear import Linear
from .past_future import PastFuture

HEADS: dict[str, type[ExitHead]] = {"classifier": Classifier, "linear": Linear, "past-future": PastFuture}

__all__ = ["HEADS", "PREFIX", "Classifier", "ExitHead", "HeadState", "Linear", "PastFuture"]
