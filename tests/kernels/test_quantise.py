from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pfengine.kernels.layer_norm import Others, add_layer_norm, quantised_layer_norm
from pfengine.kernels.quantise import Quantised, quantise_rows
from pfengine.ops.quantisation import fake_quantise_rows

NAN, INF = float("nan"), float("inf")


def values(rows: Quantised) -> Tensor:
    """The numbers that these rows stand for, fp32 on the CPU."""
    numbers, steps, offsets = (part.cpu() for part in rows)
    return (numbers.to(torch.int32) + offsets[:, None]) * steps[:, None]


def check(found: Quantised, x: Tensor) -> None:
    """found is x as `fake_quantise_rows` rounds it. A number halfway between two steps may be rounded either way."""
    x = x.cpu().double()
    low, high = x.amin(1).clamp(max=0), x.amax(1).clamp(min=0)
    steps = torch.where(high > low, (high - low) / 255, 1.0)
    zeros = -low / steps
    torch.testing.assert_close(found.steps.cpu().double(), steps, rtol=1e-6, atol=0)
    offsets = found.offsets.cpu().double()
    assert ((128 - offsets - zeros).abs() <= 0.5 + 1e-4).all()
    places = x / steps[:, None] + 128 - offsets[:, None]
    places = places.clamp(0, 255) - 128
    assert ((found.numbers.cpu() - places).abs() <= 0.5 + 1e-4).all()
    between = ((places - places.floor() - 0.5).abs() < 1e-4) | ((zeros - zeros.floor() - 0.5).abs() < 1e-4)[:, None]
    same = (values(found) - fake_quantise_rows(x)).abs() <= 1e-4 * steps[:, None]
    assert (same | between).all()


@pytest.mark.parametrize(("tokens", "used", "size"), [(1, 1, 1), (5, 3, 64), (3, 0, 60), (0, 0, 8), (5, 5, 60)])
def test_rows(draw: Any, count: Any, dtype: torch.dtype, tokens: int, used: int, size: int) -> None:
    x = draw(tokens, size, dtype=dtype, scale=3)
    x[used:] = NAN  # nobody may read it
    found = quantise_rows(x, count(used))
    assert [part.dtype for part in found] == [torch.int8, torch.float32, torch.int32]
    check(found.first(used), x[:used])


@pytest.mark.parametrize("size", [768, 3072, 4096])
def test_real_sizes(draw: Any, count: Any, size: int) -> None:
    x = draw(3, size, dtype=torch.float16)
    check(quantise_rows(x, count(3)), x)


@pytest.mark.parametrize(
    "row",
    [
        [0.0, 0.0, 0.0], [2.5, 2.5, 2.5], [-2.5, -2.5, -2.5], [1.0, 2.0, 3.0], [-3.0, -2.0, -1.0], [-1.0, 0.0, 254.0],
        [0.0, 255.0, 0.5], [0.0, 255.0, 1.5], [-128.0, 127.0, 0.0], [-127.5, 127.5, 0.0], [-0.0, 1e-30, 0.0],
        [3e38, 0.0, 1e38],
    ],
    ids=str,
)  # fmt: skip
def test_awkward_rows(device: torch.device, count: Any, row: list[float]) -> None:
    """A range begins or ends at zero where all numbers have one sign; a half is rounded to an even number; the largest
    number may lie half a step past the last. 16 numbers: no zeros fill up the block."""
    x = torch.tensor([row], device=device).repeat(1, 6)[:, :16].contiguous()
    found = quantise_rows(x, count(1))
    check(found, x)
    torch.testing.assert_close(values(found), fake_quantise_rows(x.cpu()), rtol=1e-6, atol=1e-37)


@pytest.mark.parametrize("row", [[NAN, 1.0], [1.0, INF], [-INF, 1.0], [INF, -INF], [NAN, INF], [3e38, -3e38]], ids=str)
def test_what_is_not_finite_is_nan_in_the_whole_row(device: torch.device, count: Any, row: list[float]) -> None:
    x = torch.tensor([row, [1.0, 2.0]], device=device)
    found = values(quantise_rows(x, count(2)))
    assert found[0].isnan().all()
    assert fake_quantise_rows(x.cpu())[0].isnan().all()
    torch.testing.assert_close(found[1], torch.tensor([1.0, 2.0]), atol=1e-2, rtol=0)


def test_numbers_too_small_for_a_step_are_zero(device: torch.device, count: Any) -> None:
    found = quantise_rows(torch.tensor([[1e-37, -1e-38]], device=device), count(1))
    assert values(found).tolist() == [[0.0, 0.0]]


def test_rows_by_place_alone_and_together(draw: Any, count: Any, dtype: torch.dtype) -> None:
    x = draw(9, 60, dtype=dtype)
    source_rows = torch.tensor([0, 2, 7, 8], dtype=torch.int32, device=x.device)
    out = Quantised.empty(4, 60, x.device)
    assert quantise_rows(x, count(3), source_rows=source_rows, out=out) is out
    every = quantise_rows(x, count(9))
    for part, whole in zip(out.first(3), every, strict=True):
        assert torch.equal(part, whole[[0, 2, 7]])
    for part, whole in zip(quantise_rows(x[7:8].contiguous(), count(1)), every, strict=True):
        assert torch.equal(part, whole[7:8])


@pytest.mark.parametrize("moved", [False, True])
def test_layer_norm_writes_what_its_result_becomes(draw: Any, count: Any, dtype: torch.dtype, moved: bool) -> None:
    """Rounded to 16 bits before, so that the same int8 rows can be made of the result again."""
    x, weight, bias = draw(5, 60, dtype=dtype), draw(60), draw(60)
    source_rows = torch.tensor([4, 0, 2], dtype=torch.int32, device=x.device) if moved else None
    rows, used = (3, 2) if moved else (5, 4)
    found = Quantised.empty(rows, 60, x.device)
    out = add_layer_norm(x, None, weight, bias, 1e-5, count(used), source_rows=source_rows, quantised=found)
    plain = add_layer_norm(x, None, weight, bias, 1e-5, count(used), source_rows=source_rows)
    assert torch.equal(out[:used], plain[:used])
    for part, expected in zip(found, quantise_rows(out, count(used)), strict=True):
        assert torch.equal(part[:used], expected[:used])


@pytest.mark.parametrize("renormalises", [False, True])
def test_others_are_written_too(draw: Any, count: Any, dtype: torch.dtype, renormalises: bool) -> None:
    x, elsewhere, weight, bias = draw(2, 60, dtype=dtype), draw(4, 60, dtype=dtype), draw(60), draw(60)
    source_rows = torch.tensor([-1, 0, 1, -1], dtype=torch.int32, device=x.device)
    found = Quantised.empty(4, 60, x.device)
    out = add_layer_norm(
        x, None, weight, bias, 1e-5, count(4), source_rows=source_rows, others=Others(elsewhere, None, renormalises),
        quantised=found,
    )  # fmt: skip
    for part, expected in zip(found, quantise_rows(out, count(4)), strict=True):
        assert torch.equal(part, expected)


def test_layer_norm_in_int8_alone(draw: Any, count: Any, dtype: torch.dtype) -> None:
    x, weight, bias = draw(5, 60, dtype=dtype), draw(60), draw(60)
    source_rows = torch.tensor([4, 0, 2], dtype=torch.int32, device=x.device)
    found = quantised_layer_norm(x, weight, bias, 1e-5, count(2), source_rows=source_rows)
    exact = add_layer_norm(x[source_rows.long()].float(), None, weight, bias, 1e-5, count(3))
    for part, expected in zip(found.first(2), quantise_rows(exact, count(2)).first(2), strict=True):
        assert torch.equal(part, expected)


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"x": torch.zeros(2, 4, dtype=torch.int8)}, r"x is torch.int8 \[2, 4\]"),
        ({"count": torch.zeros(2, dtype=torch.int32)}, r"count is torch.int32 \[2\]"),
        ({"source_rows": torch.zeros(2)}, r"source_rows is torch.float32 \[2\]"),
        ({"out": Quantised.empty(3, 4, torch.device("cpu"))}, r"numbers is torch.int8 \[3, 4\].*\[2, 4\]"),
    ],
)
def test_wrong_arguments_are_refused(wrong: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        quantise_rows(**({"x": torch.zeros(2, 4), "count": torch.ones(1, dtype=torch.int32)} | wrong))
