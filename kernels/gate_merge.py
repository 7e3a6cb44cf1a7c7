"""Past and future weighed by the gate, what a criterion reads of the result, and who leaves; behind `imitation`.

none     past + future
paper    l past + (1 - l) future,      l = sigmoid(gates)
authors  2 l past + (2 - 2 l) future,  l = sigmoid(G tanh(gates / count) + g)
"""

from __future__ import annotations

from typing import Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

from .answers import Answers, arguments, check_answers, constants, decide, decisions
from .exit_head import Signal, check_labels, check_signal
from .functions import tanh
from .launch import check, check_count, launch, power_of_two

Form = Literal["none", "paper", "authors"]


@triton.jit(do_not_specialize=["rows_of_shares"])  # so that nothing of the code depends on how many rows there are
def _gate_merge_kernel(
    past, shares, bias, gate, gate_bias, threshold, logits, signal, leave, row_ids, layers, out_logits, out_layers,
    count, labels, gates, width, chunks, rows_of_shares, states, layer,
    FORM: tl.constexpr, SIGNAL: tl.constexpr, LAST: tl.constexpr, ONCE: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    rows = tl.load(count)
    if tl.program_id(0) * BLOCK_R >= rows:
        return
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    label = tl.arange(0, BLOCK_C)
    is_row, is_label = row < rows, label < labels
    is_number = is_row[:, None] & is_label[None, :]
    own = past + row.to(tl.int64)[:, None] * width
    merged = tl.load(own + label[None, :], mask=is_number, other=0.0)
    if shares is not None:
        future = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
        at = shares + row.to(tl.int64)[:, None] * labels + label[None, :]
        for _ in range(chunks):  # one after the other, in the order of the chunks
            future += tl.load(at, mask=is_number, other=0.0)
            at += rows_of_shares * labels
        if bias is not None:
            future += tl.load(bias + label, mask=is_label, other=0.0)[None, :]
    if FORM == "none":
        if shares is not None:
            merged += future
    else:
        weighed = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)  # 1 + tanh(z / 2) = 2 sigmoid(z)
        if FORM == "paper":
            place = tl.where(gates == 1, 0, label)
            weighed = tl.load(own + labels + place[None, :], mask=is_number, other=0.0)
        else:
            output = tl.where(gates == 1, 0, label)  # row of G that label reads
            for source in range(gates):
                u = tl.load(past + row.to(tl.int64) * width + labels + source, mask=is_row, other=0.0)
                g = tl.load(gate + output * gates + source, mask=is_label, other=0.0)
                weighed += tanh(u / states)[:, None] * g[None, :]
            weighed += tl.load(gate_bias + output, mask=is_label, other=0.0)[None, :]
        double = 1.0 + tanh(weighed * 0.5)
        merged = double * merged
        if shares is not None:
            merged += (2.0 - double) * future
        if FORM == "paper":
            merged *= 0.5
    decide(
        merged, logits, signal, leave, threshold, row_ids, layers, out_logits, out_layers, layer,
        row, label, is_row, is_label, labels, SIGNAL, LAST, ONCE,
    )  # fmt: skip


def gate_merge(
    past: Tensor,
    labels: int,
    gates: int,
    form: Form,
    signal: Signal,
    threshold: Tensor,
    count: Tensor,
    *,
    future: tuple[Tensor, Tensor | None] | None = None,
    gate: tuple[Tensor, Tensor] | None = None,
    states: int = 1,
    to: Answers | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`reference.gate_merge`: logits fp32 [R, C], signal fp32 [R] and who leaves, bool [R], of the first `count` rows.

    What is of other rows is left as it comes. to: where rows that leave write their answers.

    past: fp32 [R, W], its first C numbers logits, the next `gates` its gates: C or 1, and 0 where form is "none".
    future: shares fp32 [S, R, C], of `imitation` or, S = 1, folded, and their bias fp32 [C] or None for zero; None for
    no future. gate: the authors' G and g, fp32 [k, k] and [k] with k gates. states: how many the past has summed.
    threshold: fp32 [1], on the device. count: int32 [1], at most R. Raises ValueError for anything else.
    """
    check("past", past, torch.float32, -1, -1, like=past)
    rows, width = past.shape
    check_labels(labels)
    check_signal(signal)
    if form not in ("none", "paper", "authors") or gates not in ((0,) if form == "none" else (1, labels)):
        raise ValueError(f"there are {gates} gates for {labels} labels, which does not fit the form {form!r}")
    if width < labels + gates:
        raise ValueError(f"past has {width} columns, expected {labels + gates} or more for {labels} labels")
    if form == "paper" and future is None:
        raise ValueError("the paper's gate weighs a future, but future is None")
    if (form == "authors") != (gate is not None):
        raise ValueError(f"gate is {'None' if gate is None else 'given'}, which does not fit the form {form!r}")
    check("threshold", threshold, torch.float32, 1, like=past)
    check_count("count", count, past)
    shares, bias = future or (None, None)
    if shares is not None:
        check("shares", shares, torch.float32, -1, rows, labels, like=past)
    if bias is not None:
        check("bias", bias, torch.float32, labels, like=past)
    matrix, offset = gate or (None, None)
    if matrix is not None and offset is not None:
        check("gate", matrix, torch.float32, gates, gates, like=past)
        check("gate's bias", offset, torch.float32, gates, like=past)
    if to is not None:
        check_answers(to, rows, labels, past)
    out, value, leave = decisions(rows, labels, past)
    block_c = power_of_two(labels, 2)
    block_r = 16 if block_c <= 256 else 1  # two rows: triton 3.6 spills on sm_90
    launch(
        _gate_merge_kernel,
        (triton.cdiv(rows, block_r),),
        {
            "past": past, "shares": shares, "bias": bias, "gate": matrix, "gate_bias": offset, "threshold": threshold,
            "logits": out, "signal": value, "leave": leave.view(torch.uint8), "count": count, "labels": labels,
            "gates": gates, "width": width, "chunks": 0 if shares is None else shares.shape[0],
            "rows_of_shares": rows, "states": float(states), **arguments(to),
        },
        {"FORM": form, "SIGNAL": signal, "BLOCK_R": block_r, "BLOCK_C": block_c, **constants(to)},
        num_warps=4 if block_c <= 256 else 8,
    )  # fmt: skip
    return out, value, leave
