"""Reading rows lazily: tokenised windows of a few token budgets, however long the input is."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator
from typing import Any

from .errors import InputError
from .rows import Row, size
from .tokenization import Tokenizer

WINDOW_BATCHES = 4  # token budgets read ahead, so that rows of like length share a batch
BLOCK_ROWS, BLOCK_CHARACTERS = 256, 1 << 20  # most that is tokenised in one go


def read_windows(
    tokenizer: Tokenizer, inputs: Iterator[Any], truncation: str, batch_tokens: int
) -> Iterator[list[Row | InputError]]:
    """Consecutive rows in order, a bad one as its error; about WINDOW_BATCHES x batch_tokens tokens a window.

    Rows that were truncated are counted in one warning at the end, or are bad rows where `truncation` is "error".
    """
    rows = enumerate(inputs)
    limit = tokenizer.max_length
    truncated = seen = tokens = 0
    window: list[Row | InputError] = []
    try:
        while block := _block(rows, limit, WINDOW_BATCHES * batch_tokens):
            for row in tokenizer.encode(block):
                seen += 1
                if isinstance(row, Row) and row.truncated and truncation == "error":
                    row = InputError(
                        row.row_id, f"has more than {limit} tokens; shorten it, or use truncation='truncate'"
                    )
                if isinstance(row, Row):
                    truncated += row.truncated
                    tokens += len(row.ids)
                window.append(row)
            if tokens >= WINDOW_BATCHES * batch_tokens or len(window) >= batch_tokens:
                yield window
                window, tokens = [], 0
        if window:
            yield window
    finally:
        if truncated:
            warnings.warn(f"{truncated} of {seen} rows had more than {limit} tokens and were truncated", stacklevel=2)


def _block(rows: Iterator[tuple[int, Any]], max_length: int, most: int) -> list[tuple[int, Any]]:
    """The next rows to tokenise together, until they may have `most` tokens: a character is at most about one."""
    block = []
    tokens = characters = 0
    for row_id, row in itertools.islice(rows, BLOCK_ROWS):
        block.append((row_id, row))
        length = size(row)
        tokens, characters = tokens + min(max_length, length), characters + length
        if tokens >= most or characters > BLOCK_CHARACTERS:
            break
    return block
