"""Reading rows lazily, however long the input is: tokenised windows of a few token budgets."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from .errors import InputError
from .messages import warn
from .row_thread import RowThread
from .rows import Row, is_single, size
from .tokenization import Tokenizer

WINDOW_BATCHES = 4  # token budgets read ahead, so that rows of similar length share a batch
BLOCK_ROWS, BLOCK_CHARACTERS = 256, 1 << 20  # at most so much is tokenised at once
_ALL_THERE: tuple[type, ...] = type(iter([])), type(iter(()))  # iterators that are never waited for
MAX_WAIT_SECONDS = 0.1  # that a window waits for its rows, where answers are wanted as rows arrive


def are_one_batch(inputs: Any, batch_tokens: int, batch_size: int | None) -> bool:
    """Are the inputs plainly no more than one batch? Where that would take long to tell, they are not."""
    if is_single(inputs):
        return True
    if not isinstance(inputs, (list, tuple)):
        return False
    if batch_size is not None:
        return len(inputs) <= batch_size
    return len(inputs) <= 1 or (len(inputs) <= BLOCK_ROWS and sum(map(size, inputs)) <= batch_tokens)


def read_windows(
    tokenizer: Tokenizer,
    inputs: Iterator[Any],
    truncation: str,
    batch_tokens: int,
    flush_when_slow: bool = False,
    window_rows: int | None = None,
) -> Iterator[list[Row | InputError]]:
    """Consecutive rows in order, a bad row as its error; about WINDOW_BATCHES x batch_tokens tokens per window.

    flush_when_slow: a window also ends once it has waited for its rows for MAX_WAIT_SECONDS. An empty window follows
    it, so that what is under way is answered before the next wait.
    window_rows: a window also ends after so many rows, before the next one is asked for.

    One warning at the end counts the rows that were truncated. Where `truncation` is "error", such rows are bad rows
    instead. An exception of `inputs` is raised after the window of the rows before it.
    """
    limit, most = tokenizer.max_length, WINDOW_BATCHES * batch_tokens
    source = _Source(inputs, flush_when_slow)
    truncated = seen = tokens = 0
    window: list[Row | InputError] = []
    try:
        while block := source.block(limit, most, BLOCK_ROWS if window_rows is None else window_rows - len(window)):
            for row in tokenizer.encode(block):
                seen += 1
                if type(row) is Row:
                    if not row.truncated:
                        tokens += len(row.ids)
                    elif truncation == "error":
                        row = InputError(row.row_id, f"has more than {limit} tokens; shorten it, or truncate it")
                    else:
                        truncated, tokens = truncated + 1, tokens + len(row.ids)
                window.append(row)
            if tokens >= most or len(window) >= batch_tokens or len(window) == window_rows or source.is_late():
                yield window
                window, tokens = [], 0
                if source.is_late():
                    yield []
                source.waited = 0.0
        if window:
            yield window
        if source.failure is not None:
            raise source.failure
    finally:
        if truncated:
            warn(f"{truncated} of {seen} rows had more than {limit} tokens and were truncated")


class _Source:
    """Numbered rows in blocks, and how long the present window has waited for them."""

    def __init__(self, inputs: Iterator[Any], flush_when_slow: bool) -> None:
        self.flush_when_slow = flush_when_slow and not isinstance(inputs, _ALL_THERE)
        self.row_thread = inputs if isinstance(inputs, RowThread) else None
        timed = self.flush_when_slow and self.row_thread is None
        self.rows = self._timed(enumerate(inputs)) if timed else enumerate(inputs)
        self.waited = 0.0
        self.failure: Exception | None = None  # raised by the inputs

    def _timed(self, rows: Iterator[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
        while True:
            before = time.perf_counter()
            try:
                numbered = next(rows)
            except StopIteration:
                return
            self.waited += time.perf_counter() - before
            yield numbered

    def is_late(self) -> bool:
        """Should the rows so far be answered before waiting for the next one?

        Only a `RowThread` can tell beforehand that a row will be late. Other inputs show it by being late.
        """
        if not self.flush_when_slow or self.row_thread is None:
            return self.flush_when_slow and self.waited >= MAX_WAIT_SECONDS
        before = time.perf_counter()
        late = not self.row_thread.ready(max(0.0, MAX_WAIT_SECONDS - self.waited))
        self.waited += time.perf_counter() - before
        return late

    def block(self, max_length: int, most: int, rows: int) -> list[tuple[int, Any]]:
        """The next rows to tokenise together, about `most` tokens: a character makes at most about one token."""
        block: list[tuple[int, Any]] = []
        tokens = characters = 0
        flush, most_rows = self.flush_when_slow, min(rows, BLOCK_ROWS)
        if self.failure is not None or most_rows <= 0:
            return block
        try:
            for numbered in self.rows:
                block.append(numbered)
                length = size(numbered[1])
                tokens += length if length < max_length else max_length
                characters += length
                if tokens >= most or characters > BLOCK_CHARACTERS or len(block) >= most_rows:
                    break
                if flush and self.is_late():
                    break
        except Exception as error:
            self.failure = error
        return block
