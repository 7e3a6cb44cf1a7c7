"""Exit heads: they turn the states so far into logits after each layer. A new one is a class with `@register`."""

from __future__ import annotations

from .attached import Attached
from .attentive import Attentive
from .base import HEADS, PREFIX, ExitHead, HeadState, OwnTensors, Scores, register
from .classifier import Classifier
from .linear import Linear
from .mixed import Mixed
from .past_future import PastFuture
from .prepared import PreparedHead
from .tagger import Tagger, TokenClassifier

__all__ = [
    "HEADS", "PREFIX", "Attached", "Attentive", "Classifier", "ExitHead", "HeadState", "Linear", "Mixed", "OwnTensors",
    "PastFuture", "PreparedHead", "Scores", "Tagger", "TokenClassifier", "register",
]  # fmt: skip
