"""`imitation`, where guesses s~_j = act(L_j s + l_j), j = i+1..n, are pooled before one projection P.

max        P max_j s~_j
attention  P sum_j w_j s~_j,  w = softmax_j(s~_j . s~_n / sqrt(H))

Guesses never reach memory. P is linear, so attention needs only the share P s~_j of each guess and its product with the
last guess. Chunks of columns give parts of both, and a second kernel turns the products into weights. The mean needs no
kernel: it is `imitation` with P / m repeated for each of the m learners.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import configs
from .decide import check_labels
from .dependent import wait_for_turn
from .functions import rounded_product
from .imitation import BLOCK_C, guess, write_shares
from .launch import FLOATS, check, check_count, launch, power_of_two
from .scratch import empty

Pooling = Literal["max", "attention"]
BLOCK_N = 64  # fixed, because the cuts of a sum decide its last bit
WEIGHED = 2048  # numbers of a tile of the second kernel


# Not specialised for the number of rows: sums along an axis keep the order of the one layout that is compiled.
@triton.jit(do_not_specialize=["rows_of_shares"])
def _imitation_max_kernel(
    states, learners, bias, projection, shares, count, rows_of_shares, ahead, inner, labels,
    ACTIVATION: tl.constexpr, PRECISION: tl.constexpr, EVEN_K: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    wait_for_turn()
    chunk = tl.program_id(1)
    rows = tl.load(count)
    if tl.program_id(0) * BLOCK_M >= rows:
        return
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = chunk * BLOCK_N + tl.arange(0, BLOCK_N)
    is_row, is_column = row < rows, column < inner
    largest = tl.full((BLOCK_M, BLOCK_N), float("-inf"), tl.float32)
    for j in range(ahead):
        guessed = guess(
            states, learners, bias, row, j * inner + column, is_row, is_column, inner,
            ACTIVATION, PRECISION, EVEN_K, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip
        largest = tl.maximum(largest, guessed, propagate_nan=tl.PropagateNan.ALL)
    to = shares + (chunk.to(tl.int64) * rows_of_shares + row) * labels
    write_shares(largest, projection, to, column, is_row, is_column, inner, labels, BLOCK_C)


@triton.jit(do_not_specialize=["rows_of_shares"])
def _imitation_attend_kernel(
    states, learners, bias, projection, products, shares, count, rows_of_shares, ahead, inner, labels,
    ACTIVATION: tl.constexpr, PRECISION: tl.constexpr, EVEN_K: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """For each guess, over a chunk of its columns: its product with the last guess, and its share."""
    wait_for_turn()
    chunk = tl.program_id(1)
    rows = tl.load(count)
    if tl.program_id(0) * BLOCK_M >= rows:
        return
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = chunk * BLOCK_N + tl.arange(0, BLOCK_N)
    is_row, is_column = row < rows, column < inner
    last = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for back in range(ahead):  # the last guess first: it is the query
        j = ahead - 1 - back
        guessed = guess(
            states, learners, bias, row, j * inner + column, is_row, is_column, inner,
            ACTIVATION, PRECISION, EVEN_K, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip
        last = tl.where(back == 0, guessed, last)
        at = (chunk.to(tl.int64) * ahead + j) * rows_of_shares + row
        tl.store(products + at, tl.sum(guessed * last, 1), mask=is_row)
        write_shares(guessed, projection, shares + at * labels, column, is_row, is_column, inner, labels, BLOCK_C)


@triton.jit(do_not_specialize=["rows_of_shares"])
def _imitation_weigh_kernel(
    products, shares, out, count, rows_of_shares, ahead, chunks, labels, scale,
    BLOCK_R: tl.constexpr, BLOCK_J: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """sum_j softmax_j(scale product_j) share_j, products and shares summed over chunks in their order."""
    wait_for_turn()
    rows = tl.load(count)
    if tl.program_id(0) * BLOCK_R >= rows:
        return
    row, j = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_J)
    label = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    is_row, is_label = row < rows, label < labels
    is_guess = is_row[:, None] & (j < ahead)[None, :]
    is_share = is_guess[:, :, None] & is_label[None, None, :]
    at = j.to(tl.int64)[None, :] * rows_of_shares + row[:, None]
    product = tl.zeros((BLOCK_R, BLOCK_J), tl.float32)
    share = tl.zeros((BLOCK_R, BLOCK_J, BLOCK_C), tl.float32)
    for _ in range(chunks):
        product += tl.load(products + at, mask=is_guess, other=0.0)
        share += tl.load(shares + at[:, :, None] * labels + label[None, None, :], mask=is_share, other=0.0)
        at += ahead * rows_of_shares
    score = tl.where((j < ahead)[None, :], product * scale, float("-inf"))
    e = tl.exp(score - tl.max(score, 1)[:, None])
    weight = e / tl.sum(e, 1)[:, None]
    total = tl.sum(rounded_product(weight[:, :, None], share), 1)
    to = out + row.to(tl.int64)[:, None] * labels + label[None, :]
    tl.store(to, total, mask=is_row[:, None] & is_label[None, :])


def imitation_pooled(
    states: Tensor,
    learners: Tensor,
    bias: Tensor,
    projection: Tensor,
    activation: str,
    pooling: Pooling,
    count: Tensor,
) -> Tensor:
    """Shares of the future, fp32 [S, R, C]. Their sum over S, in this order, is `reference.pooled` less p.

    S is the number of chunks of 64 columns for "max", and 1 for "attention", whose shares are weighed and summed.

    states: [R, H], fp32, fp16 or bf16; learners: [M H, H], those of the M >= 1 later layers concatenated, in the same
    dtype; bias: fp32 [M H]; projection: fp32 [C, H], at most 1,024 labels; count: int32 [1], at most R; shares of other
    rows are uninitialised. Guesses are fp32 in every dtype. "attention" temporarily needs memory for fp32
    [chunks, M, R, C + 1]. Raises ValueError for anything else.
    """
    check("states", states, FLOATS, -1, -1, like=states)
    rows, inner = states.shape
    check("learners", learners, states.dtype, -1, inner, like=states)
    outputs = learners.shape[0]
    if not outputs or not inner or outputs % inner:
        raise ValueError(f"learners has {outputs} rows, expected a multiple of {inner}: {inner} per later layer")
    check("bias", bias, torch.float32, outputs, like=states)
    check("projection", projection, torch.float32, -1, inner, like=states)
    check_count("count", count, states)
    labels, ahead = projection.shape[0], outputs // inner
    check_labels(labels)
    if pooling not in ("max", "attention"):
        raise ValueError(f"pooling is {pooling!r}; it must be one of max, attention")
    chunks = triton.cdiv(inner, BLOCK_N)
    block_m, block_k = (16, 32) if states.dtype == torch.float32 else (64, 64)
    grid = triton.cdiv(rows, block_m), chunks
    arguments: dict[str, Any] = {
        "states": states, "learners": learners, "bias": bias, "projection": projection, "count": count,
        "rows_of_shares": rows, "ahead": ahead, "inner": inner, "labels": labels,
    }  # fmt: skip
    constants = {
        "ACTIVATION": activation, "PRECISION": configs.precision(states.dtype), "EVEN_K": inner % block_k == 0,
        "BLOCK_M": block_m, "BLOCK_N": BLOCK_N, "BLOCK_K": block_k, "BLOCK_C": BLOCK_C,
    }  # fmt: skip
    if pooling == "max":
        shares = empty(chunks, rows, labels, dtype=torch.float32, device=states.device)
        launch(_imitation_max_kernel, grid, arguments | {"shares": shares}, constants, num_warps=4)
        return shares
    products = empty(chunks, ahead, rows, dtype=torch.float32, device=states.device)
    shares = empty(chunks, ahead, rows, labels, dtype=torch.float32, device=states.device)
    parts = {"products": products, "shares": shares}
    launch(_imitation_attend_kernel, grid, arguments | parts, constants, num_warps=4)
    out = empty(1, rows, labels, dtype=torch.float32, device=states.device)
    block_j = power_of_two(ahead)
    block_r = max(1, WEIGHED // (block_j * BLOCK_C))
    launch(
        _imitation_weigh_kernel,
        (triton.cdiv(rows, block_r), triton.cdiv(labels, BLOCK_C)),
        parts
        | {
            "out": out, "count": count, "rows_of_shares": rows, "ahead": ahead, "chunks": chunks, "labels": labels,
            "scale": inner**-0.5,
        },
        {"BLOCK_R": block_r, "BLOCK_J": block_j, "BLOCK_C": BLOCK_C},
        num_warps=4,
    )  # fmt: skip
    return out
