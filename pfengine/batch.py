"""Ragged batches: rows of token ids of different length, packed end to end without padding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .surroundings import undisturbed


class Packed(NamedTuple):
    """Token ids of R rows, T tokens in all."""

    ids: np.ndarray  # int64 [T]
    positions: np.ndarray  # int64 [T]
    types: np.ndarray  # int64 [T]
    cu_seqlens: np.ndarray  # int32 [R + 1]: row r is tokens cu_seqlens[r] to cu_seqlens[r + 1]
    row_ids: np.ndarray  # int64 [R]: the row's number in the caller's input

    @undisturbed()
    def to(self, device: torch.device | str = "cpu") -> RaggedInputs:
        return RaggedInputs(*(torch.from_numpy(array).to(device) for array in self))


@dataclass(frozen=True)
class RaggedInputs:
    """`Packed` as tensors on a device, for `encoder.embed`."""

    ids: Tensor
    positions: Tensor
    types: Tensor
    cu_seqlens: Tensor
    row_ids: Tensor

    def __len__(self) -> int:
        return self.row_ids.shape[0]
