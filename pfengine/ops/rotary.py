"""Rotary positions: queries and keys are turned by angles that grow with a token's position in its row.

Su et al., RoFormer (2021), section 3.2.2, with the halves of a head paired as GPT-NeoX and transformers pair them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Rotary(NamedTuple):
    """The angles of each position, for heads of d numbers. A row has at most P tokens.

    Numbers j and j + d / 2 of a head are turned by the angle of j. Zeros that pad a head come after its d numbers.
    """

    angles: Tensor  # float32 [P, d]: the cosines of d / 2 angles, then their sines


def angles(base: float, head_size: int, positions: int) -> Rotary:
    """The angle of number j < d / 2 at position p is p / base^(2 j / d)."""
    exponents = torch.arange(0, head_size, 2, dtype=torch.float32, device="cpu") / head_size
    at = torch.arange(positions, dtype=torch.float32, device="cpu")
    turns = at[:, None] * (1.0 / base**exponents)
    return Rotary(torch.cat([turns.cos(), turns.sin()], 1))


def turned(x: Tensor, positions: Tensor, rotary: Rotary) -> Tensor:
    """Heads of tokens at `positions`, int64 [T]: [T, ..., d] -> the same, computed in float32."""
    half = rotary.angles.shape[1] // 2
    shape = (len(x), *[1] * (x.dim() - 2), half)
    cosine, sine = (part.reshape(shape) for part in rotary.angles[positions].chunk(2, 1))
    low, high = x[..., :half].float(), x[..., half : 2 * half].float()
    out = torch.cat([low * cosine - high * sine, high * cosine + low * sine], -1).to(x.dtype)
    return out if x.shape[-1] == 2 * half else torch.cat([out, x[..., 2 * half :]], -1)


def positions_of(cu_seqlens: Tensor, tokens: int) -> Tensor:
    """The position of each token in its row, int64 [T]."""
    starts = torch.repeat_interleave(cu_seqlens[:-1].long(), cu_seqlens.diff())
    return torch.arange(tokens, dtype=torch.int64, device=cu_seqlens.device) - starts
