"""Kernels run in Triton's interpreter, which is chosen when they are imported, or on a GPU. bf16 only there: the
interpreter's bf16 arithmetic is silently wrong."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

collect_ignore_glob = [] if importlib.util.find_spec("triton") else ["test_*.py"]  # Linux alone has it
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
ON_GPU = torch.cuda.is_available() and not INTERPRETED
DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if ON_GPU else [])]
# what is left where plain torch happens to be exact: a rounding or two of the results, which are near 1
FLOORS = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def product_in_float64(self: Any, a: Any, b: Any, d: Any, *options: Any) -> Any:
    """`tl.dot` as the interpreter has it, but summed in float64 and rounded once.

    numpy's float32 product sums in another order for another number of rows where OpenBLAS runs certain kernels. On a
    GPU the order is the instruction's, and tests hold rows to the bit.
    """
    product = np.matmul(a.data, b.data, dtype=np.float64).astype(d.data.dtype)
    return type(d)(product + d.data, d.dtype.scalar)


if INTERPRETED and not collect_ignore_glob:
    from triton.runtime import interpreter

    from .quick_interpreter import make_quick

    interpreter.InterpreterBuilder.create_dot = product_in_float64
    make_quick()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    skip = pytest.mark.skip(reason="kernels need a GPU, or TRITON_INTERPRET=1 pytest tests/kernels")
    if not INTERPRETED and not ON_GPU:
        for item in items:
            if "tests/kernels/" in item.nodeid and "report" not in item.nodeid:
                item.add_marker(skip)


@pytest.fixture(params=DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda" if ON_GPU else "cpu")


@pytest.fixture
def draw(device: torch.device) -> Callable[..., Tensor]:
    """Normal numbers that every dtype holds exactly enough: draw(2, 3, dtype=..., scale=...)."""
    generator = torch.Generator().manual_seed(0)

    def numbers(*shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(*shape, generator=generator)).to(dtype).to(device)

    return numbers


@pytest.fixture
def count(device: torch.device) -> Callable[[int], Tensor]:
    return lambda number: torch.tensor([number], dtype=torch.int32, device=device)


def on_cpu(x: Any) -> Any:
    """A tensor, or those of a named tuple, on the CPU; anything else as it is."""
    if isinstance(x, Tensor):
        return x.cpu()
    return type(x)(*map(on_cpu, x)) if hasattr(x, "_fields") else x


@pytest.fixture
def check() -> Callable[[Tensor, Callable[..., Tensor], list[Any]], None]:
    """check(ours, formula, inputs): ours is no further from the formula in float64 than twice what torch in the same
    dtype is, plus a floor."""

    def compare(ours: Tensor, formula: Callable[..., Tensor], inputs: list[Any]) -> None:
        tensors = [on_cpu(x) for x in inputs]
        exact = formula(*(x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for x in tensors))
        plain = formula(*tensors).double()
        assert ours.shape == exact.shape
        if not exact.numel():
            return
        error = (ours.cpu().double() - exact).abs().max()
        allowed = 2 * (plain - exact).abs().max() + FLOORS[ours.dtype] * max(1.0, float(exact.abs().max()))
        assert error <= allowed, f"off by {error:.3g}, allowed {allowed:.3g}"

    return compare
