from __future__ import annotations

from typing import Any

import pytest
import torch

from pfengine.kernels.query_mean import query_mean
from pfengine.ops import reference


@pytest.mark.parametrize(("lengths", "used"), [([1], 1), ([5, 1, 33, 2], 3), ([3, 3], 0)])
@pytest.mark.parametrize(("size", "groups"), [(20, 1), (36, 4), (300, 3)])
def test_equal_to_the_reference_and_alone(
    draw: Any,
    count: Any,
    device: torch.device,
    dtype: torch.dtype,
    lengths: list[int],
    used: int,
    size: int,
    groups: int,
) -> None:
    x, queries = draw(sum(lengths), size, dtype=dtype), draw(groups, size, scale=size**-0.5)
    bounds = torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32, device=device)
    theirs = reference.query_mean(x, bounds, reference.prepare_queries(queries))
    x[sum(lengths[:used]) :] = float("nan")
    ours = query_mean(x, bounds, queries, count(used))
    assert (ours.dtype, ours.shape) == (torch.float32, (len(lengths), size))
    torch.testing.assert_close(ours[:used], theirs[:used], atol=2e-6, rtol=1e-5)  # sums of up to 300 products in fp32
    for row in range(used):
        tokens = x[bounds[row] : bounds[row + 1]].contiguous()
        own = torch.tensor([0, len(tokens)], dtype=torch.int32, device=device)
        assert torch.equal(query_mean(tokens, own, queries, count(1)), ours[row : row + 1])
    assert torch.equal(query_mean(x, bounds, queries, count(used), torch.float16)[:used], ours[:used].half())


def test_weights_far_apart_do_not_overflow(draw: Any, count: Any, device: torch.device) -> None:
    x = draw(4, 8) * 1000
    bounds = torch.tensor([0, 4], dtype=torch.int32, device=device)
    queries = draw(2, 8)
    ours = query_mean(x, bounds, queries, count(1))
    best = (x @ queries.T).argmax(0)
    torch.testing.assert_close(ours[0], torch.cat([x[best[0], :4], x[best[1], 4:]]))


def test_not_a_number_stays_in_its_row(draw: Any, count: Any, device: torch.device) -> None:
    x, queries = draw(5, 8), draw(2, 8)
    x[1, 3] = float("nan")
    ours = query_mean(x, torch.tensor([0, 3, 5], dtype=torch.int32, device=device), queries, count(2))
    assert ours[0].isnan().all()
    assert ours[1].isfinite().all()


def test_wrong_arguments_are_refused() -> None:
    x, used = torch.zeros(3, 4), torch.ones(1, dtype=torch.int32)
    bounds = torch.tensor([0, 3], dtype=torch.int32)
    with pytest.raises(ValueError, match=r"bounds is torch.int64 \[2\]"):
        query_mean(x, bounds.long(), torch.zeros(2, 4), used)
    with pytest.raises(ValueError, match="their number must divide 4"):
        query_mean(x, bounds, torch.zeros(3, 4), used)
    with pytest.raises(ValueError, match=r"queries is torch.float32 \[2, 5\]"):
        query_mean(x, bounds, torch.zeros(2, 5), used)
