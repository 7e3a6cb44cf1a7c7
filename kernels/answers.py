"""Where the answers of rows that leave go: written by the kernel that decides who leaves."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .functions import signal_of
from .launch import check


class Answers(NamedTuple):
    """What rows that leave behind `layer` write, and where. P places in all."""

    row_ids: Tensor  # int64 [R]: each row's place
    logits: Tensor  # fp32 [P, C]
    exit_layers: Tensor  # int64 [P]
    layer: int
    layers: Tensor | None = None  # int64 [P]: a row leaves behind its layer or a later one, too
    last: bool = False  # all leave
    once: bool = False  # only who has no answer yet: whose exit layer is 0


def check_answers(to: Answers, rows: int, labels: int, like: Tensor) -> None:
    """ValueError for anything else than `Answers` says."""
    check("row_ids", to.row_ids, torch.int64, rows, like=like)
    check("answers' logits", to.logits, torch.float32, -1, labels, like=like)
    check("exit_layers", to.exit_layers, torch.int64, to.logits.shape[0], like=like)
    if to.layers is not None:
        check("layers", to.layers, torch.int64, to.logits.shape[0], like=like)


def constants(to: Answers | None) -> dict[str, object]:
    """Of a kernel that calls `decide`."""
    return {"LAST": to is not None and to.last, "ONCE": to is not None and to.once}


def arguments(to: Answers | None) -> dict[str, object]:
    """Of a kernel that calls `decide`."""
    if to is None:
        return {"row_ids": None, "layers": None, "out_logits": None, "out_layers": None, "layer": 0}
    return {
        "row_ids": to.row_ids, "layers": to.layers, "out_logits": to.logits, "out_layers": to.exit_layers,
        "layer": to.layer,
    }  # fmt: skip


@triton.jit
def decide(
    numbers, logits, signal, leave, threshold, row_ids, layers, out_logits, out_layers, layer,
    row, label, is_row, is_label, labels, SIGNAL: tl.constexpr, LAST: tl.constexpr, ONCE: tl.constexpr,
):  # fmt: skip
    """Writes fp32 numbers [rows, labels] as logits, what a criterion reads of them, who leaves, and their answers.

    Low entropy leaves, and high confidence or margin; nan stays.
    """
    is_number = is_row[:, None] & is_label[None, :]
    tl.store(logits + row.to(tl.int64)[:, None] * labels + label[None, :], numbers, mask=is_number)
    value = signal_of(numbers, is_label[None, :], SIGNAL)
    tl.store(signal + row, value, mask=is_row)
    limit = tl.load(threshold)
    if SIGNAL == "entropy":
        leaves = value < limit
    else:
        leaves = value > limit
    if row_ids is not None:
        place = tl.load(row_ids + row, mask=is_row, other=0)
        if layers is not None:
            leaves = leaves | (tl.load(layers + place, mask=is_row, other=0) <= layer)
        if LAST:
            leaves = is_row
        gone = leaves & is_row
        if ONCE:
            gone = gone & (tl.load(out_layers + place, mask=is_row, other=0) == 0)
        tl.store(out_layers + place, (place * 0 + layer).to(tl.int64), mask=gone)
        tl.store(out_logits + place[:, None] * labels + label[None, :], numbers, mask=gone[:, None] & is_number)
    tl.store(leave + row, leaves.to(tl.uint8), mask=is_row)


def decisions(rows: int, labels: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Room for logits, signals, and who leaves."""
    return (
        torch.empty(rows, labels, dtype=torch.float32, device=like.device),
        torch.empty(rows, dtype=torch.float32, device=like.device),
        torch.empty(rows, dtype=torch.bool, device=like.device),
    )
