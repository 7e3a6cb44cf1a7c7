from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pfengine.kernels.thin_linear import thin_linear


def formula(x: Tensor, weight: Tensor, bias: Tensor, add: Tensor | None) -> Tensor:
    y = F.linear(x.to(weight.dtype), weight, bias)
    return y if add is None else y + add


@pytest.mark.parametrize(
    ("columns", "inner", "rows", "used", "with_add"),
    [
        (1, 32, 7, 6, True),
        (3, 60, 1, 1, False),
        (17, 130, 3, 0, True),
        (64, 200, 7, 6, False),
        (3, 60, 7, 6, True),
        (130, 257, 9, 9, True),
    ],
)
def test_thin_linear(
    draw: Any, count: Any, check: Any, dtype: torch.dtype, columns: int, inner: int, rows: int, used: int,
    with_add: bool,
) -> None:  # fmt: skip
    x, weight, bias = draw(rows, inner, dtype=dtype), draw(columns, inner, scale=inner**-0.5), draw(columns)
    add = draw(rows, columns) if with_add else None
    x[used:] = float("nan")
    ours = thin_linear(x, weight, bias, count(used), add=add)
    assert ours.dtype == torch.float32
    check(ours[:used], formula, [x[:used], weight, bias, add if add is None else add[:used]])


def test_rows_by_place(draw: Any, count: Any, check: Any, dtype: torch.dtype, device: torch.device) -> None:
    x, weight, bias, add = draw(9, 32, dtype=dtype), draw(3, 32), draw(3), draw(6, 8)
    source_rows = torch.tensor([0, 2, 7, 8], dtype=torch.int32, device=device)
    add_source_rows = torch.tensor([5, 1, 0, 9], dtype=torch.int32, device=device)
    out = torch.full((4, 3), 9.0, device=device)
    thin_linear(
        x,
        weight,
        bias,
        count(3),
        source_rows=source_rows,
        add=add,
        add_source_rows=add_source_rows,
        add_from=4,
        out=out,
    )
    check(out[:3], formula, [x[source_rows[:3].long()], weight, bias, add[add_source_rows[:3].long(), 4:7]])
    assert (out[3] == 9).all()


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"weight": torch.zeros(2, 5)}, r"weight is torch.float32 \[2, 5\]"),
        ({"weight": torch.zeros(2, 4, dtype=torch.float16)}, "weight is torch.float16"),
        ({"add": torch.zeros(3, 3), "add_from": 2}, "add has 3 columns, expected 2 from column 2 on"),
        ({"source_rows": torch.zeros(2)}, r"source_rows is torch.float32 \[2\]"),
    ],
)
def test_wrong_arguments_are_refused(wrong: dict[str, Any], text: str) -> None:
    good: dict[str, Any] = {
        "x": torch.zeros(3, 4),
        "weight": torch.zeros(2, 4),
        "bias": torch.zeros(2),
        "count": torch.ones(1, dtype=torch.int32),
    }
    with pytest.raises(ValueError, match=text):
        thin_linear(**(good | wrong))
