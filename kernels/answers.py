"""Rows that leave write their logits and their layer where their answer belongs; who is left stays."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .exit_head import check_labels
from .launch import check, check_count, launch, power_of_two

BLOCK_R = 16


@triton.jit
def _answers_kernel(
    logits, leave, row_ids, layers, out_logits, out_layers, stay, count, labels, layer,
    LAST: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    is_row = row < tl.load(count)
    leaves = tl.load(leave + row, mask=is_row, other=0) != 0
    place = tl.load(row_ids + row, mask=is_row, other=0)
    if layers is not None:
        leaves = leaves | (tl.load(layers + place, mask=is_row, other=0) <= layer)
    if LAST:
        leaves = is_row
    leaves = leaves & is_row
    tl.store(stay + row, (is_row & (leaves == 0)).to(tl.uint8), mask=is_row)
    tl.store(out_layers + place, (place * 0 + layer).to(tl.int64), mask=leaves)
    for first in range(0, labels, BLOCK_C):
        label = first + tl.arange(0, BLOCK_C)
        mask = leaves[:, None] & (label < labels)[None, :]
        x = tl.load(logits + row.to(tl.int64)[:, None] * labels + label[None, :], mask=mask, other=0.0)
        tl.store(out_logits + place[:, None] * labels + label[None, :], x, mask=mask)


def answer(
    logits: Tensor,
    leave: Tensor,
    row_ids: Tensor,
    layer: int,
    out_logits: Tensor,
    out_layers: Tensor,
    count: Tensor,
    *,
    layers: Tensor | None = None,
    last: bool = False,
) -> Tensor:
    """Answers of those of the first `count` rows that leave behind `layer`; who stays, bool [R].

    logits: fp32 [R, C]; leave: bool [R]; row_ids: int64 [R], each row's place in out_logits, fp32 [P, C], and
    out_layers, int64 [P]; layers: int64 [P], where a row leaves behind its layer or a later one, too; last: all leave;
    count: int32 [1], at most R. Raises ValueError for anything else.
    """
    check("logits", logits, torch.float32, -1, -1, like=logits)
    rows, labels = logits.shape
    check_labels(labels)
    check("leave", leave, torch.bool, rows, like=logits)
    check("row_ids", row_ids, torch.int64, rows, like=logits)
    check("out_logits", out_logits, torch.float32, -1, labels, like=logits)
    places = out_logits.shape[0]
    check("out_layers", out_layers, torch.int64, places, like=logits)
    if layers is not None:
        check("layers", layers, torch.int64, places, like=logits)
    check_count("count", count, logits)
    stay = torch.zeros_like(leave)
    launch(
        _answers_kernel,
        (triton.cdiv(rows, BLOCK_R),),
        {
            "logits": logits, "leave": leave.view(torch.uint8), "row_ids": row_ids, "layers": layers,
            "out_logits": out_logits, "out_layers": out_layers, "stay": stay.view(torch.uint8), "count": count,
            "labels": labels, "layer": layer,
        },
        {"LAST": last, "BLOCK_R": BLOCK_R, "BLOCK_C": min(128, power_of_two(labels, 2))},
    )  # fmt: skip
    return stay
