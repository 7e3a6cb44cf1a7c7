"""Rows of token ids as long as SST-2's, padded batches of them for the peers, and exit layers to replay."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from .models import LAYERS, VOCABULARY

Row = list[int]
PEERS_STREAM = 32  # rows per batch for peers that do not make batches


def make_rows(n: int, seed: int = 0) -> list[Row]:
    """Rows of 4 to 66 random ids, about 25 on average, not sorted by length."""
    generator = np.random.default_rng(seed)
    lengths = np.clip(np.round(generator.gamma(4.5, 25 / 4.5, n)), 4, 66).astype(int)
    return [generator.integers(1, VOCABULARY, length).tolist() for length in lengths]


def rows_of_length(tokens: int, n: int, seed: int = 0) -> list[Row]:
    return np.random.default_rng(seed).integers(1, VOCABULARY, (n, tokens)).tolist()


def fixed_batches(rows: Sequence[Row], batch_size: int) -> Iterator[list[int]]:
    """Indices of each batch's rows, sorted by length so that little is padding; unsorted for batches of one row."""
    order = list(range(len(rows)))
    if batch_size > 1:
        order.sort(key=lambda i: len(rows[i]))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def padded(rows: Sequence[Row]) -> dict[str, np.ndarray]:
    """A batch as every peer takes it: int64 [rows, longest]."""
    ids = np.zeros((len(rows), max(map(len, rows))), np.int64)
    mask = np.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
        mask[i, : len(row)] = 1
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def replay_layers(rows: Sequence[Row], speedup: float, every: int = 1, layers: int = LAYERS) -> np.ndarray:
    """Exit layers of the rows, spread over the depth, whose layer speed-up is the given one up to rounding.

    every: exits are after every `every`-th layer. Of 1,000 random assignments this is the one that depends least on the
    rows' lengths. Otherwise the time of a few rows would depend on whether long rows happen to stay long.
    """
    generator = np.random.default_rng(1)
    n, exits, mean = len(rows), layers // every, layers / speedup / every
    left = np.clip(np.round(generator.gamma(2, mean / 2, n)), 1, exits).astype(np.int64)
    while gap := round(n * mean) - left.sum():
        row, step = generator.integers(n), np.sign(gap)
        if 1 <= left[row] + step <= exits:
            left[row] += step
    lengths = np.array([len(row) for row in rows])
    unbiased = lengths.mean() * left.mean()
    ways = (generator.permutation(left) for _ in range(1000))
    return every * min(ways, key=lambda way: abs((lengths * way).mean() - unbiased))


def layer_speedup(exit_layers: np.ndarray, layers: int = LAYERS) -> float:
    return float(layers * len(exit_layers) / exit_layers.sum())


def encoder_flops(rows: Sequence[Row], hidden: int) -> int:
    """Multiplications and additions of all layers for the tokens, without padding."""
    tokens = sum(map(len, rows))
    squares = sum(len(row) ** 2 for row in rows)
    return LAYERS * (2 * tokens * 12 * hidden**2 + 4 * squares * hidden)
