"""Rows of ids whose words are marked."""

from __future__ import annotations

import numpy as np

from pfengine.rows import Row


def row_of_words(row_id: int, words: int, draw: np.random.Generator) -> Row:
    """So many words of one to three pieces, between tokens of no word: at both ends, and here and there inside."""
    pieces, gaps = draw.integers(1, 4, words), draw.integers(0, 4, words) == 0
    first = np.cumsum(pieces + gaps) - pieces + 1
    ids = draw.integers(2, 90, int(first[-1] + pieces[-1] + 1))
    return Row(row_id, ids, None, False, first_pieces=first.astype(np.int32), pieces=pieces.astype(np.int32))
