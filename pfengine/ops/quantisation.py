"""int8: weights are symmetric per output channel, activations use their range per row.

On a CPU imitation learners are int4. On a GPU only the large products of a layer are in int8 (`ops.cuda_linear`).
"""

from __future__ import annotations

import torch
from torch import Tensor

LEARNER_BITS = 4
"""Bits of imitation learners where all else is int8. Their outputs are summed over layers, so rounding averages out."""


_ROWS = 128  # quantised at once, so that there is no float32 copy of the whole weight


def quantise_weight(weight: Tensor, bits: int = 8) -> tuple[Tensor, Tensor]:
    """float [out, in] to int8 [out, in] and float32 scale [out], such that weight ~ scale * numbers.

    bits: numbers are -(2^(bits - 1) - 1) to 2^(bits - 1) - 1. Exact for a weight that was quantised before.
    """
    largest = torch.maximum(weight.amax(1), -weight.amin(1)).float()
    top = 2 ** (bits - 1) - 1
    scale = torch.where(largest > 0, largest / top, 1.0)
    numbers = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    for part, rows, steps in zip(numbers.split(_ROWS), weight.split(_ROWS), scale.split(_ROWS), strict=True):
        part.copy_((rows.float() / steps[:, None]).round_().clamp_(-top, top))
    return numbers, scale


def fake_quantise_rows(x: Tensor) -> Tensor:
    """x [rows, in] rounded to 255 steps over each row's range, zero included."""
    low, high = x.amin(1, keepdim=True).clamp(max=0), x.amax(1, keepdim=True).clamp(min=0)
    scale = torch.where(high > low, (high - low) / 255, 1.0)
    zero = (-low / scale).round()
    return ((x / scale + zero).round().clamp(0, 255) - zero) * scale
