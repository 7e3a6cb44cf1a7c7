"""softmax(q k^T scale + b) v within each row of a ragged batch, all heads, bidirectional, of all queries or some.

b: what distances between queries and keys add, or nothing. Where there is a window, keys that are farther away have no
weight.
"""

from __future__ import annotations

from typing import Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import configs
from .dependent import wait_for_turn
from .launch import FLOATS, check, check_count, launch, power_of_two
from .scratch import empty

BLOCK_N = 32  # keys at a time, in every batch, so that a row's sums keep their order
SEVERAL, MANY = 4, 4096  # rows per program, where rows are short and rows times heads are at least so many
LOG2_E = tl.constexpr(1.4426950408889634)


# of `pfengine.ops.distances`: bias, float32 [A, 2 P - 1]; bucket, int32 [2 P - 1]; keys and queries, [A, buckets, D] of
# the dtype of queries and keys
Distances = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]


@triton.jit
def _query_at(query_tokens, first, count, position, STEPS: tl.constexpr):
    """Which of `count` queries, from `first` on, is the token at `position`? Tokens rise; where none is, `count`."""
    low = position * 0
    high = low + count
    for _ in tl.static_range(STEPS):
        middle = (low + high) // 2
        token = tl.load(query_tokens + first + middle, mask=middle < high, other=0).to(tl.int32)
        before = (token < position) & (middle < high)
        low = tl.where(before, middle + 1, low)
        high = tl.where(before, high, middle)
    token = tl.load(query_tokens + first + low, mask=low < count, other=-1).to(tl.int32)
    return tl.where(token == position, low, count)


@triton.jit
def _of_distances(table, bucket, distances, first, head, buckets, size, is_column, column, WINDOW: tl.constexpr):
    """A table's vectors of WINDOW distances, from the first one on: [WINDOW, BLOCK_D]; zeros beyond its last ones."""
    at = first + tl.arange(0, WINDOW) + distances - 1
    there = (at >= 0) & (at < 2 * distances - 1)
    place = head * buckets + tl.load(bucket + at, mask=there, other=0)
    is_number = there[:, None] & is_column[None, :]
    return tl.load(table + place.to(tl.int64)[:, None] * size + column[None, :], mask=is_number, other=0.0)


@triton.jit
def _attend(
    queries, keys_values, out, cu_seqlens, query_bounds, bias, of_keys, of_queries, bucket, query_tokens,
    distances, buckets, window, row, head, first_query, heads, size, scale, QUERIES: tl.constexpr,
    PRECISION: tl.constexpr, STEPS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    WINDOW: tl.constexpr,
):  # fmt: skip
    """A block of queries of one row and head, from query `first_query` on; nothing where the row has no more.

    QUERIES: with "all" and "first" queries, keys and values are side by side in one tensor; with "list" queries have a
    tensor of their own. query_tokens: which token each of them is; None: they are the row's tokens in order.
    With tables of distances a block is of neighbouring tokens, of which some may be no queries.
    """
    start = tl.load(cu_seqlens + row).to(tl.int64)
    length = (tl.load(cu_seqlens + row + 1) - start).to(tl.int32)
    width = heads * size
    query_start, target_start, count, query_width, key_width = start, start, length, 3 * width, 3 * width
    if QUERIES == "first":
        target_start, count = start * 0 + row, length * 0 + 1
    elif QUERIES == "list":
        query_start = tl.load(query_bounds + row).to(tl.int64)
        target_start = query_start
        count = (tl.load(query_bounds + row + 1) - query_start).to(tl.int32)
        query_width, key_width = width, 2 * width
    column = tl.arange(0, BLOCK_D)
    is_column = column < size
    query = first_query + tl.arange(0, BLOCK_M)
    position = query
    if query_tokens is not None:
        if bucket is not None:
            query = _query_at(query_tokens, query_start, count, position + start.to(tl.int32), STEPS)
        else:
            position = tl.load(query_tokens + query_start + query, mask=query < count, other=0).to(tl.int32) - start.to(
                tl.int32
            )
    is_query = (query < count)[:, None] & is_column[None, :]
    key_count = tl.where(tl.min(query, 0) < count, length, 0)
    at_head = head * size + column
    if bucket is not None:  # of a key and a query, among the WINDOW distances of a block of keys
        place = tl.arange(0, BLOCK_N)[None, :] - tl.arange(0, BLOCK_M)[:, None] + BLOCK_M - 1
    if bias is not None:
        at_distance_0 = bias + head * (2 * distances - 1) + distances - 1
    q = tl.load(queries + (query_start + query)[:, None] * query_width + at_head[None, :], mask=is_query, other=0.0)
    first_block, end_block = 0, key_count
    if window is not None:
        lowest_position = tl.min(tl.where(query < count, position, length), 0)
        highest_position = tl.max(tl.where(query < count, position, 0), 0)
        first_block = tl.maximum(lowest_position - window, 0) // BLOCK_N * BLOCK_N
        end_block = tl.minimum(key_count, highest_position + window + 1)
    first_keys = keys_values + (key_width - 2 * width)
    largest = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    weight = tl.zeros((BLOCK_M,), tl.float32)
    total = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for first_key in range(first_block, end_block, BLOCK_N):
        key = first_key + tl.arange(0, BLOCK_N)
        is_key = key < length
        at = (start + key) * key_width
        k = tl.load(
            first_keys + at[None, :] + at_head[:, None], mask=is_key[None, :] & is_column[:, None], other=0.0
        )  # [BLOCK_D, BLOCK_N]
        scores = tl.dot(q, k, input_precision=PRECISION)
        if bucket is not None:
            lowest = first_key - first_query - BLOCK_M + 1
            if of_keys is not None:
                near = _of_distances(of_keys, bucket, distances, lowest, head, buckets, size, is_column, column, WINDOW)
                scores += tl.gather(tl.dot(q, tl.trans(near), input_precision=PRECISION), place, 1)
            if of_queries is not None:
                near = _of_distances(
                    of_queries, bucket, distances, lowest, head, buckets, size, is_column, column, WINDOW
                )
                scores += tl.gather(tl.dot(near, k, input_precision=PRECISION), place, 0)
        scores *= scale
        if bias is not None:
            of_both = is_key[None, :] & (query < count)[:, None]
            scores += LOG2_E * tl.load(at_distance_0 + key[None, :] - position[:, None], mask=of_both, other=0.0)
        scores = tl.where(is_key[None, :], scores, float("-inf"))
        if window is not None:
            scores = tl.where(tl.abs(key[None, :] - position[:, None]) <= window, scores, float("-inf"))
        larger = tl.maximum(largest, tl.max(scores, 1))
        base = larger
        if window is not None:  # of a query that sees no key so far
            base = tl.where(larger == float("-inf"), 0.0, larger)
        p = tl.exp2(scores - base[:, None])
        shrink = tl.exp2(largest - base)
        weight = weight * shrink + tl.sum(p, 1)
        v = tl.load(
            first_keys + width + at[:, None] + at_head[None, :], mask=is_key[:, None] & is_column[None, :], other=0.0
        )
        total = tl.dot(p.to(v.dtype), v, total * shrink[:, None], input_precision=PRECISION)
        largest = larger
    total = total / weight[:, None]
    to = out + (target_start + query)[:, None] * width + at_head[None, :]
    tl.store(to, total.to(out.dtype.element_ty), mask=is_query)


@triton.jit
def _attention_kernel(
    queries, keys_values, out, cu_seqlens, query_bounds, bias, of_keys, of_queries, bucket, query_tokens,
    distances, buckets, window, count, heads, size, blocks, scale, QUERIES: tl.constexpr,
    PRECISION: tl.constexpr, STEPS: tl.constexpr, ROWS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    wait_for_turn()
    head = tl.program_id(0) % heads  # heads of the same tokens run one after the other, as they share cache lines
    place = tl.program_id(0) // heads
    row, first_query = place // blocks * ROWS, place % blocks * BLOCK_M
    for i in range(row, tl.minimum(row + ROWS, tl.load(count))):
        _attend(
            queries, keys_values, out, cu_seqlens, query_bounds, bias, of_keys, of_queries, bucket, query_tokens,
            distances, buckets, window, i, head, first_query, heads, size, scale, QUERIES, PRECISION, STEPS, BLOCK_M,
            BLOCK_N, BLOCK_D, WINDOW,
        )  # fmt: skip


def attention(
    qkv: Tensor,
    cu_seqlens: Tensor,
    heads: int,
    scale: float,
    longest: int,
    count: Tensor,
    queries: Literal["all", "first"] | tuple[Tensor, Tensor] = "all",
    distances: Distances | None = None,
    query_tokens: Tensor | None = None,
    window: int | None = None,
) -> Tensor:
    """Attention within each of the first `count` rows. Output of other rows is uninitialised.

    qkv: [T, 3 A D], fp32, fp16 or bf16: queries, keys and values of all A heads, side by side; cu_seqlens: int32
    [R + 1], row r is tokens cu_seqlens[r] to cu_seqlens[r + 1], at least one and at most `longest`; count: int32 [1],
    at most R. Returns [T, A D]; for "first", of each row's first token, [R, A D].
    queries: may also be a tensor of queries [Q, A D] and bounds, int32 [R + 1]. Row r has queries bounds[r] to
    bounds[r + 1], at most `longest`. Then qkv is only keys and values, [T, 2 A D], and the result is [Q, A D].
    distances: what they add; no row has more than P tokens. query_tokens: with a tensor of queries, which of the T
    tokens each is, int32 or int64 [Q]; None: they are their row's tokens in order. window: keys so many
    tokens away or less.
    Raises ValueError for anything else.
    """
    listed = None if isinstance(queries, str) else queries
    parts = 3 if listed is None else 2
    check("qkv", qkv, FLOATS, -1, -1, like=qkv)
    check("cu_seqlens", cu_seqlens, torch.int32, -1, like=qkv)
    check_count("count", count, qkv)
    rows = cu_seqlens.shape[0] - 1
    if heads < 1 or qkv.shape[1] % (parts * heads):
        times = "three times" if parts == 3 else "twice"
        raise ValueError(f"qkv has {qkv.shape[1]} columns, expected {times} a multiple of the {heads} heads")
    if rows < 0 or longest < 1:
        raise ValueError(f"there are {rows} rows of at most {longest} tokens, expected none or more, of one or more")
    width = qkv.shape[1] // parts
    if listed is not None:
        check("queries", listed[0], qkv.dtype, -1, width, like=qkv)
        check("bounds of queries", listed[1], torch.int32, rows + 1, like=qkv)
    bias, bucket, of_keys, of_queries = distances or (None, None, None, None)
    tables = [table for table in (of_keys, of_queries) if table is not None]
    by_distance = bias if bucket is None else bucket
    if distances is not None:
        _check_distances(distances, heads, width // heads, qkv)
    if window is not None and window < 0:
        raise ValueError(f"window is {window}, expected at least 0")
    if query_tokens is not None:
        if listed is None:
            raise ValueError("query_tokens is given without a tensor of queries")
        check("query_tokens", query_tokens, (torch.int32, torch.int64), listed[0].shape[0], like=qkv)
    where = "list" if listed is not None else queries
    results = listed[0].shape[0] if listed is not None else rows if queries == "first" else qkv.shape[0]
    out = empty(results, width, dtype=qkv.dtype, device=qkv.device)
    # in 16 bits 64 queries, 16 per warp, however many there are, so that the order of sums is the same
    block_m = 16 if qkv.dtype == torch.float32 else 32 if tables else 64  # with 32 keys 63 distances, a tile of 64
    blocks = triton.cdiv(1 if queries == "first" else longest, block_m)
    large = qkv.dtype == torch.float32 and (bool(tables) or window is not None)  # in registers
    several = SEVERAL if blocks == 1 and rows * heads >= MANY else 1
    launch(
        _attention_kernel,
        (triton.cdiv(rows, several) * blocks * heads,),
        {
            "queries": qkv if listed is None else listed[0], "keys_values": qkv, "out": out, "cu_seqlens": cu_seqlens,
            "query_bounds": None if listed is None else listed[1], "bias": bias, "of_keys": of_keys,
            "of_queries": of_queries, "bucket": bucket,
            "query_tokens": None if distances is None and window is None else query_tokens, "window": window,
            "distances": 1 if by_distance is None else (by_distance.shape[-1] + 1) // 2,
            "buckets": tables[0].shape[1] if tables else 1,
            "count": count, "heads": heads, "size": width // heads, "blocks": blocks, "scale": scale * LOG2_E.value,
        },
        {
            "QUERIES": where, "PRECISION": configs.precision(qkv.dtype), "ROWS": several,
            "STEPS": longest.bit_length() if bucket is not None and query_tokens is not None else 0,
            "BLOCK_M": block_m, "BLOCK_N": BLOCK_N, "BLOCK_D": power_of_two(width // heads, 16),
            "WINDOW": power_of_two(block_m + BLOCK_N) if bucket is not None else 1,
        },
        num_warps=8 if large else 4,
        max_registers=255 if large else None,
    )  # fmt: skip
    return out


def _check_distances(distances: Distances, heads: int, size: int, like: Tensor) -> None:
    bias, bucket, *tables = distances
    if bias is not None:
        check("bias of distances", bias, torch.float32, heads, -1, like=like)
    if bucket is not None:
        check("buckets of distances", bucket, torch.int32, -1, like=like)
    for by_distance in (bias, bucket):
        if by_distance is not None and by_distance.shape[-1] % 2 == 0:
            raise ValueError(f"there are {by_distance.shape[-1]} distances, expected as many ahead as behind")
    for name, table in zip(("keys", "queries"), tables, strict=True):
        if table is not None:
            check(f"{name} of distances", table, like.dtype, heads, -1, size, like=like)
