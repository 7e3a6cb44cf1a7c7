"""Training over transformers' Trainer: needs `pip install pfengine[train]`."""

from __future__ import annotations

from .attach_exits import attach
from .config import TrainingConfig
from .losses import depth_weighted, exit_loss
from .model import ExitModel
from .run import train
from .systems import SYSTEMS, Converter, System, register

__all__ = [
    "SYSTEMS", "Converter", "ExitModel", "System", "TrainingConfig", "attach", "depth_weighted", "exit_loss",
    "register", "train",
]  # fmt: skip
