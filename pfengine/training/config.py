"""What a training run is told."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..config import STORAGES
from ..errors import ConfigError

SYSTEMS = ("past-future",)


@dataclass(frozen=True)
class TrainingConfig:
    """Options of `pfengine train`.

    model: pretrained encoder, a local directory in Hugging Face layout. data: directory with a `train` split, or a
    file. output: where the checkpoint goes. labels: label names in id order; default: those in the data, sorted.
    hold_out: rows of the training data that are not trained on; thresholds are calibrated on them.
    """

    model: str
    data: str
    output: str
    system: str = "past-future"
    labels: tuple[str, ...] | None = None
    epochs: float = 3.0
    batch_size: int = 32
    learning_rate: float = 5e-5
    weight_decay: float = 0.0
    warmup: float = 0.06  # share of the steps over which the learning rate rises; it then falls linearly to 0
    max_length: int = 128
    dropout: float = 0.1  # of the states in front of the head's projections
    precision: str = "bf16"  # "fp32" or "bf16" (autocast; weights stay fp32)
    seed: int = 0
    hold_out: int = 1000
    max_rows: int | None = None
    speedup: float = 2.0  # layer speed-up the checkpoint runs at unless told otherwise: sets its threshold
    storage: str = "float"  # how the checkpoint is stored: "float" or "int8-rows"

    def __post_init__(self) -> None:
        faults = []
        for name in ("epochs", "batch_size", "learning_rate", "max_length", "hold_out", "speedup"):
            if not getattr(self, name) > 0:
                faults.append(f"{name} is {getattr(self, name)!r}; it must be > 0")
        for name, known in (("system", SYSTEMS), ("precision", ("fp32", "bf16")), ("storage", STORAGES)):
            if getattr(self, name) not in known:
                faults.append(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(known)}")
        for name in ("warmup", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                faults.append(f"{name} is {getattr(self, name)!r}; it must be in [0, 1)")
        if faults:
            raise ConfigError("; ".join(faults))

    def record(self) -> dict[str, Any]:
        """For pfengine.json: everything but the paths of this run, which mean nothing elsewhere."""
        record = {key: value for key, value in asdict(self).items() if key not in ("output", "labels", "storage")}
        return record | {"model": Path(self.model).name, "data": Path(self.data).name}
