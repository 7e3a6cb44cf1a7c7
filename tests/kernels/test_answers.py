from __future__ import annotations

from typing import Any

import pytest
import torch

from pfengine.kernels.answers import answer


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("with_layers", [False, True])
@pytest.mark.parametrize(("rows", "used", "labels"), [(1, 1, 2), (5, 0, 3), (20, 17, 150)])
def test_answer(
    draw: Any, count: Any, device: torch.device, rows: int, used: int, labels: int, with_layers: bool, last: bool
) -> None:
    logits, leave = draw(rows, labels), torch.arange(rows, device=device) % 3 == 0
    places = torch.arange(rows, device=device).flip(0) + 2
    layers = torch.arange(rows + 2, device=device) if with_layers else None
    out = torch.full((rows + 2, labels), 9.0, device=device)
    left = torch.zeros(rows + 2, dtype=torch.int64, device=device)
    stay = answer(logits, leave, places, 5, out, left, count(used), layers=layers, last=last)
    for row in range(rows):
        place = int(places[row])
        goes = row < used and (bool(leave[row]) or (with_layers and place <= 5) or last)
        assert bool(stay[row]) == (row < used and not goes)
        assert int(left[place]) == (5 if goes else 0)
        assert torch.equal(out[place], logits[row] if goes else torch.full_like(logits[row], 9.0))
    assert (out[:2] == 9).all()


def test_wrong_arguments_are_refused() -> None:
    logits, leave, ids = torch.zeros(2, 3), torch.zeros(2, dtype=torch.bool), torch.arange(2)
    with pytest.raises(ValueError, match=r"out_logits is torch.float32 \[2, 2\]"):
        answer(logits, leave, ids, 1, logits[:, :2].contiguous(), ids, torch.ones(1, dtype=torch.int32))
