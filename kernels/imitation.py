"""Scores of all later layers, guessed from one state: sum_j P_j act(L_j s + l_j). Guesses never reach memory."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import configs
from .decide import check_labels
from .functions import activate
from .launch import FLOATS, check, check_count, launch, rows_of
from .scratch import empty

BLOCK_N, BLOCK_C = 64, 16  # fixed, because the cuts of a sum decide its last bit


@triton.jit
def guess(
    states, learners, bias, row, output, is_row, is_output, inner,
    ACTIVATION: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """act(L s + l) for these rows and outputs of the learners, fp32 [BLOCK_M, BLOCK_N]; 0 where there is no output."""
    k = tl.arange(0, BLOCK_K)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, inner, BLOCK_K):
        is_k = start + k < inner
        a = tl.load(
            states + row.to(tl.int64)[:, None] * inner + start + k[None, :],
            mask=is_row[:, None] & is_k[None, :], other=0.0,
        ).to(learners.dtype.element_ty)  # fmt: skip
        b = tl.load(
            learners + output.to(tl.int64)[None, :] * inner + start + k[:, None],
            mask=is_output[None, :] & is_k[:, None], other=0.0,
        )  # fmt: skip
        total = tl.dot(a, b, total, input_precision=PRECISION)
    total += tl.load(bias + output, mask=is_output, other=0.0)[None, :]
    return tl.where(is_output[None, :], activate(total, ACTIVATION, PRECISION), 0.0)


@triton.jit
def write_shares(guesses, projection, to, column, is_row, is_column, columns, labels, BLOCK_C: tl.constexpr):
    """Write the guesses [rows, columns of this chunk] times these columns of the projection [C, columns].

    to: [rows], pointers to the first label of each row.
    """
    for first in range(0, labels, BLOCK_C):
        label = first + tl.arange(0, BLOCK_C)
        is_label = label < labels
        p = tl.load(
            projection + label.to(tl.int64)[None, :] * columns + column[:, None],
            mask=is_label[None, :] & is_column[:, None], other=0.0,
        )  # fmt: skip
        share = tl.dot(guesses, p, input_precision="ieee")
        tl.store(to[:, None] + label[None, :], share, mask=is_row[:, None] & is_label[None, :])


@triton.jit(do_not_specialize=["rows_of_shares"])
def _imitation_kernel(
    states, learners, bias, projection, shares, source_rows, count, rows_of_shares, columns, inner, labels,
    ACTIVATION: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    chunk = tl.program_id(1)
    rows = tl.load(count)
    if tl.program_id(0) * BLOCK_M >= rows:
        return
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = chunk * BLOCK_N + tl.arange(0, BLOCK_N)
    is_row, is_column = row < rows, column < columns
    source = row
    if source_rows is not None:
        source = tl.load(source_rows + row, mask=is_row, other=0)
    guesses = guess(
        states, learners, bias, source, column, is_row, is_column, inner,
        ACTIVATION, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    to = shares + (chunk.to(tl.int64) * rows_of_shares + row) * labels
    write_shares(guesses, projection, to, column, is_row, is_column, columns, labels, BLOCK_C)


def imitation(
    states: Tensor,
    learners: Tensor,
    bias: Tensor,
    projection: Tensor,
    activation: str,
    count: Tensor,
    *,
    source_rows: Tensor | None = None,
) -> Tensor:
    """Shares of the future, fp32 [S, R, C]. Their sum over S, in this order, is `reference.project(guesses)` less bias.

    states: [T, H], fp32, fp16 or bf16; learners: [M H, H], those of the M later layers concatenated, in any of these
    dtypes, to which states are rounded; bias: fp32 [M H]; projection: fp32 [C, M H], at most 1,024 labels; count: int32
    [1], at most R; shares of other rows are uninitialised. source_rows: int32 [R], which of the states each row has, or
    None: R = T. Raises ValueError for anything else.
    """
    check("states", states, FLOATS, -1, -1, like=states)
    inner = states.shape[1]
    rows = rows_of(states, source_rows)
    check("learners", learners, FLOATS, -1, inner, like=states)
    columns = learners.shape[0]
    check("bias", bias, torch.float32, columns, like=states)
    check("projection", projection, torch.float32, -1, columns, like=states)
    check_count("count", count, states)
    labels = projection.shape[0]
    check_labels(labels)
    chunks = triton.cdiv(columns, BLOCK_N)
    shares = empty(chunks, rows, labels, dtype=torch.float32, device=states.device)
    block_m, block_k = (32, 32) if learners.dtype == torch.float32 else (64, 64)
    launch(
        _imitation_kernel,
        (triton.cdiv(rows, block_m), chunks),
        {
            "states": states, "learners": learners, "bias": bias, "projection": projection, "shares": shares,
            "source_rows": source_rows, "count": count, "rows_of_shares": rows, "columns": columns, "inner": inner,
            "labels": labels,
        },
        {
            "ACTIVATION": activation, "PRECISION": configs.precision(learners.dtype), "BLOCK_M": block_m,
            "BLOCK_N": BLOCK_N, "BLOCK_K": block_k, "BLOCK_C": BLOCK_C,
        },
        num_warps=4,
    )  # fmt: skip
    return shares
