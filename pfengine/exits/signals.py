"""Signals as criteria called by themselves and calibration read them."""

from __future__ import annotations

from torch import Tensor

from .. import extension
from ..ops import decide
from ..ops.rule import Signal


def signal(name: Signal, logits: Tensor, temperature: float = 1.0) -> Tensor:
    """As `ops.decide.signal`: [..., C] -> float32 [...]; on the CPU the same bits as `_C` computes, where it has it."""
    if logits.is_cpu and extension.has_cpu():
        return extension.signal(name, logits, temperature)
    return decide.signal(name, logits, temperature)
