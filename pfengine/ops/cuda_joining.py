"""Rows without some, and rows of two flights together: for leaving before the first layer, and for joining."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..batch import Packed


class Contents(NamedTuple):
    """All that the rows of a flight carry, packed. Tensors are on the device."""

    bounds: np.ndarray  # int32 [R + 1]
    states: Tensor  # [T, H]
    past: Tensor | None  # fp32 [R or T, W]: what the last exit left
    memory: Tensor | None  # fp32 [R or T, W]: what the exit rule carries
    slots: np.ndarray  # int64 [R]
    gone: Tensor | None = None  # bool [T]: has the word left, or is the token none? None where rows are scored
    frozen: Tensor | None = None  # uint8 [T]: is it frozen?
    sums: Tensor | None = None  # [T, H]: before the last output norm, where frozen tokens are renormalised
    pieces: np.ndarray | None = None  # int32 [T], as in `Packed`; None where rows are scored

    def with_those_of(self, other: Contents) -> Contents:
        """The rows of both, those of `other` last; nan for what only one of them has."""
        units = [len(c.slots if c.gone is None else c.states) for c in (self, other)]
        bounds = np.concatenate([self.bounds, self.bounds[-1] + other.bounds[1:]]).astype(np.int32)
        return Contents(
            bounds,
            torch.cat([self.states, other.states]),
            joined(self.past, other.past, *units),
            joined(self.memory, other.memory, *units),
            np.concatenate([self.slots, other.slots]),
            joined(self.gone, other.gone, *units),
            joined(self.frozen, other.frozen, *units),
            joined(self.sums, other.sums, *units),
            None if self.pieces is None or other.pieces is None else np.concatenate([self.pieces, other.pieces]),
        )


def without(packed: Packed, gone: np.ndarray) -> Packed:
    """The rows of a batch where `gone`, bool [R], is false."""
    lengths = np.diff(packed.cu_seqlens)
    stays = np.repeat(~gone, lengths)
    bounds = np.concatenate([[0], np.cumsum(lengths[~gone])]).astype(np.int32)
    return Packed(
        packed.ids[stays], packed.positions[stays], packed.types[stays], bounds, packed.row_ids[~gone],
        None if packed.pieces is None else packed.pieces[stays],
    )  # fmt: skip


def concatenated(one: Packed, other: Packed) -> Packed:
    """The rows of both, those of `one` first."""
    joined = [np.concatenate(parts) for parts in zip(one[:5], other[:5], strict=True)]
    bounds = np.concatenate([one.cu_seqlens, one.cu_seqlens[-1] + other.cu_seqlens[1:]]).astype(np.int32)
    pieces = None
    if one.pieces is not None or other.pieces is not None:
        pieces = np.concatenate([pieces_of(one), pieces_of(other)])
    return Packed(joined[0], joined[1], joined[2], bounds, joined[4], pieces)


def pieces_of(packed: Packed) -> np.ndarray:
    """int32 [T]: `Packed.pieces`, or those of tokens that are words of their own."""
    return np.ones(len(packed.ids), np.int32) if packed.pieces is None else packed.pieces


def joined(ours: Tensor | None, theirs: Tensor | None, rows: int, other_rows: int) -> Tensor | None:
    """Both concatenated; nan for the rows of a flight that has none."""
    some = ours if ours is not None else theirs
    if some is None:
        return None
    parts = [
        some.new_full((count, some.shape[1]), float("nan")) if part is None else part
        for part, count in ((ours, rows), (theirs, other_rows))
    ]
    return torch.cat(parts)
