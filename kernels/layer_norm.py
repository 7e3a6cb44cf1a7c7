"""out = (s - mean(s)) / sqrt(var(s) + eps) weight + bias, s = x + residual, row by row."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import FLOATS, check, check_count, launch, power_of_two


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
def _add_layer_norm_kernel(x, residual, weight, bias, out, count, size, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    if row >= tl.load(count):
        return
    column = tl.arange(0, BLOCK)
    is_column = column < size
    at = row.to(tl.int64) * size + column
    total = tl.load(x + at, mask=is_column, other=0.0).to(tl.float32)
    if residual is not None:
        total += tl.load(residual + at, mask=is_column, other=0.0).to(tl.float32)
    y = normalise(total, is_column, size, weight, bias, column, eps)
    tl.store(out + at, y.to(out.dtype.element_ty), mask=is_column)


def add_layer_norm(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    count: Tensor,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """LayerNorm of x + residual, of the first `count` rows. Output past `count` is uninitialised.

    x: [T, H], fp32, fp16 or bf16; residual: the same shape, any of these dtypes, or None for zero; weight, bias: fp32
    [H];
    count: int32 [1], at most T. Returns x's shape and dtype; or fills `out`. Raises ValueError for anything else.
    """
    check("x", x, FLOATS, -1, -1, like=x)
    rows, size = x.shape
    if residual is not None:
        check("residual", residual, FLOATS, rows, size, like=x)
    check("weight", weight, torch.float32, size, like=x)
    check("bias", bias, torch.float32, size, like=x)
    check_count("count", count, x)
    if out is not None:
        check("out", out, FLOATS, rows, size, like=x)
    else:
        out = torch.empty_like(x)
    block = power_of_two(size, 16)
    launch(
        _add_layer_norm_kernel,
        (rows,),
        {
            "x": x, "residual": residual, "weight": weight, "bias": bias, "out": out, "count": count, "size": size,
            "eps": eps,
        },
        {"BLOCK": block},
        num_warps=warps(block),
    )  # fmt: skip
    return out


def warps(block: int) -> int:
    """Warps for a row that one program holds: about eight numbers per thread."""
    return min(8, max(1, block // 256))
