"""Scores of all later layers, guessed from one state: sum_j P_j act(L_j s + l_j). Guesses never reach memory.

A program computes the share of a chunk of columns of all L_j, concatenated. The width of a chunk decides the last bit.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from .functions import activate

FEW_LABELS, BLOCK_C = 4, 8  # few labels are multiplied one by one, more of them so many at once


class Chunk(NamedTuple):
    """The tile of a program, the same for any number of rows, and how it is compiled."""

    block_m: int
    block_n: int  # columns
    block_k: int
    num_warps: int
    num_stages: int
    max_registers: int | None = None


def chunk_of(learners: torch.dtype, states: torch.dtype) -> Chunk:
    if learners == torch.float32:
        return Chunk(32, 64, 32, 8, 3, 128)
    # Two programs fit on a multiprocessor. Without a limit the compiler would spill to fit in three on sm_80.
    return Chunk(64, 128, 64, 4, 3) if states == torch.float32 else Chunk(64, 128, 64, 4, 4, 255)


@triton.jit
def guess(
    states, learners, bias, row, output, is_row, is_output, inner,
    ACTIVATION: tl.constexpr, PRECISION: tl.constexpr, EVEN_K: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """act(L s + l) for these rows and outputs of the learners, fp32 [BLOCK_M, BLOCK_N]; 0 where there is no output.

    EVEN_K: does BLOCK_K divide the inner size?
    """
    k = tl.arange(0, BLOCK_K)
    state_at = states + row.to(tl.int64)[:, None] * inner + k[None, :]
    learner_at = learners + output.to(tl.int64)[None, :] * inner + k[:, None]
    offset = tl.load(bias + output, mask=is_output, other=0.0)  # before the loop, which hides how long it takes
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, inner, BLOCK_K):
        if EVEN_K:
            a = tl.load(state_at + start, mask=is_row[:, None], other=0.0)
            b = tl.load(learner_at + start, mask=is_output[None, :], other=0.0)
        else:
            is_k = start + k < inner
            a = tl.load(state_at + start, mask=is_row[:, None] & is_k[None, :], other=0.0)
            b = tl.load(learner_at + start, mask=is_output[None, :] & is_k[:, None], other=0.0)
        total = tl.dot(a.to(learners.dtype.element_ty), b, total, input_precision=PRECISION)
    total += offset[None, :]
    return tl.where(is_output[None, :], activate(total, ACTIVATION, PRECISION), 0.0)


@triton.jit
def write_few_shares(guesses, p, to, is_row, BLOCK_C: tl.constexpr):
    """Write the guesses [rows, columns of this chunk] times p, the same columns of a projection, [BLOCK_C, columns].

    to: [rows], pointers to the first of BLOCK_C numbers of each row.
    """
    place = tl.arange(0, BLOCK_C)[:, None]
    for label in tl.static_range(BLOCK_C):
        share = tl.sum(guesses * tl.sum(tl.where(place == label, p, 0.0), 0)[None, :], 1)
        tl.store(to + label, share, mask=is_row)


@triton.jit
def write_shares(guesses, projection, to, column, is_row, is_column, columns, labels, BLOCK_C: tl.constexpr):
    """Likewise with a projection in memory, [C, columns], of any number of labels: BLOCK_C at a time."""
    for first in tl.range(0, labels, BLOCK_C, num_stages=1):
        label = first + tl.arange(0, BLOCK_C)
        is_label = label < labels
        p = tl.load(
            projection + label.to(tl.int64)[None, :] * columns + column[:, None],
            mask=is_label[None, :] & is_column[:, None], other=0.0,
        )  # fmt: skip
        share = tl.dot(guesses, p, input_precision="ieee")
        tl.store(to[:, None] + label[None, :], share, mask=is_row[:, None] & is_label[None, :])


@triton.jit
def chunk_part(
    chunk, states, learners, bias, projection, shares, source_rows, first_row, rows, columns, inner, labels,
    rows_of_shares,
    ACTIVATION: tl.constexpr, PRECISION: tl.constexpr, EVEN_K: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, FEW: tl.constexpr, SHARE_C: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write the shares of BLOCK_M rows from `first_row` on, if there is a chunk of this number.

    shares: fp32 [chunks, rows_of_shares, BLOCK_C], of which the first `labels` numbers count.
    """
    if chunk >= 0:
        row, column = first_row + tl.arange(0, BLOCK_M), chunk * BLOCK_N + tl.arange(0, BLOCK_N)
        is_row, is_column = row < rows, column < columns
        source = row
        if source_rows is not None:
            source = tl.load(source_rows + row, mask=is_row, other=0)
        if FEW:  # before the guesses, which hide how long this takes
            label = tl.arange(0, BLOCK_C)
            p_at = projection + label.to(tl.int64)[:, None] * columns + column[None, :]
            p = tl.load(p_at, mask=(label < labels)[:, None] & is_column[None, :], other=0.0)
        guesses = guess(
            states, learners, bias, source, column, is_row, is_column, inner,
            ACTIVATION, PRECISION, EVEN_K, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip
        to = shares + (chunk.to(tl.int64) * rows_of_shares + row) * BLOCK_C
        if FEW:
            write_few_shares(guesses, p, to, is_row, BLOCK_C)
        else:
            write_shares(guesses, projection, to, column, is_row, is_column, columns, labels, SHARE_C)
