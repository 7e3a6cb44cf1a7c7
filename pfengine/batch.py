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
    # Read by heads that score tokens. int32 [T]: how many pieces the word has that begins with this token, 0 where no
    # word begins. A row has a word at least. None: every token is a word of one piece.
    pieces: np.ndarray | None = None

    @isolated()
    def to(self, device: torch.device | str = "cpu") -> RaggedInputs:
        return RaggedInputs(*(torch.from_numpy(array).to(device) for array in self[:5]))

    def words(self) -> Words:
        """Its words. Raises ValueError where `pieces` says what cannot be."""
        bounds, tokens = self.cu_seqlens, len(self.ids)
        if self.pieces is None:
            return Words(np.arange(tokens), np.ones(tokens, np.int64), bounds)
        if self.pieces.shape != (tokens,):
            raise ValueError(f"pieces has shape {list(self.pieces.shape)}, expected [{tokens}], one per token")
        first = self.pieces.nonzero()[0]
        pieces, word_bounds = self.pieces[first].astype(np.int64), np.searchsorted(first, bounds).astype(np.int32)
        if (np.diff(word_bounds) < 1).any():
            raise ValueError(f"row {int((np.diff(word_bounds) < 1).argmax())} has no word")
        ends = bounds[np.searchsorted(bounds, first, "right")]
        wrong = (pieces < 1) | (first + pieces > np.minimum(np.append(first[1:], tokens), ends))
        if wrong.any():
            word = int(wrong.argmax())
            raise ValueError(
                f"word {word} has {pieces[word]} pieces, of which some are not its row's or the next word's"
            )
        return Words(first, pieces, word_bounds)


class Words(NamedTuple):
    """The words of R rows, W in all."""

    first: np.ndarray  # int64 [W], rising: the token that is the word's first piece
    pieces: np.ndarray  # int64 [W]: how many pieces it has
    bounds: np.ndarray  # int32 [R + 1]: row r has words bounds[r] to bounds[r + 1]


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
    On a CPU by `_C` where it is there, otherwise by torch; the results are the same.
    """
    if tokens.is_cpu and extension.has_cpu():
        return extension.compact(tokens, cu_seqlens, row_ids, stay)
    lengths = cu_seqlens.diff()
    kept = lengths[stay]
    bounds = torch.zeros(len(kept) + 1, dtype=torch.int32, device=kept.device)
    torch.cumsum(kept, 0, dtype=torch.int32, out=bounds[1:])
    return tokens[stay.repeat_interleave(lengths)], bounds, row_ids[stay]
