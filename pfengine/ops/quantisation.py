"""int8: weights per output channel, symmetric; activations per row, over their own range."""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST = 127


def quantise_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 [out, in] and float32 scale [out], weight ~ scale * numbers; exact for a weight that was int8 before.

    weight: float [out, in].
    """
    largest = weight.abs().amax(1).float()
    scale = torch.where(largest > 0, largest / LARGEST, 1.0)
    return (weight.float() / scale[:, None]).round().clamp(-LARGEST, LARGEST).to(torch.int8), scale


def fake_quantise_rows(x: Tensor) -> Tensor:
    """x [rows, in] as 255 steps over each row's range, zero included, hold it."""
    low, high = x.amin(1, keepdim=True).clamp(max=0), x.amax(1, keepdim=True).clamp(min=0)
    scale = torch.where(high > low, (high - low) / 255, 1.0)
    zero = (-low / scale).round()
    return ((x / scale + zero).round().clamp(0, 255) - zero) * scale
