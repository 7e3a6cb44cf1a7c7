"""RaggedBatch: rows of different length packed end to end, and the compaction that moves survivors together."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from . import extension
from .surroundings import undisturbed


@functools.lru_cache(maxsize=1024)
def _count(numbers: int, device: torch.device) -> Tensor:
    """int32 0, 1, 2...; asked for after every layer."""
    with torch.inference_mode(False):
        return torch.arange(numbers, dtype=torch.int32, device=device)


class Packed(NamedTuple):
    """Token ids of R rows, T tokens in all, packed without padding."""

    ids: np.ndarray  # int64 [T]
    positions: np.ndarray  # int64 [T]
    types: np.ndarray  # int64 [T]
    cu_seqlens: np.ndarray  # int32 [R + 1]: row r is tokens cu_seqlens[r] to cu_seqlens[r + 1]
    row_ids: np.ndarray  # int64 [R]: which row of the caller's input each row is

    @undisturbed()
    def to(self, device: torch.device | str = "cpu") -> RaggedInputs:
        return RaggedInputs(*(torch.from_numpy(array).to(device) for array in self))


@dataclass(frozen=True)
class RaggedInputs:
    """`Packed` as tensors, on a device; what `encoder.embed` takes."""

    ids: Tensor
    positions: Tensor
    types: Tensor
    cu_seqlens: Tensor
    row_ids: Tensor

    def __len__(self) -> int:
        return self.row_ids.shape[0]


@dataclass(frozen=True)
class RaggedBatch:
    """Hidden states of R rows, T tokens in all."""

    tokens: Tensor  # [T, H]
    cu_seqlens: Tensor  # int32 [R + 1]
    row_ids: Tensor  # int64 [R]

    def __len__(self) -> int:
        return self.row_ids.shape[0]

    def first(self) -> Tensor:
        """Each row's first token: [R, H]."""
        if self.tokens.shape[0] == self.row_ids.shape[0]:  # one token a row is left
            return self.tokens
        return self.tokens.index_select(0, self.cu_seqlens[:-1])

    def with_tokens(self, tokens: Tensor) -> RaggedBatch:
        return RaggedBatch(tokens, self.cu_seqlens, self.row_ids)

    def firsts(self, tokens: Tensor) -> RaggedBatch:
        """The same rows with one token each, [R, H]."""
        return RaggedBatch(tokens, _count(self.row_ids.shape[0] + 1, self.cu_seqlens.device), self.row_ids)

    def take(self, stay: Tensor) -> RaggedBatch:
        """The rows where `stay` (bool [R]) is true, in the same order, moved together."""
        if self.tokens.is_cuda and extension.has_cuda():
            return RaggedBatch(*extension.compact_cuda(self.tokens, self.cu_seqlens, self.row_ids, stay))
        if not self.tokens.is_cuda and extension.has_cpu():
            return RaggedBatch(*extension.compact(self.tokens, self.cu_seqlens, self.row_ids, stay))
        return RaggedBatch(*compact(self.tokens, self.cu_seqlens, stay), self.row_ids[stay])


def compact(tokens: Tensor, cu_seqlens: Tensor, stay: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens and cu_seqlens of the rows where `stay` (bool [R]) is true, moved together, in plain torch."""
    lengths = cu_seqlens.diff()
    kept = lengths[stay]
    bounds = torch.zeros(kept.shape[0] + 1, dtype=torch.int32, device=kept.device)
    torch.cumsum(kept, 0, dtype=torch.int32, out=bounds[1:])
    return tokens[stay.repeat_interleave(lengths)], bounds
