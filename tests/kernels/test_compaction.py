from __future__ import annotations

from typing import Any

import pytest
import torch

from pfengine.batch import compact as plain
from pfengine.kernels.compaction import compact


@pytest.mark.parametrize("stay", ["all", "none", "some", "first", "last"])
@pytest.mark.parametrize(("lengths", "used"), [([1], 1), ([3, 1, 20, 2, 9], 5), ([3, 1, 20, 2, 9], 3), ([4, 4], 0)])
@pytest.mark.parametrize("size", [1, 20, 300])
def test_compact(
    draw: Any, count: Any, device: torch.device, dtype: torch.dtype, lengths: list[int], used: int, stay: str, size: int
) -> None:
    rows, tokens = len(lengths), draw(sum(lengths), size, dtype=dtype)
    row = torch.arange(rows)
    kept = {"all": row >= 0, "none": row < 0, "some": row % 2 == 0, "first": row == 0, "last": row == rows - 1}[stay]
    kept = kept.to(device)
    bounds = torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32, device=device)
    ids = torch.arange(rows, device=device) * 7
    out, new_bounds, new_ids, counts = compact(tokens, bounds, ids, kept, max(lengths), count(used))
    within = bounds[: used + 1]
    expected, expected_bounds = plain(tokens[: int(within[-1])], within, kept[:used])
    assert counts.tolist() == [int(kept[:used].sum()), len(expected)]
    assert torch.equal(out[: len(expected)], expected)
    assert torch.equal(new_bounds[: counts[0] + 1], expected_bounds)
    assert torch.equal(new_ids[: counts[0]], ids[:used][kept[:used]])


def test_no_rows(draw: Any, count: Any, device: torch.device) -> None:
    bounds, none = torch.zeros(1, dtype=torch.int32, device=device), torch.empty(0, dtype=torch.int64, device=device)
    assert compact(draw(0, 4), bounds, none, none.bool(), 1, count(0))[3].tolist() == [0, 0]


def test_wrong_arguments_are_refused() -> None:
    tokens, bounds, ids = torch.zeros(3, 4), torch.tensor([0, 1, 3], dtype=torch.int32), torch.arange(2)
    stay, used = torch.ones(2, dtype=torch.bool), torch.full((1,), 2, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"stay is torch.uint8 \[2\]"):
        compact(tokens, bounds, ids, stay.byte(), 2, used)
    with pytest.raises(ValueError, match=r"cu_seqlens is torch.int32 \[2\]"):
        compact(tokens, bounds[:2], ids, stay, 2, used)
    with pytest.raises(ValueError, match="2 rows of 0 tokens"):
        compact(tokens, bounds, ids, stay, 0, used)
