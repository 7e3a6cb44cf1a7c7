"""Linear layers on the GPU. Where products are in int8, those are the large ones of a layer; all else has 16 bits."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from ..kernels.int8_linear import int8_linear
from ..kernels.linear import linear as linear_kernel
from ..kernels.quantise import Quantised, quantise_rows
from .quantisation import quantise_weight

BESIDE_INT8 = torch.bfloat16  # what states, small products and attention are in where large products are in int8


class Linear(NamedTuple):
    weight: Tensor  # [out, in]
    bias: Tensor  # fp32 [out]


class Int8Linear(NamedTuple):
    numbers: Tensor  # int8 [out, in]
    steps: Tensor  # fp32 [out]: a weight is its step times its number
    sums: Tensor  # int32 [out]: of the rows of numbers
    bias: Tensor  # fp32 [out]


SomeLinear = TypeVar("SomeLinear", Linear, Int8Linear)


def float_of(dtype: torch.dtype) -> torch.dtype:
    """What everything but large products is in, where those are in `dtype`."""
    return BESIDE_INT8 if dtype == torch.int8 else dtype


def prepare_linear(weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Linear:
    """As `OpSet.prepare_linear`. In int8 this one has 16 bits: it is no large product of a layer."""
    return Linear(weight.to(float_of(dtype)).contiguous(), bias.float().contiguous())


def prepare_large(weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Linear | Int8Linear:
    """One of the large products of a layer, in `dtype`."""
    if dtype != torch.int8:
        return prepare_linear(weight, bias, dtype)
    numbers, steps = quantise_weight(weight)
    return Int8Linear(numbers, steps, numbers.sum(1, dtype=torch.int32), bias.float().contiguous())


def parts_of(weights: SomeLinear, first: int, last: int) -> SomeLinear:
    """Of queries (0), keys (1) and values (2) those from `first` to before `last`."""
    width = len(weights.bias) // 3
    return type(weights)(*(part[first * width : last * width] for part in weights))


def run_linear(
    x: Tensor | Quantised,
    weights: Linear | Int8Linear,
    activation: str,
    count: Tensor,
    *,
    source_rows: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    **options: Any,
) -> Tensor:
    """`linear` of the first rows, as many as `count`, int32 [1] on the device, says. options: of `kernels.linear`.

    x: int8 rows only where the product is in int8, and then out_dtype is given. Others are quantised here.
    """
    if isinstance(weights, Linear):
        assert isinstance(x, Tensor)
        options |= {"source_rows": source_rows, "out_dtype": out_dtype}
        return linear_kernel(x, weights.weight, weights.bias, activation, count, **options)
    if isinstance(x, Tensor):
        out_dtype = out_dtype or x.dtype
        x, source_rows = quantise_rows(x, count, source_rows=source_rows), None
    assert out_dtype is not None
    return int8_linear(x, *weights, activation, count, out_dtype, source_rows=source_rows, **options)
