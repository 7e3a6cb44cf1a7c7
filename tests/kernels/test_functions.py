from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from pfengine.kernels.functions import activate

BLOCK = 4096


@triton.jit
def activated(x, y, ACTIVATION: tl.constexpr, PRECISION: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + at, activate(tl.load(x + at), ACTIVATION, PRECISION))


def run(x: Tensor, activation: str, precision: str) -> Tensor:
    padded = F.pad(x, (0, -len(x) % BLOCK))
    y = torch.empty_like(padded)
    activated[(len(padded) // BLOCK,)](padded, y, activation, precision, BLOCK)
    return y[: len(x)]


def numbers(device: torch.device) -> Tensor:
    """Dense where the functions bend, sparse up to the largest and down to the smallest float32; zero, both ways."""
    dense = torch.linspace(-14, 14, 200_001, dtype=torch.float64)
    exponents = torch.linspace(-149, 127.9, 20_001, dtype=torch.float64).exp2()
    return torch.cat([dense, exponents, -exponents, torch.tensor([0.0, -0.0])]).float().to(device)


EXACT: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "tanh": torch.tanh,
    "relu": torch.relu,
    "none": lambda x: x,
}


@pytest.mark.parametrize("precision", ["ieee", "tf32"])
@pytest.mark.parametrize("activation", EXACT)
def test_activations(device: torch.device, activation: str, precision: str) -> None:
    x = numbers(device)
    exact, ours = EXACT[activation](x.double()), run(x, activation, precision).double()
    assert ((ours - exact).abs() <= 5e-7 + 5e-7 * exact.abs()).all()
    assert run(torch.full((1,), float("nan"), device=device), activation, precision).isnan().all()


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])
def test_infinities_do_not_become_finite(device: torch.device, activation: str) -> None:
    """torch makes nan of -inf, and so do these; `short_gelu` makes nan of inf, too."""
    x = torch.tensor([float("inf"), float("-inf")], device=device)
    for precision in ("ieee", "tf32"):
        assert not run(x, activation, precision).isfinite().any()


def test_the_short_gelu_is_right_to_half_a_bit_of_fp16(device: torch.device) -> None:
    """Wherever it is above 2e-3. Below, it is off by less than half a bit of 2e-3."""
    x = numbers(device)
    exact = F.gelu(x.double())
    far = exact.abs() > 2e-3
    error = ((run(x, "gelu", "tf32").double() - exact) / exact).abs()
    assert error[far].max() < 2**-12
