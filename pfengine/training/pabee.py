"""PABEE and PCEE-BERT: exits trained jointly, and patience decides; the recipe is `pooled.PooledModel`."""

from __future__ import annotations

from ..convert import pabee
from .pooled import PooledModel
from .system import System

SYSTEMS = (
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
)
