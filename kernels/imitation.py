"""What all layers to come would say, guessed from one state: sum_j P_j act(L_j s + l_j), guesses never written out."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import configs
from .exit_head import check_labels
from .functions import activate
from .launch import FLOATS, check, check_count, launch

BLOCK_N, BLOCK_C = 64, 16  # fixed: how often a sum is cut decides its last bit


@triton.jit
def _imitation_kernel(
    states, learners, bias, projection, shares, count, rows_of_shares, columns, inner, labels,
    ACTIVATION: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    chunk = tl.program_id(1)
    rows = tl.load(count)
    if tl.program_id(0) * BLOCK_M >= rows:
        return
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = chunk * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    is_row, is_column = row < rows, column < columns
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, inner, BLOCK_K):
        is_k = start + k < inner
        a = tl.load(
            states + row.to(tl.int64)[:, None] * inner + start + k[None, :],
            mask=is_row[:, None] & is_k[None, :], other=0.0,
        )  # fmt: skip
        b = tl.load(
            learners + column.to(tl.int64)[None, :] * inner + start + k[:, None],
            mask=is_column[None, :] & is_k[:, None], other=0.0,
        )  # fmt: skip
        total = tl.dot(a, b, total, input_precision=PRECISION)
    total += tl.load(bias + column, mask=is_column, other=0.0)[None, :]
    guess = tl.where(is_column[None, :], activate(total, ACTIVATION), 0.0)
    to = shares + (chunk.to(tl.int64) * rows_of_shares + row)[:, None] * labels
    for first in range(0, labels, BLOCK_C):
        label = first + tl.arange(0, BLOCK_C)
        is_label = label < labels
        p = tl.load(
            projection + label.to(tl.int64)[None, :] * columns + column[:, None],
            mask=is_label[None, :] & is_column[:, None], other=0.0,
        )  # fmt: skip
        share = tl.dot(guess, p, input_precision="ieee")
        tl.store(to + label[None, :], share, mask=is_row[:, None] & is_label[None, :])


def imitation(
    states: Tensor, learners: Tensor, bias: Tensor, projection: Tensor, activation: str, count: Tensor
) -> Tensor:
    """Shares of the future, fp32 [S, R, C]: their sum over S, in this order, is `reference.project(guesses)` less bias.

    states: [R, H], fp32, fp16 or bf16; learners: [M H, H] of the M layers to come, one below the other, the same
    dtype; bias: fp32 [M H]; projection: fp32 [C, M H], at most 1,024 labels; count: int32 [1], at most R: shares of
    other rows are left as they come. Raises ValueError for anything else.
    """
    check("states", states, FLOATS, -1, -1, like=states)
    rows, inner = states.shape
    check("learners", learners, states.dtype, -1, inner, like=states)
    columns = learners.shape[0]
    check("bias", bias, torch.float32, columns, like=states)
    check("projection", projection, torch.float32, -1, columns, like=states)
    check_count("count", count, states)
    labels = projection.shape[0]
    check_labels(labels)
    chunks = triton.cdiv(columns, BLOCK_N)
    shares = torch.empty(chunks, rows, labels, device=states.device)
    block_m, block_k = (32, 32) if states.dtype == torch.float32 else (64, 64)
    launch(
        _imitation_kernel,
        (triton.cdiv(rows, block_m), chunks),
        {
            "states": states, "learners": learners, "bias": bias, "projection": projection, "shares": shares,
            "count": count, "rows_of_shares": rows, "columns": columns, "inner": inner, "labels": labels,
        },
        {
            "ACTIVATION": activation, "PRECISION": configs.precision(states.dtype), "BLOCK_M": block_m,
            "BLOCK_N": BLOCK_N, "BLOCK_K": block_k, "BLOCK_C": BLOCK_C,
        },
        num_warps=4,
    )  # fmt: skip
    return shares
