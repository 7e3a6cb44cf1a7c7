"""Attention heads padded with zeros to sizes that an op set's kernels take (`OpSet.HEAD_ALIGNMENT`)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def pad_outputs(weight: Tensor, bias: Tensor, heads: int, alignment: int) -> tuple[Tensor, Tensor]:
    """Weight [heads d, in] and bias [heads d] of a projection to heads, d padded to a multiple of `alignment`."""
    pad = -(len(bias) // heads) % alignment
    return (
        F.pad(weight.unflatten(0, (heads, -1)), (0, 0, 0, pad)).flatten(0, 1),
        F.pad(bias.unflatten(0, (heads, -1)), (0, pad)).flatten(),
    )


def pad_inputs(weight: Tensor, heads: int, alignment: int) -> Tensor:
    """Weight [out, heads d] of a projection from heads, d padded to a multiple of `alignment`."""
    pad = -(weight.shape[1] // heads) % alignment
    return F.pad(weight.unflatten(1, (heads, -1)), (0, pad)).flatten(1)
