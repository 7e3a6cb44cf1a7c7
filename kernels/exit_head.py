"""logits = x W^T + b, and who leaves, in one launch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .decide import Decided, ExitTest, arguments, check_test, constants, decide
from .dependent import wait_for_turn
from .functions import dot_rows
from .launch import FLOATS, check, check_count, launch, power_of_two, rows_of

FEW_LABELS = 16  # up to here one program per row reads all weights; with more labels one program serves several rows
BLOCK_R = 16


@triton.jit(do_not_specialize=["layer", "signal_rows", "slot_count", "width"])
def _exit_head_kernel(
    x, weight, bias, source_rows, count, size,
    logits, signals, leave, slots, to_logits, to_layers, numbers, by_slot, state_in, state_out, learned,
    labels, layer, slot_count, signal_rows, width, log_labels,
    CLAUSES: tl.constexpr, CODES: tl.constexpr, LAST: tl.constexpr, ONCE: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    wait_for_turn()
    rows = tl.load(count)
    if tl.program_id(0) * BLOCK_R >= rows:
        return
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    label, k = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_K)
    is_row, is_label = row < rows, label < labels
    source = row
    if source_rows is not None:
        source = tl.load(source_rows + row, mask=is_row, other=0)
    if BLOCK_R == 1:
        at = x + tl.sum(source, 0).to(tl.int64) * size
        total = dot_rows(at, weight, size, label, is_label, BLOCK_C, BLOCK_K)[None, :]
    else:
        total = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
        for start in range(0, size, BLOCK_K):
            is_k = start + k < size
            a = tl.load(
                x + source.to(tl.int64)[:, None] * size + start + k[None, :],
                mask=is_row[:, None] & is_k[None, :], other=0.0,
            ).to(tl.float32)  # fmt: skip
            b = tl.load(
                weight + label[None, :] * size + start + k[:, None], mask=is_label[None, :] & is_k[:, None], other=0.0
            )
            total = tl.dot(a, b, total, input_precision="ieee")
    total += tl.load(bias + label, mask=is_label, other=0.0)[None, :]
    decide(
        total, row, label, is_row, is_label, labels, logits, signals, leave, slots, to_logits, to_layers, numbers,
        by_slot, state_in, state_out, learned, layer, slot_count, signal_rows, width, log_labels,
        CLAUSES, CODES, LAST, ONCE,
    )  # fmt: skip


def exit_head(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    test: ExitTest,
    count: Tensor,
    *,
    source_rows: Tensor | None = None,
    out: Decided | None = None,
) -> Decided:
    """Logits of the first `count` rows, who leaves, and the answers of those. Output past `count` is uninitialised.

    x: [T, H], fp32, fp16 or bf16; weight: fp32 [C, H], at most 1,024 labels; bias: fp32 [C]; count: int32 [1], at most
    R. source_rows: int32 [R], the row of x that each row is, or None: R = T. Fills `out`; where it is not given, the
    result has no signals. Raises ValueError for anything else.
    """
    check("x", x, FLOATS, -1, -1, like=x)
    check("weight", weight, torch.float32, -1, x.shape[1], like=x)
    labels, size = weight.shape
    check("bias", bias, torch.float32, labels, like=x)
    check_count("count", count, x)
    rows = rows_of(x, source_rows)
    out = out or Decided.empty(rows, labels, x.device)
    check_test(test, rows, labels, out, x)
    few = labels <= FEW_LABELS
    block_c = power_of_two(labels, 2 if few else 16)
    block_r = 1 if few else BLOCK_R if block_c <= 512 else 4  # with more rows it spills
    launch(
        _exit_head_kernel,
        (triton.cdiv(rows, block_r),),
        {
            "x": x, "weight": weight, "bias": bias, "source_rows": source_rows, "count": count, "size": size,
            **arguments(test, labels, out),
        },
        {
            **constants(test), "BLOCK_R": block_r, "BLOCK_C": block_c,
            "BLOCK_K": 128 if few else 64 if block_c <= 64 else 16,
        },
        num_warps=4 if block_c <= 128 else 8 if block_c <= 512 else 16,  # with half as many warps it spills
        num_stages=2 if block_c <= 256 else 1,
    )  # fmt: skip
    return out
