"""softmax(q k^T scale) v within each row of a ragged batch, all heads, both directions."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import configs
from .launch import FLOATS, check, check_count, launch, power_of_two

BLOCK_N = 32  # keys at a time, whatever is beside a row: its sums then run alike
SEVERAL, MANY = 4, 4096  # rows a program where they are short, and there are so many of them and of heads
LOG2_E = 1.4426950408889634


@triton.jit
def _attend(
    qkv, out, cu_seqlens, row, first_query, heads, size, scale,
    FIRST_ONLY: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Queries `first_query` and on of one row and head; none where the row has fewer."""
    start = tl.load(cu_seqlens + row).to(tl.int64)
    length = (tl.load(cu_seqlens + row + 1) - start).to(tl.int32)
    queries = 1 if FIRST_ONLY else length
    keys = tl.where(first_query < queries, length, 0)
    width = heads * size
    column = tl.arange(0, BLOCK_D)
    is_column = column < size
    query = first_query + tl.arange(0, BLOCK_M)
    is_query = (query < queries)[:, None] & is_column[None, :]
    head = qkv + tl.program_id(1) * size
    q = tl.load(head + (start + query)[:, None] * (3 * width) + column[None, :], mask=is_query, other=0.0)
    largest = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    weight = tl.zeros((BLOCK_M,), tl.float32)
    total = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for first_key in range(0, keys, BLOCK_N):
        key = first_key + tl.arange(0, BLOCK_N)
        is_key = key < length
        at = (start + key) * (3 * width)
        k = tl.load(
            head + width + at[None, :] + column[:, None], mask=is_key[None, :] & is_column[:, None], other=0.0
        )  # [BLOCK_D, BLOCK_N]
        scores = tl.dot(q, k, input_precision=PRECISION) * scale
        scores = tl.where(is_key[None, :], scores, float("-inf"))
        larger = tl.maximum(largest, tl.max(scores, 1))
        p = tl.exp2(scores - larger[:, None])
        shrink = tl.exp2(largest - larger)
        weight = weight * shrink + tl.sum(p, 1)
        v = tl.load(
            head + 2 * width + at[:, None] + column[None, :], mask=is_key[:, None] & is_column[None, :], other=0.0
        )
        total = tl.dot(p.to(v.dtype), v, total * shrink[:, None], input_precision=PRECISION)
        largest = larger
    total = total / weight[:, None]
    target = (start + query) if not FIRST_ONLY else (row + query).to(tl.int64)
    to = out + target[:, None] * width + tl.program_id(1) * size + column[None, :]
    tl.store(to, total.to(out.dtype.element_ty), mask=is_query)


@triton.jit
def _attention_kernel(
    qkv, out, cu_seqlens, count, heads, size, blocks, scale,
    FIRST_ONLY: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) // blocks * ROWS
    first_query = tl.program_id(0) % blocks * BLOCK_M
    for i in range(row, tl.minimum(row + ROWS, tl.load(count))):
        _attend(
            qkv, out, cu_seqlens, i, first_query, heads, size, scale,
            FIRST_ONLY, PRECISION, BLOCK_M, BLOCK_N, BLOCK_D,
        )  # fmt: skip


def attention(
    qkv: Tensor, cu_seqlens: Tensor, heads: int, scale: float, longest: int, count: Tensor, first_only: bool = False
) -> Tensor:
    """Attention within each of the first `count` rows; what belongs to others is left as it comes.

    qkv: [T, 3 A D], fp32, fp16 or bf16: queries, keys and values of all heads, side by side; cu_seqlens: int32 [R + 1],
    row r is tokens cu_seqlens[r] to cu_seqlens[r + 1], at least one and at most `longest`; count: int32 [1], at most R.
    Returns [T, A D], or with first_only of each row's first token [R, A D]. Raises ValueError for anything else.
    """
    check("qkv", qkv, FLOATS, -1, -1, like=qkv)
    check("cu_seqlens", cu_seqlens, torch.int32, -1, like=qkv)
    check_count("count", count, qkv)
    tokens, rows = qkv.shape[0], cu_seqlens.shape[0] - 1
    if heads < 1 or qkv.shape[1] % (3 * heads):
        raise ValueError(f"qkv has {qkv.shape[1]} columns, expected three times a multiple of the {heads} heads")
    if rows < 0 or longest < 1:
        raise ValueError(f"there are {rows} rows of at most {longest} tokens, expected none or more, of one or more")
    size = qkv.shape[1] // (3 * heads)
    out = torch.empty(rows if first_only else tokens, heads * size, dtype=qkv.dtype, device=qkv.device)
    queries = 1 if first_only else longest
    if qkv.dtype == torch.float32:
        block_m, num_warps = 16, 4
    else:
        block_m, num_warps = (16, 1) if queries <= 16 else (32, 2)
    blocks = triton.cdiv(queries, block_m)
    several = SEVERAL if blocks == 1 and rows * heads >= MANY else 1
    launch(
        _attention_kernel,
        (triton.cdiv(rows, several) * blocks, heads),
        {
            "qkv": qkv, "out": out, "cu_seqlens": cu_seqlens, "count": count, "heads": heads, "size": size,
            "blocks": blocks, "scale": scale * LOG2_E,
        },
        {
            "FIRST_ONLY": first_only, "PRECISION": configs.precision(qkv.dtype), "ROWS": several,
            "BLOCK_M": block_m, "BLOCK_N": BLOCK_N, "BLOCK_D": power_of_two(size, 16),
        },
        num_warps=num_warps,
    )  # fmt: skip
    return out
