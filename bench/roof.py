"""The GEMM roof: the best rate of a large matrix product on this machine, with pfengine's kernels or torch's."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from pfengine import extension
from pfengine.api import DTYPES
from pfengine.ops import cpu_torch

ROWS, INPUTS, OUTPUTS = 512, 3072, 768
REPEATS = 30


@functools.cache
def gemm_gflops(precision: str) -> dict[str, float]:
    """The best GFLOP/s of each library that has such a product here, and the larger of them as "roof"."""
    generator = torch.Generator().manual_seed(0)
    weight, x = (torch.randn(shape, generator=generator) for shape in ((OUTPUTS, INPUTS), (ROWS, INPUTS)))
    found = {}
    with torch.inference_mode():
        for name, product in _products(precision, weight, x):
            times = []
            for _ in range(REPEATS):
                start = time.perf_counter()
                product()
                times.append(time.perf_counter() - start)
            found[name] = 2e-9 * ROWS * INPUTS * OUTPUTS / min(times)
    return found | {"roof": max(found.values())}


def _products(precision: str, weight: Tensor, x: Tensor) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    dtype, bias = DTYPES[precision], torch.zeros(OUTPUTS)
    if extension.has_cpu():
        from pfengine.ops import cpu

        prepared = cpu.prepare_linear(weight, bias, dtype)
        yield "pfengine", lambda: cpu.linear(x, prepared, "none")
    if dtype.is_floating_point and not cpu_torch.has_packed_linear(dtype):
        plain = [t.to(dtype) for t in (x, weight)]
        yield "torch", lambda: torch.nn.functional.linear(*plain)
    elif dtype.is_floating_point:
        inputs, bias = x.to(dtype), bias.to(dtype)
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.to(dtype), ROWS)
        pointwise = torch.ops.mkldnn._linear_pointwise.default
        yield "torch", lambda: pointwise(inputs, packed, bias, "none", [], "")
    elif torch.backends.mkldnn.is_available():
        numbers = (weight * 30).clamp(-127, 127).to(torch.int8)
        packed = torch.ops.onednn.qlinear_prepack(numbers, None)
        scale, zero = torch.full((OUTPUTS,), 1 / 30), torch.zeros(OUTPUTS, dtype=torch.int32)
        unsigned = (x * 30 + 128).clamp(0, 255).to(torch.uint8)
        product = torch.ops.onednn.qlinear_pointwise.default
        yield (
            "torch",
            lambda: product(unsigned, 1 / 30, 128, packed, scale, zero, None, 1.0, 0, torch.float32, "none", [], ""),
        )
