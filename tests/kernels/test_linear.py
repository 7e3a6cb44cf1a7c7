from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pfengine.kernels.linear import linear

ACTIVATIONS = {
    "none": lambda x: x,
    "relu": torch.relu,
    "tanh": torch.tanh,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
}


def formula(x: Tensor, weight: Tensor, bias: Tensor, add: Tensor | None, activation: str) -> Tensor:
    y = ACTIVATIONS[activation](F.linear(x, weight) + bias.to(x.dtype))
    return y if add is None else y + add


@pytest.mark.parametrize(
    ("activation", "tokens", "used", "outputs", "inputs"),
    [
        ("none", 65, 65, 60, 64),
        ("relu", 1, 1, 64, 60),
        ("tanh", 7, 7, 60, 64),
        ("gelu", 63, 40, 64, 60),
        ("gelu_tanh", 1, 0, 60, 64),
        ("gelu_tanh", 7, 7, 64, 60),
        ("none", 63, 40, 64, 60),
    ],
)
def test_linear(
    draw: Any, count: Any, check: Any, dtype: torch.dtype, activation: str, tokens: int, used: int, outputs: int,
    inputs: int,
) -> None:  # fmt: skip
    x, weight = draw(tokens, inputs, dtype=dtype), draw(outputs, inputs, dtype=dtype, scale=inputs**-0.5)
    bias, add = draw(outputs), draw(tokens, outputs, dtype=dtype) if activation == "none" else None
    x[used:] = float("nan")  # nobody may read it
    ours = linear(x, weight, bias, activation, count(used), add=add)
    assert ours.dtype == dtype
    check(ours[:used], formula, [x[:used], weight, bias, add if add is None else add[:used], activation])


def test_rows_by_place(draw: Any, count: Any, check: Any, dtype: torch.dtype, device: torch.device) -> None:
    x, weight, bias = draw(9, 32, dtype=dtype), draw(5, 32, dtype=dtype), draw(5)
    source_rows = torch.tensor([0, 2, 7, 1 << 30], dtype=torch.int32, device=device)  # nobody may read the last one
    ours = linear(x, weight, bias, "tanh", count(3), source_rows=source_rows, out_dtype=torch.float32)
    assert ours.dtype == torch.float32
    check(ours[:3].to(dtype), formula, [x[source_rows[:3].long()], weight, bias, None, "tanh"])


def test_rows_to_add_by_place(draw: Any, count: Any, check: Any, dtype: torch.dtype, device: torch.device) -> None:
    x, weight, bias, add = draw(4, 32, dtype=dtype), draw(5, 32, dtype=dtype), draw(5), draw(9, 8, dtype=dtype)
    source_rows = torch.tensor([0, 2, 7, 8], dtype=torch.int32, device=device)
    out = torch.full((4, 5), 9.0, dtype=dtype, device=device)
    assert linear(x, weight, bias, "none", count(3), add=add, add_source_rows=source_rows, add_from=2, out=out) is out
    check(out[:3], formula, [x[:3], weight, bias, add[source_rows[:3].long(), 2:7], "none"])
    assert (out[3] == 9).all()


def test_rows_beyond_the_reach_of_32_bits(draw: Any, count: Any, check: Any, device: torch.device) -> None:
    """Only the pages that are read take memory, on a CPU."""
    x, weight, bias = torch.empty((1 << 25) + 5, 64, dtype=torch.float16, device=device), draw(5, 64), draw(5)
    assert x.numel() > 2**31
    weight, few = weight.half() / 8, draw(3, 64, dtype=torch.float16)
    x[-3:] = few
    last = torch.arange(len(x) - 3, len(x), dtype=torch.int32, device=device)
    check(linear(x, weight, bias, "none", count(3), source_rows=last), formula, [few, weight, bias, None, "none"])
    ours = linear(few, weight, bias, "none", count(3), add=x, add_source_rows=last)
    check(ours, formula, [few, weight, bias, few[:, :5], "none"])


def test_a_product_in_float32(draw: Any, count: Any, check: Any, dtype: torch.dtype) -> None:
    x, weight, bias = draw(4, 32, dtype=dtype), draw(5, 32), draw(5)
    ours = linear(x, weight, bias, "none", count(4), out_dtype=torch.float32)
    check(ours, formula, [x.float(), weight, bias, None, "none"])


def test_a_row_does_not_depend_on_how_many_there_are(draw: Any, count: Any, dtype: torch.dtype) -> None:
    x, weight, bias = draw(130, 48, dtype=dtype), draw(33, 48, dtype=dtype), draw(33)
    ours = linear(x, weight, bias, "gelu", count(130))
    for rows in (1, 2, 31, 64):
        assert torch.equal(linear(x[:rows].contiguous(), weight, bias, "gelu", count(rows)), ours[:rows])


@pytest.mark.slow
@pytest.mark.parametrize("hidden", [384, 768])
def test_real_sizes(draw: Any, count: Any, check: Any, hidden: int) -> None:
    x, weight = draw(70, hidden, dtype=torch.float16), draw(4 * hidden, hidden, dtype=torch.float16, scale=hidden**-0.5)
    bias = draw(4 * hidden)
    check(linear(x, weight, bias, "gelu", count(70)), formula, [x, weight, bias, None, "gelu"])


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"x": torch.zeros(3, 4, dtype=torch.int64)}, r"x is torch.int64 \[3, 4\]"),
        ({"x": torch.zeros(4, 3).T}, "x is torch.float32"),
        ({"weight": torch.zeros(2, 5)}, r"weight is torch.float32 \[2, 5\].*\[-1, 4\]"),
        ({"weight": torch.zeros(2, 4, dtype=torch.float16)}, "weight is torch.float16"),
        ({"bias": torch.zeros(3)}, r"bias is torch.float32 \[3\]"),
        ({"count": torch.zeros(1, dtype=torch.int64)}, r"count is torch.int64 \[1\]"),
        ({"add": torch.zeros(2, 2)}, r"add is torch.float32 \[2, 2\]"),
        ({"add": torch.zeros(3, 3), "add_from": 2}, "add has 3 columns, expected 2 from column 2 on"),
        ({"out": torch.zeros(3, 3)}, r"out is torch.float32 \[3, 3\]"),
        ({"source_rows": torch.zeros(2)}, r"source_rows is torch.float32 \[2\]"),
    ],
)
def test_wrong_arguments_are_refused(wrong: dict[str, Tensor], text: str) -> None:
    good: dict[str, Any] = {
        "x": torch.zeros(3, 4),
        "weight": torch.zeros(2, 4),
        "bias": torch.zeros(2),
        "activation": "none",
        "count": torch.ones(1, dtype=torch.int32),
    }
    with pytest.raises(ValueError, match=text):
        linear(**(good | wrong))


@pytest.mark.parametrize("activation", ["gelu", "relu"])
@pytest.mark.parametrize(("tokens", "outputs"), [(1, 7), (70, 40), (300, 33)])
def test_gates(
    draw: Any, count: Any, check: Any, dtype: torch.dtype, tokens: int, outputs: int, activation: str
) -> None:
    x, weight = draw(tokens, 48, dtype=dtype), draw(2 * outputs, 48, dtype=dtype, scale=48**-0.5)
    bias = draw(2 * outputs)
    ours = linear(x, weight, bias, activation, count(tokens), gated=True)
    assert ours.shape == (tokens, outputs)

    def gated(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        values = formula(x, weight[::2], bias[::2], None, activation)
        return values * formula(x, weight[1::2], bias[1::2], None, "none")

    check(ours, gated, [x, weight, bias])
    assert torch.equal(linear(x[:1].contiguous(), weight, bias, activation, count(1), gated=True), ours[:1])


def test_gates_come_in_pairs_and_nothing_is_added(draw: Any, count: Any) -> None:
    for outputs, add in ((3, None), (4, draw(2, 4))):
        with pytest.raises(ValueError, match=f"weight has {outputs} rows, expected pairs"):
            linear(draw(2, 8), draw(outputs, 8), draw(outputs), "gelu", count(2), add=add, gated=True)
