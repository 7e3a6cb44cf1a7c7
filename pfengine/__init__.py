"""pfengine: BERT-family classifiers made fast by letting easy texts leave the network early."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import exits
from .api import Engine, Predictions, load
from .convert import convert
from .errors import CheckpointError, ConfigError, InputError, InputTypeError, PFEngineError, TrainingError

if TYPE_CHECKING:
    from .evaluation import calibrate, evaluate
    from .training import TrainingConfig, attach, train

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "ConfigError",
    "Engine",
    "InputError",
    "InputTypeError",
    "PFEngineError",
    "Predictions",
    "TrainingConfig",
    "TrainingError",
    "attach",
    "calibrate",
    "convert",
    "evaluate",
    "exits",
    "load",
    "train",
]

_LAZY = {
    "attach": "training",
    "TrainingConfig": "training",
    "train": "training",
    "calibrate": "evaluation",
    "evaluate": "evaluation",
}


def __getattr__(name: str) -> Any:
    """What inference does not need is imported when it is first asked for."""
    if name not in _LAZY:
        raise AttributeError(f"module 'pfengine' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_LAZY[name]}", __name__), name)
