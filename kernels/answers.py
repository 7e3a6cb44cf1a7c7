"""Writing the answers of rows that a caller lets go."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .dependent import wait_for_turn
from .launch import check, check_count, launch, power_of_two

BLOCK_R = 16


@triton.jit(do_not_specialize=["layer"])
def _answer_kernel(
    gone, logits, source_rows, slots, to_logits, to_layers, count, labels, layer,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    wait_for_turn()
    row, rows = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R), tl.load(count)
    is_gone = row < rows
    is_gone = is_gone & (tl.load(gone + row, mask=is_gone, other=0) != 0)
    slot, source = tl.load(slots + row, mask=is_gone, other=0), row
    if source_rows is not None:
        source = tl.load(source_rows + row, mask=is_gone, other=0)
    tl.store(to_layers + slot, (slot * 0 + layer).to(tl.int64), mask=is_gone)
    for first in range(0, labels, BLOCK_C):
        label = first + tl.arange(0, BLOCK_C)
        is_score = is_gone[:, None] & (label < labels)[None, :]
        scores = tl.load(logits + source.to(tl.int64)[:, None] * labels + label[None, :], mask=is_score, other=0.0)
        tl.store(to_logits + slot[:, None] * labels + label[None, :], scores, mask=is_score)


def answer(
    gone: Tensor, logits: Tensor, slots: Tensor, count: Tensor, layer: int, to_logits: Tensor, to_layers: Tensor,
    *, source_rows: Tensor | None = None,
) -> None:  # fmt: skip
    """For each of the first `count` rows r that is gone, write to_logits[slots[r]] and to_layers[slots[r]].

    gone: bool [R]; slots: int64 [R]; logits: fp32 [A, C]; source_rows: int32 [R], the row of logits that each row has,
    or None: row r has row r, and A = R; count: int32 [1], at most R; to_logits: fp32 [P, C]; to_layers: int64 [P].
    Raises ValueError for anything else.
    """
    rows = gone.shape[0]
    check("gone", gone, torch.bool, rows, like=gone)
    check("slots", slots, torch.int64, rows, like=gone)
    check("logits", logits, torch.float32, rows if source_rows is None else -1, -1, like=gone)
    if source_rows is not None:
        check("source_rows", source_rows, torch.int32, rows, like=gone)
    labels = logits.shape[1]
    check("to_logits", to_logits, torch.float32, -1, labels, like=gone)
    check("to_layers", to_layers, torch.int64, to_logits.shape[0], like=gone)
    check_count("count", count, gone)
    launch(
        _answer_kernel,
        (triton.cdiv(rows, BLOCK_R),),
        {
            "gone": gone.view(torch.uint8), "logits": logits, "source_rows": source_rows, "slots": slots,
            "to_logits": to_logits, "to_layers": to_layers, "count": count, "labels": labels, "layer": layer,
        },
        {"BLOCK_R": BLOCK_R, "BLOCK_C": min(64, power_of_two(labels, 2))},
    )  # fmt: skip
