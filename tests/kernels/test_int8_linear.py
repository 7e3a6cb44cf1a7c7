from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pfengine.kernels.int8_linear import MAX_INNER, int8_linear
from pfengine.kernels.quantise import Quantised, quantise_rows
from pfengine.ops.quantisation import quantise_weight

from .test_linear import ACTIVATIONS

Weight = tuple[Tensor, Tensor, Tensor, Tensor]  # numbers, steps, sums, bias
Whole = Callable[..., Tensor]


@pytest.fixture
def whole(device: torch.device) -> Whole:
    """whole(low, high, *shape): whole numbers from low to high, int64."""
    generator = torch.Generator().manual_seed(0)
    return lambda low, high, *shape: torch.randint(low, high + 1, shape, generator=generator).to(device)


def plain(numbers: Tensor, offsets: Tensor, weight: Tensor) -> tuple[Quantised, Weight]:
    """Arguments whose steps are 1 and whose bias is 0, so that the result is the sum of the products."""
    ones, nothing = (torch.full((len(weight),), number, device=weight.device) for number in (1.0, 0.0))
    rows = Quantised(numbers.to(torch.int8), torch.ones(len(numbers), device=weight.device), offsets.to(torch.int32))
    return rows, (weight.to(torch.int8), ones, weight.sum(1).to(torch.int32), nothing)


def product(numbers: Tensor, offsets: Tensor, weight: Tensor) -> Tensor:
    """Exact, then rounded to fp32 once."""
    return ((numbers + offsets[:, None]).double() @ weight.double().T).float()


@pytest.mark.parametrize(
    ("tokens", "used", "outputs", "inputs"),
    [(1, 1, 1, 1), (70, 65, 60, 64), (63, 40, 33, 200), (3, 0, 60, 128), (0, 0, 5, 8), (130, 130, 17, 384)],
)
def test_sums_are_exact(whole: Whole, count: Any, tokens: int, used: int, outputs: int, inputs: int) -> None:
    numbers, weight = whole(-128, 127, tokens, inputs), whole(-127, 127, outputs, inputs)
    offsets = whole(-127, 128, tokens)
    rows, weights = plain(numbers, offsets, weight)
    rows.steps[used:] = float("nan")  # nobody may read them
    ours = int8_linear(rows, *weights, "none", count(used), torch.float32)
    assert torch.equal(ours[:used], product(numbers, offsets, weight)[:used])


@pytest.mark.parametrize(("number", "offset"), [(127, 128), (-128, -127), (-128, 128), (127, -127)])
def test_the_largest_sums(device: torch.device, count: Any, number: int, offset: int) -> None:
    """255 times 127, 4,096 times, is more than 24 bits hold: rounded to fp32 once, and not on the way."""
    numbers, offsets = torch.full((2, 4096), number, device=device), torch.full((2,), offset, device=device)
    weight = torch.full((3, 4096), 127, device=device)
    weight[1] = -127
    weight[2, ::2] = -127
    rows, weights = plain(numbers, offsets, weight)
    ours = int8_linear(rows, *weights, "none", count(2), torch.float32)
    assert torch.equal(ours, product(numbers, offsets, weight))


def of_floats(draw: Any, tokens: int, outputs: int, inputs: int) -> tuple[Quantised, Weight, Tensor, Tensor]:
    """Arguments, and the rows and the matrix that they stand for."""
    x, count = draw(tokens, inputs), torch.full((1,), tokens, dtype=torch.int32)
    rows = quantise_rows(x, count.to(x.device))
    numbers, steps = quantise_weight(draw(outputs, inputs, scale=inputs**-0.5))
    read = (rows.numbers.int() + rows.offsets[:, None]) * rows.steps[:, None]
    weights = numbers, steps, numbers.sum(1, dtype=torch.int32), draw(outputs)
    return rows, weights, read, numbers.float() * steps[:, None]


def formula(x: Tensor, matrix: Tensor, bias: Tensor, add: Tensor | None, activation: str) -> Tensor:
    y = ACTIVATIONS[activation](F.linear(x, matrix, bias))
    return y if add is None else y + add


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("tokens", "outputs", "inputs"), [(65, 60, 48), (1, 7, 130)])
def test_activations(
    draw: Any, count: Any, check: Any, dtype: torch.dtype, activation: str, tokens: int, outputs: int, inputs: int
) -> None:
    rows, weights, x, matrix = of_floats(draw, tokens, outputs, inputs)
    ours = int8_linear(rows, *weights, activation, count(tokens), dtype)
    assert ours.dtype == dtype
    check(ours, formula, [x, matrix, weights[3], None, activation])


def test_rows_by_place(draw: Any, count: Any, device: torch.device) -> None:
    rows, weights, _, _ = of_floats(draw, 9, 5, 40)
    every = int8_linear(rows, *weights, "tanh", count(9), torch.float32)
    source_rows = torch.tensor([0, 2, 7, 8], dtype=torch.int32, device=device)
    ours = int8_linear(rows, *weights, "tanh", count(3), torch.float32, source_rows=source_rows)
    assert ours.shape == (4, 5)
    assert torch.equal(ours[:3], every[[0, 2, 7]])


def test_rows_to_add_by_place(draw: Any, count: Any, check: Any, dtype: torch.dtype, device: torch.device) -> None:
    rows, weights, x, matrix = of_floats(draw, 4, 5, 40)
    add, source_rows = draw(9, 8, dtype=dtype), torch.tensor([0, 2, 7, 8], dtype=torch.int32, device=device)
    out = torch.full((4, 5), 9.0, dtype=dtype, device=device)
    options = {"add": add, "add_source_rows": source_rows, "add_from": 2, "out": out}
    assert int8_linear(rows, *weights, "none", count(3), dtype, **options) is out
    check(out[:3], formula, [x[:3], matrix, weights[3], add[source_rows[:3].long(), 2:7].float(), "none"])
    assert (out[3] == 9).all()


@pytest.mark.parametrize(("tokens", "outputs"), [(1, 7), (70, 40), (300, 33)])
def test_gates(draw: Any, count: Any, check: Any, dtype: torch.dtype, tokens: int, outputs: int) -> None:
    rows, weights, x, matrix = of_floats(draw, tokens, 2 * outputs, 48)
    ours = int8_linear(rows, *weights, "gelu", count(tokens), dtype, gated=True)

    def gated(x: Tensor, matrix: Tensor, bias: Tensor) -> Tensor:
        return F.gelu(F.linear(x, matrix[::2], bias[::2])) * F.linear(x, matrix[1::2], bias[1::2])

    check(ours, gated, [x, matrix, weights[3]])


def test_a_row_does_not_depend_on_how_many_there_are(draw: Any, count: Any) -> None:
    """Of each of the tiles, which differ in BLOCK_K too."""
    rows, weights, _, _ = of_floats(draw, 300, 33, 48)
    ours = int8_linear(rows, *weights, "gelu", count(300), torch.float32)
    for some in (1, 2, 64, 130):
        alone = int8_linear(rows.first(some), *weights, "gelu", count(some), torch.float32)
        assert torch.equal(alone, ours[:some])


def test_a_row_that_is_not_finite_is_nan_and_no_other(draw: Any, count: Any) -> None:
    rows, weights, _, _ = of_floats(draw, 3, 5, 40)
    clean = int8_linear(rows, *weights, "none", count(3), torch.float32)
    rows.steps[1] = float("nan")
    ours = int8_linear(rows, *weights, "none", count(3), torch.float32)
    assert ours[1].isnan().all()
    assert torch.equal(ours[[0, 2]], clean[[0, 2]])


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"x": Quantised.empty(3, 5, torch.device("cpu"))}, r"numbers is torch.int8 \[3, 5\].*\[-1, 4\]"),
        ({"weight": torch.zeros(2, 4)}, r"weight is torch.float32 \[2, 4\]"),
        ({"weight": torch.zeros(2, MAX_INNER + 1, dtype=torch.int8)}, "weight has 65537 columns, expected at most"),
        ({"weight_steps": torch.zeros(3)}, r"weight_steps is torch.float32 \[3\]"),
        ({"weight_sums": torch.zeros(2)}, r"weight_sums is torch.float32 \[2\]"),
        ({"bias": torch.zeros(3)}, r"bias is torch.float32 \[3\]"),
        ({"count": torch.zeros(2, dtype=torch.int32)}, r"count is torch.int32 \[2\]"),
        ({"add": torch.zeros(2, 2)}, r"add is torch.float32 \[2, 2\]"),
        ({"out": torch.zeros(3, 3)}, r"out is torch.float32 \[3, 3\]"),
        ({"source_rows": torch.zeros(2)}, r"source_rows is torch.float32 \[2\]"),
    ],
)
def test_wrong_arguments_are_refused(wrong: dict[str, Any], text: str) -> None:
    good: dict[str, Any] = {
        "x": Quantised.empty(3, 4, torch.device("cpu")), "weight": torch.zeros(2, 4, dtype=torch.int8),
        "weight_steps": torch.zeros(2), "weight_sums": torch.zeros(2, dtype=torch.int32), "bias": torch.zeros(2),
        "activation": "none", "count": torch.ones(1, dtype=torch.int32), "out_dtype": torch.float32,
    }  # fmt: skip
    with pytest.raises(ValueError, match=text):
        int8_linear(**(good | wrong))
