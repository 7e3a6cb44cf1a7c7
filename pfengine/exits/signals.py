"""Signals, for criteria that are called by hand and for calibration."""

from __future__ import annotations

from torch import Tensor

from .. import extension
from ..ops import decide
from ..ops.rule import Signal


def signal(name: Signal, logits: Tensor, temperature: float = 1.0) -> Tensor:
    """`ops.decide.signal`: [..., C] -> float32 [...]; on the CPU with the bits of `_C`, where there is one."""
    if logits.is_cpu and extension.has_cpu():
        return extension.signal(name, logits, temperature)
    return decide.signal(name, logits, temperature)
