"""logits = x W^T + b, what a criterion reads of their softmax, and who leaves; in one launch."""

from __future__ import annotations

from typing import Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

from .answers import Answers, arguments, check_answers, constants, decide, decisions
from .functions import dot_rows
from .launch import FLOATS, check, check_count, launch, power_of_two, rows_of

Signal = Literal["entropy", "confidence", "margin"]
SIGNALS = ("entropy", "confidence", "margin")
MAX_LABELS = 1024
FEW_LABELS = 16  # a program a row reads all weights; more of them are read once for several rows
BLOCK_R = 16


@triton.jit
def _exit_head_kernel(
    x, weight, bias, places, threshold, logits, signal, leave, row_ids, layers, out_logits, out_layers,
    count, labels, size, layer,
    SIGNAL: tl.constexpr, LAST: tl.constexpr, ONCE: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    rows = tl.load(count)
    if tl.program_id(0) * BLOCK_R >= rows:
        return
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    label, k = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_K)
    is_row, is_label = row < rows, label < labels
    source = row
    if places is not None:
        source = tl.load(places + row, mask=is_row, other=0)
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
        total, logits, signal, leave, threshold, row_ids, layers, out_logits, out_layers, layer,
        row, label, is_row, is_label, labels, SIGNAL, LAST, ONCE,
    )  # fmt: skip


def exit_head(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    signal: Signal,
    threshold: Tensor,
    count: Tensor,
    *,
    places: Tensor | None = None,
    to: Answers | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits fp32 [R, C], signal fp32 [R] and who leaves, bool [R], of the first `count` rows.

    What is of other rows is left as it comes. to: where rows that leave write their answers.
    x: [T, H], fp32, fp16 or bf16; weight: fp32 [C, H], at most 1,024 labels; bias: fp32 [C]; threshold: fp32 [1], on
    the device; count: int32 [1], at most R. places: int32 [R], which row of x each row is, or None: R = T then.
    Raises ValueError for anything else.
    """
    check("x", x, FLOATS, -1, -1, like=x)
    check("weight", weight, torch.float32, -1, x.shape[1], like=x)
    labels, size = weight.shape
    check("bias", bias, torch.float32, labels, like=x)
    check("threshold", threshold, torch.float32, 1, like=x)
    check_count("count", count, x)
    rows = rows_of(x, places)
    if to is not None:
        check_answers(to, rows, labels, x)
    check_labels(labels)
    check_signal(signal)
    out, value, leave = decisions(rows, labels, x)
    few = labels <= FEW_LABELS
    block_r, block_c = (1, power_of_two(labels, 2)) if few else (BLOCK_R, power_of_two(labels, 16))
    launch(
        _exit_head_kernel,
        (triton.cdiv(rows, block_r),),
        {
            "x": x, "weight": weight, "bias": bias, "places": places, "threshold": threshold, "logits": out,
            "signal": value, "leave": leave.view(torch.uint8), "count": count, "labels": labels, "size": size,
            **arguments(to),
        },
        {
            "SIGNAL": signal, **constants(to), "BLOCK_R": block_r, "BLOCK_C": block_c,
            "BLOCK_K": 128 if few else 64 if block_c <= 64 else 16,
        },
        num_warps=4 if block_c <= 128 else 8,  # at 256 with four, triton 3.6 spills on sm_80
        num_stages=2 if block_c <= 256 else 1,
    )  # fmt: skip
    return out, value, leave


def check_labels(labels: int) -> None:
    if not 1 <= labels <= MAX_LABELS:
        raise ValueError(f"there are {labels} labels, expected 1 to {MAX_LABELS:,}")


def check_signal(signal: str) -> None:
    if signal not in SIGNALS:
        raise ValueError(f"signal is {signal!r}; it must be one of {', '.join(SIGNALS)}")
