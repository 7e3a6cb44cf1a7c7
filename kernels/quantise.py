"""Rows in int8, each with a step and an offset of its own: what `ops.quantisation.fake_quantise_rows` rounds to."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .dependent import wait_for_turn
from .launch import FLOATS, check, check_count, launch, power_of_two, rows_of, warps
from .scratch import empty


class Quantised(NamedTuple):
    """Rows as step (number + offset). The offset is 128 less the zero point: tensor cores multiply signed numbers."""

    numbers: Tensor  # int8 [T, K]
    steps: Tensor  # fp32 [T]; nan where a number of the row, or its range, is not finite
    offsets: Tensor  # int32 [T], -127 to 128

    @classmethod
    def empty(cls, rows: int, size: int, device: torch.device) -> Quantised:
        kinds = ((rows, size), torch.int8), ((rows,), torch.float32), ((rows,), torch.int32)
        return cls(*(empty(*shape, dtype=dtype, device=device) for shape, dtype in kinds))

    def first(self, rows: int) -> Quantised:
        return Quantised(*(part[:rows] for part in self))

    def check(self, rows: int, size: int, like: Tensor) -> None:
        """Raise ValueError unless these are so many rows (-1: any) of this size, on the device of `like`."""
        check("numbers", self.numbers, torch.int8, rows, size, like=like)
        check("steps", self.steps, torch.float32, len(self.numbers), like=like)
        check("offsets", self.offsets, torch.int32, len(self.numbers), like=like)


@triton.jit
def store_quantised(x, numbers, steps, offsets, row, size, BLOCK: tl.constexpr):
    """Write one row, fp32 [BLOCK], zero beyond the row, as `Quantised` has it.

    Written as fma, so that compilers cannot choose the bits: every kernel makes the same of the same row.
    """
    column = tl.arange(0, BLOCK)
    finite = tl.abs(x) < float("inf")  # not of nan either, which a maximum would drop
    low = tl.minimum(tl.min(x, 0), 0.0)
    high = tl.maximum(tl.max(tl.where(finite, x, float("inf")), 0), 0.0)
    odd = (high - low < float("inf")) == 0
    low = tl.where(odd, 0.0, low)
    # `/` rounds as it likes; of smaller rows the inverse would be infinite
    step = tl.where(high - low > 1e-35, tl.math.div_rn(high - low, low * 0 + 255.0), 1.0)
    inverse = tl.math.div_rn(low * 0 + 1.0, step)
    zero = tl.fma(-low, inverse, 12582912.0) - 12582912.0  # 1.5 times 2^23, which rounds to whole numbers, half to even
    y = tl.where(odd, 0.0, tl.fma(x, inverse, zero))
    y = tl.minimum(tl.maximum(y, 0.0), 255.0)
    number = (y + 12582912.0) - 12583040.0  # rounded, less 128
    tl.store(numbers + row.to(tl.int64) * size + column, number.to(tl.int8), mask=column < size)
    tl.store(steps + row, tl.where(odd, float("nan"), step))
    tl.store(offsets + row, 128 - zero.to(tl.int32))


@triton.jit
def scaled(total, steps, offsets, row, is_row, weight_steps, weight_sums, column, is_column):
    """A tile of sums of products of numbers, int32, as the product that they stand for, fp32."""
    offset = tl.load(offsets + row, mask=is_row, other=0)[:, None]
    total += offset * tl.load(weight_sums + column, mask=is_column, other=0)[None, :]
    step = tl.load(steps + row, mask=is_row, other=0.0)[:, None]
    return total.to(tl.float32) * (step * tl.load(weight_steps + column, mask=is_column, other=0.0)[None, :])


@triton.jit
def _quantise_rows_kernel(x, source_rows, numbers, steps, offsets, count, size, BLOCK: tl.constexpr):
    wait_for_turn()
    row = tl.program_id(0)
    if row >= tl.load(count):
        return
    column, source = tl.arange(0, BLOCK), row
    if source_rows is not None:
        source = tl.load(source_rows + row)
    values = tl.load(x + source.to(tl.int64) * size + column, mask=column < size, other=0.0).to(tl.float32)
    store_quantised(values, numbers, steps, offsets, row, size, BLOCK)


def quantise_rows(
    x: Tensor, count: Tensor, *, source_rows: Tensor | None = None, out: Quantised | None = None
) -> Quantised:
    """The first `count` rows of x in int8. Output past `count` is uninitialised.

    x: [T, K], fp32, fp16 or bf16; count: int32 [1], at most R. source_rows: int32 [R], the row of x that each row is,
    or None: R = T. Returns R rows, or fills `out`. Raises ValueError for anything else.
    """
    check("x", x, FLOATS, -1, -1, like=x)
    check_count("count", count, x)
    rows, size = rows_of(x, source_rows), x.shape[1]
    if out is None:
        out = Quantised.empty(rows, size, x.device)
    out.check(rows, size, like=x)
    block = power_of_two(size, 16)
    arguments = {"x": x, "source_rows": source_rows, **out._asdict(), "count": count, "size": size}
    launch(_quantise_rows_kernel, (rows,), arguments, {"BLOCK": block}, num_warps=warps(block))
    return out
