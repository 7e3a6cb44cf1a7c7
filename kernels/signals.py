"""A signal of scores by itself, for callers that do not decide in a kernel."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .decide import check_labels
from .dependent import wait_for_turn
from .functions import SIGNALS, signal_of
from .launch import check, launch, power_of_two

NAMES = SIGNALS[:8]  # those of one exit's scores


@triton.jit
def _signals_kernel(
    logits, out, rows, labels, temperature, log_labels,
    SIGNAL: tl.constexpr, TEMPERED: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    wait_for_turn()
    row, label = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_C)
    is_row, is_label = row < rows, label < labels
    scores = tl.load(
        logits + row.to(tl.int64)[:, None] * labels + label[None, :],
        mask=is_row[:, None] & is_label[None, :],
        other=0.0,
    )
    tl.store(out + row, signal_of(scores, is_label[None, :], temperature, log_labels, SIGNAL, TEMPERED), mask=is_row)


def signals(name: str, logits: Tensor, temperature: float = 1.0) -> Tensor:
    """`ops.decide.signal`: fp32 [R, C], at most 1,024 labels -> fp32 [R]. Raises ValueError for anything else."""
    check("logits", logits, torch.float32, -1, -1, like=logits)
    rows, labels = logits.shape
    check_labels(labels)
    if name not in NAMES:
        raise ValueError(f"signal is {name!r}; it must be one of {', '.join(NAMES)}")
    out = torch.empty(rows, dtype=torch.float32, device=logits.device)
    block_c = power_of_two(labels, 2)
    block_r = 16 if block_c <= 256 else 1
    launch(
        _signals_kernel,
        (triton.cdiv(rows, block_r),),
        {
            "logits": logits, "out": out, "rows": rows, "labels": labels, "temperature": float(temperature),
            "log_labels": math.log(labels),
        },
        {"SIGNAL": SIGNALS.index(name), "TEMPERED": temperature != 1, "BLOCK_R": block_r, "BLOCK_C": block_c},
    )  # fmt: skip
    return out
