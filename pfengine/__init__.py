"""pfengine: BERT-family classifiers made fast by letting easy texts leave the network early."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ._version import __version__ as __version__
from .errors import CheckpointError, ConfigError, InputError, InputTypeError, PFEngineError, TrainingError

if TYPE_CHECKING:
    from . import exits
    from .api import Engine, Predictions, load
    from .cascade_saving import cascade
    from .comparison import compare
    from .convert.run import convert
    from .evaluation import calibrate, calibrate_ranking, evaluate
    from .pipeline import pipeline
    from .training import TrainingConfig, attach, train, tune

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
    "calibrate_ranking",
    "cascade",
    "compare",
    "convert",
    "evaluate",
    "exits",
    "load",
    "pipeline",
    "train",
    "tune",
]

_LAZY = {  # name -> module
    "load": "api",
    "Engine": "api",
    "Predictions": "api",
    "cascade": "cascade_saving",
    "attach": "training",
    "TrainingConfig": "training",
    "train": "training",
    "tune": "training",
    "calibrate": "evaluation",
    "calibrate_ranking": "evaluation",
    "evaluate": "evaluation",
    "compare": "comparison",
}


def __getattr__(name: str) -> Any:
    """Everything but the errors is imported when it is first asked for: torch alone takes a second."""
    from importlib import import_module

    if name in _LAZY:
        return getattr(import_module(f".{_LAZY[name]}", __name__), name)
    if not name.startswith("_"):
        try:
            return import_module(f".{name}", __name__)
        except ModuleNotFoundError as error:
            if error.name != f"{__name__}.{name}":
                raise
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _function(name: str, module: str) -> property:
    """A function of the name of a module, which the import system would put in its place."""

    def get(package: ModuleType) -> Any:
        from importlib import import_module

        return getattr(import_module(f".{module}", __name__), name)

    return property(get, lambda package, imported: None)


class _Package(ModuleType):
    """These are functions, though modules of their names are imported."""

    convert = _function("convert", "convert.run")
    pipeline = _function("pipeline", "pipeline")


sys.modules[__name__].__class__ = _Package
