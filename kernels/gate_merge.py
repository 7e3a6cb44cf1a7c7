"""Past and future weighed by the gate, and who leaves. It is launched after `imitation`.

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

from .decide import Decided, ExitTest, arguments, check_test, constants, decide
from .functions import tanh
from .launch import check, check_count, launch, power_of_two

Form = Literal["none", "paper", "authors"]


@triton.jit(  # the code must not depend on the number of rows nor on the layer
    do_not_specialize=["rows_of_shares", "layer", "signal_rows", "slot_count", "width"]
)
def _gate_merge_kernel(
    past, shares, bias, gate, gate_bias, count, gates, past_width, chunks, rows_of_shares, states,
    logits, signals, leave, slots, to_logits, to_layers, numbers, by_slot, state_in, state_out, learned,
    labels, layer, slot_count, signal_rows, width, log_labels,
    FORM: tl.constexpr, CLAUSES: tl.constexpr, CODES: tl.constexpr, LAST: tl.constexpr, ONCE: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    rows = tl.load(count)
    if tl.program_id(0) * BLOCK_R >= rows:
        return
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    label = tl.arange(0, BLOCK_C)
    is_row, is_label = row < rows, label < labels
    is_number = is_row[:, None] & is_label[None, :]
    own = past + row.to(tl.int64)[:, None] * past_width
    merged = tl.load(own + label[None, :], mask=is_number, other=0.0)
    if shares is not None:
        future = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
        at = shares + row.to(tl.int64)[:, None] * labels + label[None, :]
        for _ in range(chunks):  # in the order of the chunks
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
            column = tl.where(gates == 1, 0, label)
            weighed = tl.load(own + labels + column[None, :], mask=is_number, other=0.0)
        else:
            output = tl.where(gates == 1, 0, label)  # row of G that label reads
            for source in range(gates):
                u = tl.load(past + row.to(tl.int64) * past_width + labels + source, mask=is_row, other=0.0)
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
        merged, row, label, is_row, is_label, labels, logits, signals, leave, slots, to_logits, to_layers, numbers,
        by_slot, state_in, state_out, learned, layer, slot_count, signal_rows, width, log_labels,
        CLAUSES, CODES, LAST, ONCE,
    )  # fmt: skip


def gate_merge(
    past: Tensor,
    labels: int,
    gates: int,
    form: Form,
    test: ExitTest,
    count: Tensor,
    *,
    future: tuple[Tensor, Tensor | None] | None = None,
    gate: tuple[Tensor, Tensor] | None = None,
    states: int = 1,
    out: Decided | None = None,
) -> Decided:
    """`reference.gate_merge` of the first `count` rows, who leaves, and the answers of those.

    Output past `count` is uninitialised. Fills `out`; where it is not given, the result has no signals.

    past: fp32 [R, W]; its first C columns are scores, the next `gates` columns are gates: C or 1, and 0 where form is
    "none". future: shares fp32 [S, R, C], from `imitation` or (S = 1) folded, and their bias fp32 [C] or None for zero;
    None for no future. gate: the authors' G and g, fp32 [k, k] and [k] with k gates. states: over how many states the
    past is summed. count: int32 [1], at most R. Raises ValueError for anything else.
    """
    check("past", past, torch.float32, -1, -1, like=past)
    rows, past_width = past.shape
    if form not in ("none", "paper", "authors") or gates not in ((0,) if form == "none" else (1, labels)):
        raise ValueError(f"there are {gates} gates for {labels} labels, which does not fit the form {form!r}")
    if past_width < labels + gates:
        raise ValueError(f"past has {past_width} columns, expected {labels + gates} or more for {labels} labels")
    if form == "paper" and future is None:
        raise ValueError("the paper's gate weighs a future, but future is None")
    if (form == "authors") != (gate is not None):
        raise ValueError(f"gate is {'None' if gate is None else 'given'}, which does not fit the form {form!r}")
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
    out = out or Decided.empty(rows, labels, past.device)
    check_test(test, rows, labels, out, past)
    block_c = power_of_two(labels, 2)
    block_r = 16 if block_c <= 256 else 1  # two rows: triton 3.6 spills on sm_90
    launch(
        _gate_merge_kernel,
        (triton.cdiv(rows, block_r),),
        {
            "past": past, "shares": shares, "bias": bias, "gate": matrix, "gate_bias": offset, "count": count,
            "gates": gates, "past_width": past_width, "chunks": 0 if shares is None else shares.shape[0],
            "rows_of_shares": rows, "states": float(states), **arguments(test, labels, out),
        },
        {"FORM": form, **constants(test), "BLOCK_R": block_r, "BLOCK_C": block_c},
        num_warps=4 if block_c <= 128 else 8,  # at 256 with four it spills
    )  # fmt: skip
    return out
