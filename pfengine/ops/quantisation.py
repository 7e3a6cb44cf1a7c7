"""int8: weights per output channel, symmetric; activations per row, over their range; imitation learners in int4."""

from __future__ import annotations

import torch
from torch import Tensor

LEARNER_BITS = 4
"""Of imitation learners where all else is int8: what they say is summed over layers and states, and averages out."""


_ROWS = 128  # in between there are float32 copies of so many, not of the whole


def quantise_weight(weight: Tensor, bits: int = 8) -> tuple[Tensor, Tensor]:
    """int8 [out, in] and float32 scale [out], weight ~ scale * numbers; exact for a weight that was int8 before.

    bits: numbers are -(2^(bits - 1) - 1) to 2^(bits - 1) - 1.

    weight: float [out, in].
    """
    largest = torch.maximum(weight.amax(1), -weight.amin(1)).float()
    top = 2 ** (bits - 1) - 1
    scale = torch.where(largest > 0, largest / top, 1.0)
    numbers = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    for part, rows, steps in zip(numbers.split(_ROWS), weight.split(_ROWS), scale.split(_ROWS), strict=True):
        part.copy_((rows.float() / steps[:, None]).round_().clamp_(-top, top))
    return numbers, scale


def fake_quantise_rows(x: Tensor) -> Tensor:
    """x [rows, in] as 255 steps over each row's range, zero included, hold it."""
    low, high = x.amin(1, keepdim=True).clamp(max=0), x.amax(1, keepdim=True).clamp(min=0)
    scale = torch.where(high > low, (high - low) / 255, 1.0)
    zero = (-low / scale).round()
    return ((x / scale + zero).round().clamp(0, 255) - zero) * scale
