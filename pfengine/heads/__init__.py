"""Exit heads: they turn the states so far into logits after each layer. A new head is one file and one line here."""

from __future__ import annotations

from .attached import Attached
from .base import PREFIX, ExitHead, HeadState, Scores
from .classifier import Classifier
from .linear import Linear
from .past_future import PastFuture
from .tagger import Tagger

HEADS: dict[str, type[ExitHead]] = {
    "attached": Attached,
    "classifier": Classifier,
    "linear": Linear,
    "past-future": PastFuture,
    "tagger": Tagger,
}

__all__ = [
    "HEADS", "PREFIX", "Attached", "Classifier", "ExitHead", "HeadState", "Linear", "PastFuture", "Scores", "Tagger",
]  # fmt: skip
