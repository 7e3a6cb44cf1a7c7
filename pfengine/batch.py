"""Ragged batches: rows of token ids of different length, packed end to end without padding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from . import extension
from .torch_state import isolated


class Packed(NamedTuple):
    """Token ids of R rows, T tokens in all."""

    ids: np.ndarray  # int64 [T]
    positions: np.ndarray  # int64 [T]
    types: np.ndarray  # int64 [T]
    cu_seqlens: np.ndarray  # int32 [R + 1]: row r is tokens cu_seqlens[r] to cu_seqlens[r + 1]
    row_ids: np.ndarray  # int64 [R]: the row's number in the caller's input

    @isolated()
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


def compacted(tokens: Tensor, cu_seqlens: Tensor, row_ids: Tensor, stay: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The rows of a ragged batch where `stay`, bool [R], is true, in the same order, moved together.

    tokens: [T, ...]; cu_seqlens: int32 [R + 1], row r is tokens cu_seqlens[r] to cu_seqlens[r + 1]; row_ids: int64 [R].
    By `_C` where it is there, otherwise by torch; the results are the same.
    """
    if tokens.is_cuda and extension.has_cuda():
        return extension.compact_cuda(tokens, cu_seqlens, row_ids, stay)
    if tokens.is_cpu and extension.has_cpu():
        return extension.compact(tokens, cu_seqlens, row_ids, stay)
    lengths = cu_seqlens.diff()
    kept = lengths[stay]
    bounds = torch.zeros(len(kept) + 1, dtype=torch.int32, device=kept.device)
    torch.cumsum(kept, 0, dtype=torch.int32, out=bounds[1:])
    return tokens[stay.repeat_interleave(lengths)], bounds, row_ids[stay]
