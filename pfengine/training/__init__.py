"""Training over transformers' Trainer: needs `pip install pfengine[train]`."""

from __future__ import annotations

from .attach_exits import attach
from .config import TrainingConfig
from .losses import depth_weighted, exit_loss
from .model import ExitModel
from .phases import HeldOut, Phase, trains_exits
from .run import train
from .systems import SYSTEMS, Converter, System, register
from .tuning import tune

__all__ = [
    "SYSTEMS", "Converter", "ExitModel", "HeldOut", "Phase", "System", "TrainingConfig", "attach", "depth_weighted",
    "exit_loss", "register", "train", "trains_exits", "tune",
]  # fmt: skip
