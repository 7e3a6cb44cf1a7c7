from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pfengine.kernels.layer_norm import Others, add_layer_norm


def formula(x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    total = x if residual is None else x + residual
    return F.layer_norm(total, total.shape[1:], weight.to(x.dtype), bias.to(x.dtype), eps)


@pytest.mark.parametrize(
    ("tokens", "used", "size", "with_residual"),
    [(1, 1, 1, True), (3, 0, 60, False), (5, 3, 64, True), (0, 0, 64, False), (5, 3, 768, False), (5, 3, 60, True)],
)
def test_add_layer_norm(
    draw: Any, count: Any, check: Any, dtype: torch.dtype, size: int, tokens: int, used: int, with_residual: bool
) -> None:
    x, weight, bias = draw(tokens, size, dtype=dtype), draw(size), draw(size)
    residual = draw(tokens, size, dtype=dtype) if with_residual else None
    x[used:] = float("nan")
    ours = add_layer_norm(x, residual, weight, bias, 1e-5, count(used))
    assert ours.dtype == dtype
    check(ours[:used], formula, [x[:used], None if residual is None else residual[:used], weight, bias, 1e-5])


def test_far_from_zero(draw: Any, count: Any) -> None:
    """The variance comes from distances, not from squares whose difference would be lost."""
    x = 1000 + draw(4, 64)
    one = torch.ones_like(x[0])
    ours = add_layer_norm(x, None, one, 0 * one, 1e-12, count(4))
    exact = F.layer_norm(x.cpu().double(), (64,), eps=1e-12)
    torch.testing.assert_close(ours.cpu().double(), exact, atol=2e-3, rtol=0)


@pytest.mark.parametrize("renormalises", [False, True])
@pytest.mark.parametrize("moved", [False, True])
def test_others_between(draw: Any, count: Any, check: Any, dtype: torch.dtype, renormalises: bool, moved: bool) -> None:
    """Rows 1, 2 and 4 are computed. The others come from elsewhere, and one past the count from nowhere."""
    x, elsewhere, weight, bias = draw(3, 60, dtype=dtype), draw(9, 60, dtype=dtype), draw(60), draw(60)
    source_rows = torch.tensor([-1, 0, 1, -1, 2, 7], dtype=torch.int32, device=x.device)
    own, other = [1, 2, 4], [0, 3]
    at = torch.tensor([8, 0, 0, 5, 0, 0] if moved else range(6), dtype=torch.int32, device=x.device)
    others = Others(elsewhere if moved else elsewhere[:6], at if moved else None, renormalises)
    sums = torch.full((6, 60), float("nan"), dtype=dtype, device=x.device)
    out = add_layer_norm(
        x,
        None,
        weight,
        bias,
        1e-5,
        count(5),
        source_rows=source_rows,
        others=others,
        sums=sums if renormalises else None,
    )
    check(out[own], formula, [x, None, weight, bias, 1e-5])
    kept = elsewhere[at[other].long()]
    if renormalises:
        check(out[other], formula, [kept, None, weight, bias, 1e-5])
        assert torch.equal(sums[own], x)
        assert torch.equal(sums[other], kept)
        assert sums[5].isnan().all()
    else:
        assert torch.equal(out[other], kept)


def test_wrong_arguments_are_refused() -> None:
    x, one, two = torch.zeros(2, 4), torch.ones(4), torch.full((1,), 2, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"weight is torch.float32 \[3\]"):
        add_layer_norm(x, None, one[:3], one, 1e-5, two)
    with pytest.raises(ValueError, match=r"residual is torch.float32 \[1, 4\]"):
        add_layer_norm(x, x[:1], one, one, 1e-5, two)
    with pytest.raises(ValueError, match="source_rows, which marks them, is None"):
        add_layer_norm(x, None, one, one, 1e-5, two, others=Others(x, None, False))
