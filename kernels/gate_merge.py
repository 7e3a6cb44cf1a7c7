"""Past and future weighed by the gate, and who leaves.

none     past + future
paper    l past + (1 - l) future,      l = sigmoid(gates)
authors  2 l past + (2 - 2 l) future,  l = sigmoid(G tanh(gates / count) + g)

With few labels `merge_and_decide` ends the launch that computes past and future. There one program decides for a whole
block of rows, which it could not do for many labels in a reasonable time. They have a launch of their own.
"""

from __future__ import annotations

from typing import Any, Literal

import triton
import triton.language as tl

from .decide import decide
from .dependent import wait_for_turn
from .functions import rounded_product, tanh
from .launch import launch, power_of_two

Form = Literal["none", "paper", "authors"]
SHARES, GATES = 8192, 16  # numbers of a tile of shares; gates read at once


@triton.jit
def merge(
    past, shares, offset, gate, gate_bias, first_row, rows, gates, past_width, chunks, rows_of_shares, states, labels,
    FORM: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_G: tl.constexpr,
):  # fmt: skip
    """The scores of BLOCK_R rows from `first_row` on, fp32 [BLOCK_R, BLOCK_C]. See `merge_and_decide`.

    What is needed of memory is asked for at once, as far as there are registers: each round takes about as long.
    """
    row, label = first_row + tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_C)
    is_row, is_label = row < rows, label < labels
    is_number = is_row[:, None] & is_label[None, :]
    own = past + row.to(tl.int64)[:, None] * past_width
    merged = tl.load(own + label[None, :], mask=is_number, other=0.0)
    output, source = tl.where(gates == 1, 0, label), tl.arange(0, BLOCK_G)  # of the gate; a label reads its output
    u_at, g_at = own + labels + source[None, :], gate
    if FORM == "paper":
        weighed = tl.load(own + labels + output[None, :], mask=is_number, other=0.0)
    elif FORM == "authors":
        g_at += output[None, :] * gates + source[:, None]
        u = tl.load(u_at, mask=is_row[:, None] & (source < gates)[None, :], other=0.0)
        g = tl.load(g_at, mask=is_label[None, :] & (source < gates)[:, None], other=0.0)
        weighed = tl.load(gate_bias + output, mask=is_label, other=0.0)[None, :]
    if shares is not None:
        future = tl.zeros((1, BLOCK_C), tl.float32)
        if offset is not None:
            future += tl.load(offset + label, mask=is_label, other=0.0)[None, :]
        place, chunk = first_row * BLOCK_C + tl.arange(0, BLOCK_R * BLOCK_C), tl.arange(0, BLOCK_S)
        total = tl.zeros((BLOCK_R * BLOCK_C,), tl.float32)
        for first in tl.range(0, chunks, BLOCK_S, num_stages=1):
            at = shares + (first + chunk).to(tl.int64)[:, None] * rows_of_shares * BLOCK_C + place[None, :]
            total += tl.sum(tl.load(at, mask=(first + chunk < chunks)[:, None], other=0.0), 0)
        future += tl.where(is_number, tl.reshape(total, (BLOCK_R, BLOCK_C)), 0.0)
    if FORM == "authors":
        weighed += gated(u, g, states)
        for first in tl.range(BLOCK_G, gates, BLOCK_G, num_stages=1):
            is_source = first + source < gates
            u = tl.load(u_at + first, mask=is_row[:, None] & is_source[None, :], other=0.0)
            g = tl.load(g_at + first, mask=is_label[None, :] & is_source[:, None], other=0.0)
            weighed += gated(u, g, states)
    if FORM != "none":
        double = 1.0 + tanh(weighed * 0.5)  # 1 + tanh(z / 2) = 2 sigmoid(z)
        merged = double * merged
        if shares is not None:
            merged += (2.0 - double) * future
        if FORM == "paper":
            merged *= 0.5
    elif shares is not None:
        merged += future
    return merged


@triton.jit
def gated(u, g, states):
    """tanh(u / states) G for u [rows, gates] and G [gates, outputs], in fp32."""
    u = tanh(u / states)
    if g.shape[0] * g.shape[1] <= 64:
        product = tl.sum(rounded_product(u[:, :, None], g[None, :, :]), 1)  # threads store it to one address
    else:
        product = tl.dot(u, g, input_precision="ieee")
    return product


@triton.jit
def merge_and_decide(
    past, shares, offset, gate, gate_bias, first_row, rows, gates, past_width, chunks, rows_of_shares, states,
    logits, signals, leave, slots, to_logits, to_layers, numbers, by_slot, state_in, state_out, learned,
    labels, layer, slot_count, signal_rows, width, log_labels,
    FORM: tl.constexpr, CLAUSES: tl.constexpr, CODES: tl.constexpr, LAST: tl.constexpr, ONCE: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_G: tl.constexpr,
):  # fmt: skip
    """Decide for BLOCK_R rows from `first_row` on.

    past: fp32 [R, past_width]: scores, one per label, then `gates` gates: one, or one per label. shares: fp32 [chunks,
    rows_of_shares, BLOCK_C], whose sum and `offset` are the future, or None. states: the `count` of the authors' form.
    """
    scores = merge(
        past, shares, offset, gate, gate_bias, first_row, rows, gates, past_width, chunks, rows_of_shares, states,
        labels, FORM, BLOCK_R, BLOCK_C, BLOCK_S, BLOCK_G,
    )  # fmt: skip
    row, label = first_row + tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_C)
    is_row, is_label = row < rows, label < labels
    decide(
        scores, row, label, is_row, is_label, labels, logits, signals, leave, slots, to_logits, to_layers, numbers,
        by_slot, state_in, state_out, learned, layer, slot_count, signal_rows, width, log_labels,
        CLAUSES, CODES, LAST, ONCE,
    )  # fmt: skip


@triton.jit(  # the code must not depend on the number of rows nor on the layer
    do_not_specialize=["rows_of_shares", "layer", "signal_rows", "slot_count", "width"]
)
def _gate_merge_kernel(
    past, shares, offset, gate, gate_bias, count, gates, past_width, chunks, rows_of_shares, states,
    logits, signals, leave, slots, to_logits, to_layers, numbers, by_slot, state_in, state_out, learned,
    labels, layer, slot_count, signal_rows, width, log_labels,
    FORM: tl.constexpr, CLAUSES: tl.constexpr, CODES: tl.constexpr, LAST: tl.constexpr, ONCE: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_G: tl.constexpr,
):  # fmt: skip
    wait_for_turn()
    rows, first_row = tl.load(count), tl.program_id(0) * BLOCK_R
    if first_row >= rows:
        return
    merge_and_decide(
        past, shares, offset, gate, gate_bias, first_row, rows, gates, past_width, chunks, rows_of_shares, states,
        logits, signals, leave, slots, to_logits, to_layers, numbers, by_slot, state_in, state_out, learned,
        labels, layer, slot_count, signal_rows, width, log_labels,
        FORM, CLAUSES, CODES, LAST, ONCE, BLOCK_R, BLOCK_C, BLOCK_S, BLOCK_G,
    )  # fmt: skip


def tile_of(rows: int, labels: int, gates: int, chunks: int, decides: bool = True) -> dict[str, int]:
    """Of `merge_and_decide` for so many rows at once; decides: False where another launch does."""
    block_c = power_of_two(labels, 2)
    block_s = min(power_of_two(chunks), max(1, SHARES // (rows * block_c)))
    block_g = GATES if block_c > 8 else power_of_two(gates)
    return {"BLOCK_C": block_c, "BLOCK_S": block_s if decides else 1, "BLOCK_G": block_g if decides else 1}


def launch_gate_merge(rows: int, arguments: dict[str, Any], constants: dict[str, Any]) -> None:
    """Decide by a launch of its own. The arguments and constants are those of the kernel, other than its tile."""
    labels, gates, chunks = (arguments[name] for name in ("labels", "gates", "chunks"))
    block_r = 4 if labels <= 256 else 2 if labels <= 512 else 1
    launch(
        _gate_merge_kernel,
        (triton.cdiv(rows, block_r),),
        arguments,
        {**constants, "BLOCK_R": block_r, **tile_of(block_r, labels, gates, chunks)},
        num_warps=4 if labels <= 256 else 8,
        max_registers=255,  # without a limit it may spill a few to use fewer
    )
