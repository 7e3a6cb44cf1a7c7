from __future__ import annotations

from typing import Any

import pytest
import torch

from pfengine.kernels.mean import maximum, mean


@pytest.mark.parametrize(("lengths", "used"), [([1], 1), ([5, 1, 33, 2], 3), ([3, 3], 0)])
@pytest.mark.parametrize("size", [20, 300])
def test_mean(
    draw: Any, count: Any, device: torch.device, dtype: torch.dtype, lengths: list[int], used: int, size: int
) -> None:
    x = draw(sum(lengths), size, dtype=dtype)
    x[sum(lengths[:used]) :] = float("nan")
    bounds = torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32, device=device)
    ours = mean(x, bounds, count(used))
    assert (ours.dtype, ours.shape) == (torch.float32, (len(lengths), size))
    for row in range(used):
        tokens = x[bounds[row] : bounds[row + 1]].float()
        total = torch.zeros(size, device=device)
        for token in tokens:  # in this order, to the bit
            total = total + token
        assert torch.equal(ours[row], total / torch.full_like(total, len(tokens)))  # a number would be inverted first
    assert torch.equal(mean(x, bounds, count(used), torch.float16)[:used], ours[:used].half())


def test_maximum(draw: Any, count: Any, device: torch.device, dtype: torch.dtype) -> None:
    lengths, used = [5, 1, 33, 2], 3
    x = draw(sum(lengths), 140, dtype=dtype)
    x[7, 3] = x[sum(lengths[:used]) :] = float("nan")
    bounds = torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32, device=device)
    ours = maximum(x, bounds, count(used))
    assert (ours.dtype, ours.shape) == (torch.float32, (len(lengths), 140))
    for row in range(used):
        torch.testing.assert_close(
            ours[row], x[bounds[row] : bounds[row + 1]].float().amax(0), rtol=0, atol=0, equal_nan=True
        )
    assert ours[2].isnan().sum() == 1
    assert torch.equal(maximum(x, bounds, count(2), torch.float16)[:2], ours[:2].half())


def test_wrong_arguments_are_refused() -> None:
    x, bounds, used = torch.zeros(3, 4), torch.tensor([0, 3], dtype=torch.int32), torch.ones(1, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"bounds is torch.int64 \[2\]"):
        mean(x, bounds.long(), used)
