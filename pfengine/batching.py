"""Rows of token ids to ragged batches within a token budget, by length."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from .batch import Packed
from .config import BackboneConfig
from .rows import Row


def pack(rows: Sequence[Row], config: BackboneConfig) -> Packed:
    """Rows end to end, as they come."""
    if len(rows) == 1 and not config.family.positions_after_pad:  # the same in a third of the time
        (row,), tokens = rows, len(rows[0].ids)
        types = np.zeros(tokens, np.int64) if row.types is None else row.types
        bounds = np.array([0, tokens], np.int32)
        pieces = None if row.first_pieces is None else _pieces(row)
        return Packed(row.ids, np.arange(tokens), types, bounds, np.array([row.row_id], np.int64), pieces)
    lengths = [len(row.ids) for row in rows]
    cu_seqlens = np.array([0, *itertools.accumulate(lengths)], dtype=np.int32)
    ids = np.concatenate([row.ids for row in rows]) if rows else np.empty(0, dtype=np.int64)
    types = np.zeros(len(ids), dtype=np.int64)
    if any(row.types is not None for row in rows):
        given = zip([row.types for row in rows], lengths, strict=True)
        types = np.concatenate([np.zeros(length, np.int64) if part is None else part for part, length in given])
    if config.family.positions_after_pad:  # padding ids inside a row keep the padding position, as in transformers
        pad = config.pad_token_id
        starts = np.repeat(cu_seqlens[:-1], lengths)
        seen = np.concatenate([[0], np.cumsum(ids != pad)])
        positions = np.where(ids != pad, pad + seen[1:] - seen[starts], pad)
    else:
        positions = np.arange(len(ids)) - np.repeat(cu_seqlens[:-1], lengths)
    row_ids = np.array([row.row_id for row in rows], dtype=np.int64)
    pieces = None
    if any(row.first_pieces is not None for row in rows):
        pieces = np.concatenate([_pieces(row) for row in rows])
    return Packed(ids, positions, types, cu_seqlens, row_ids, pieces)


def _pieces(row: Row) -> np.ndarray:
    """The row's part of `Packed.pieces`."""
    if row.first_pieces is None or row.pieces is None:
        return np.ones(len(row.ids), np.int32)
    pieces = np.zeros(len(row.ids), np.int32)
    pieces[row.first_pieces] = row.pieces
    return pieces


def batches(rows: Sequence[Row], batch_tokens: int, batch_size: int | None = None) -> Iterator[list[Row]]:
    """Rows sorted by length, cut into batches of at most `batch_tokens` tokens and `batch_size` rows.

    A row longer than the budget is a batch of its own.
    """
    lengths = [len(row.ids) for row in rows]
    order = sorted(range(len(rows)), key=lengths.__getitem__)
    first = tokens = 0
    for i, place in enumerate(order):
        tokens += lengths[place]
        if i > first and (tokens > batch_tokens or i - first == batch_size):
            yield [rows[at] for at in order[first:i]]
            first, tokens = i, lengths[place]
    if rows:
        yield [rows[at] for at in order[first:]]
