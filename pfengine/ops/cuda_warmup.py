"""Compiling what batches launch once rows have left them, which is as small as what is left."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np

from .cuda_buffers import LEAST_TOKENS, Bucket
from .cuda_graphs import Left
from .cuda_lanes import Lane
from .cuda_rule import form_of
from .cuda_segment import Position, Segment
from .rule import ExitRule


def nobody_leaves(rule: ExitRule, slots: int) -> ExitRule:
    """The rule with numbers that let no row leave. It launches the same. slots: at least as many as there will be."""

    def numbers(like: np.ndarray, number: float) -> np.ndarray:
        return np.full((len(like), 1 if like.shape[1] == 1 else slots), number, np.float32)

    return rule._replace(
        clauses=tuple(
            clause._replace(threshold=numbers(clause.threshold, math.nan), times=numbers(clause.times, 1))
            for clause in rule.clauses
        )
    )


def smaller(left: Left, longest: int, frozen: bool) -> Iterator[Bucket]:
    """The buckets that a batch may have once rows have left it. frozen: may tokens be no queries?"""
    whole = Bucket.of(left.rows, left.tokens, longest)
    for rows, tokens in itertools.product(_powers(1, whole.rows), _powers(LEAST_TOKENS, whole.tokens)):
        # some number of rows and of tokens that are rounded up to these must be possible
        least_tokens = 1 if tokens == LEAST_TOKENS else tokens // 2 + 1
        if tokens <= rows // 2 or least_tokens > min(rows, left.rows) * longest:
            continue
        for queries in _powers(LEAST_TOKENS, tokens) if frozen else (tokens,):
            yield Bucket(rows, tokens, whole.longest, queries)


def _powers(first: int, last: int) -> list[int]:
    """The powers of two from one to another."""
    return [1 << i for i in range(first.bit_length() - 1, last.bit_length())]


def compile_smaller(lane: Lane, rule: ExitRule, left: Left, longest: int, done: set[tuple[Segment, Bucket]]) -> None:
    """Launch every segment that follows the first in every smaller bucket, with no rows, so that it is compiled.

    left: how large the batch is before rows leave; longest: tokens of its longest row. The lane must have room for it.
    done: what needs not be launched again; what was is added.
    """
    way = lane.way(Position(), form_of(rule), rule.tested, len(lane.weights.layers), True, False).parts
    with lane.active():
        for batch in lane.buffers.survivors:
            batch.counts.zero_()
        if lane.buffers.tokens is not None:
            for tokens in lane.buffers.tokens.lists:
                tokens.query_count.zero_()
        for bucket in smaller(left, longest, lane.buffers.tokens is not None):
            for segment in way[1:]:
                if (segment, bucket) not in done:
                    lane.run(segment, bucket)
                    done.add((segment, bucket))
        lane.synchronize()
