"""Training over transformers' Trainer: needs `pip install pfengine[train]`."""

from __future__ import annotations

from .attach_exits import attach
from .config import TrainingConfig
from .run import train

__all__ = ["TrainingConfig", "attach", "train"]
