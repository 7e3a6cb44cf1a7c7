"""out = (s - mean(s)) / sqrt(var(s) + eps) weight + bias, s = x + residual, row by row.

Where only some tokens are computed, the same launch puts the others between them: as they are, or normalised anew.
Where large products are in int8, it writes the rows that the next one reads, too.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .dependent import wait_for_turn
from .launch import FLOATS, check, check_count, launch, power_of_two, rows_of, warps
from .quantise import Quantised, store_quantised
from .scratch import empty


@triton.jit
def normalise(x, is_column, size, weight, bias, column, eps):
    """LayerNorm of one row. x: fp32 [BLOCK], zero beyond the row."""
    mean = tl.sum(x, 0) / size
    distance = tl.where(is_column, x - mean, 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(distance * distance, 0) / size + eps)
    w = tl.load(weight + column, mask=is_column, other=0.0)
    b = tl.load(bias + column, mask=is_column, other=0.0)
    return distance * scale * w + b


@triton.jit
def _add_layer_norm_kernel(
    x, residual, source_rows, others, other_rows, weight, bias, out, sums, numbers, steps, offsets, count, size, eps,
    RENORMALISES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    wait_for_turn()
    row = tl.program_id(0)
    if row >= tl.load(count):
        return
    column = tl.arange(0, BLOCK)
    is_column = column < size
    at, source, is_own = row.to(tl.int64) * size + column, row, is_column
    if source_rows is not None:
        source = tl.load(source_rows + row)
        is_other = column * 0 + source < 0
        is_own = is_column & (is_other == 0)
    total = tl.load(x + source.to(tl.int64) * size + column, mask=is_own, other=0.0).to(tl.float32)
    if residual is not None:
        total += tl.load(residual + at, mask=is_column, other=0.0).to(tl.float32)
    if others is not None:
        other = row
        if other_rows is not None:
            other = tl.load(other_rows + row)
        kept = tl.load(others + other.to(tl.int64) * size + column, mask=is_column & is_other, other=0.0)
        total = tl.where(is_other, kept.to(tl.float32), total)
    y = total
    if weight is not None:
        y = normalise(total, is_column, size, weight, bias, column, eps)
    if others is not None and not RENORMALISES:
        y = tl.where(is_other, total, y)
    if out is not None:
        rounded = y.to(out.dtype.element_ty)
        tl.store(out + at, rounded, mask=is_column)
        y = rounded.to(tl.float32)  # so that the same int8 numbers can be made of out again
    if numbers is not None:
        store_quantised(y, numbers, steps, offsets, row, size, BLOCK)
    if sums is not None:
        tl.store(sums + at, total.to(sums.dtype.element_ty), mask=is_column)


class Others(NamedTuple):
    """Rows that are not computed from x, and where they come from."""

    x: Tensor  # [A, H], any float dtype
    rows: Tensor | None  # int32 [R]: the row of x that each row is; None: the same, and A is R
    renormalises: bool  # is LayerNorm applied to them? Otherwise they are copied


def add_layer_norm(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    count: Tensor,
    *,
    out: Tensor | None = None,
    source_rows: Tensor | None = None,
    others: Others | None = None,
    sums: Tensor | None = None,
    quantised: Quantised | None = None,
) -> Tensor:
    """LayerNorm of x + residual, of the first `count` rows. Output past `count` is uninitialised.

    x: [T, H], fp32, fp16 or bf16; residual: [R, H], any of these dtypes, or None for zero; weight, bias: fp32 [H], or
    None both, and nothing is normalised;
    count: int32 [1], at most R. source_rows: int32 [R], the row of x that each row is, or None: R = T. With `others`
    source_rows is given, and -1 in it marks a row of those. sums: any float [R, H], to be filled with what LayerNorm is
    applied to. quantised: [R, H], to be filled with what `quantise_rows` makes of the result. Returns [R, H] of x's
    dtype; or fills `out`. Raises ValueError for anything else.
    """
    if out is None:
        out = empty(rows_of(x, source_rows), x.shape[-1], dtype=x.dtype, device=x.device)
    _launch(x, residual, weight, bias, eps, count, out, source_rows, others, sums, quantised)
    return out


def quantised_layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, count: Tensor, *, source_rows: Tensor | None = None
) -> Quantised:
    """LayerNorm of the first `count` rows of x in int8 alone, not rounded to x's dtype before.

    Arguments and errors are those of `add_layer_norm`. Returns R rows; those past `count` are uninitialised.
    """
    quantised = Quantised.empty(rows_of(x, source_rows), x.shape[-1], x.device)
    _launch(x, None, weight, bias, eps, count, None, source_rows, None, None, quantised)
    return quantised


def _launch(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    count: Tensor,
    out: Tensor | None,
    source_rows: Tensor | None,
    others: Others | None,
    sums: Tensor | None,
    quantised: Quantised | None,
) -> None:
    """Check the arguments, and launch the kernel."""
    check("x", x, FLOATS, -1, -1, like=x)
    rows, size = rows_of(x, source_rows), x.shape[1]
    for name, part in (("residual", residual), ("out", out), ("sums", sums)):
        if part is not None:
            check(name, part, FLOATS, rows, size, like=x)
    for name, part in (("weight", weight), ("bias", bias)):
        if part is not None:
            check(name, part, torch.float32, size, like=x)
    if (weight is None) != (bias is None):
        raise ValueError("weight and bias must be given together")
    check_count("count", count, x)
    if quantised is not None:
        quantised.check(rows, size, like=x)
    if others is not None:
        check("others.x", others.x, FLOATS, rows if others.rows is None else -1, size, like=x)
        if others.rows is not None:
            check("others.rows", others.rows, torch.int32, rows, like=x)
        if source_rows is None:
            raise ValueError("there are other rows than those of x, but source_rows, which marks them, is None")
    block = power_of_two(size, 16)
    written = dict.fromkeys(Quantised._fields) if quantised is None else quantised._asdict()
    launch(
        _add_layer_norm_kernel,
        (rows,),
        {
            "x": x, "residual": residual, "source_rows": source_rows, "others": None if others is None else others.x,
            "other_rows": None if others is None else others.rows, "weight": weight, "bias": bias, "out": out,
            "sums": sums, **written, "count": count, "size": size, "eps": eps,
        },
        {"RENORMALISES": others is not None and others.renormalises, "BLOCK": block},
        num_warps=warps(block),
    )  # fmt: skip
