from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pfengine.kernels.rotate import rotate
from pfengine.ops import Rotary
from pfengine.ops.rotary import angles, positions_of, turned

LENGTHS, HEADS, SIZE = [5, 1, 70, 33], 3, 20


def bounds_on(device: torch.device) -> Tensor:
    return torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0)], dtype=torch.int32, device=device)


@pytest.mark.parametrize("turns", [20, 18, 2])
def test_rotate(draw: Any, count: Any, check: Any, device: torch.device, dtype: torch.dtype, turns: int) -> None:
    """Numbers of a head beyond its angles, and columns beyond the heads, stay as they are."""
    bounds, turn = bounds_on(device), angles(50.0, turns, 70).angles.to(device)
    x = draw(sum(LENGTHS), HEADS * SIZE + 7, dtype=dtype)

    def exact(x: Tensor, bounds: Tensor, turn: Tensor) -> Tensor:
        heads = turned(x[:, : HEADS * SIZE].unflatten(1, (HEADS, SIZE)), positions_of(bounds, len(x)), Rotary(turn))
        return torch.cat([heads.flatten(1), x[:, HEADS * SIZE :]], 1)

    given = x.clone()
    assert rotate(given, bounds, turn, HEADS, SIZE, 128, count(4)) is given
    check(given, exact, [x, bounds, turn])
    few = x.clone()
    rotate(few, bounds, turn, HEADS, SIZE, 128, count(2))
    assert torch.equal(few[:6], given[:6])
    assert torch.equal(few[6:], x[6:])
    tokens = torch.tensor([1, 4, 5, 6, 40, 75, 90, 108], device=device)
    of_rows = torch.tensor([0, 2, 3, 6, 8], dtype=torch.int32, device=device)
    some = x[tokens].contiguous()
    rotate(some, bounds, turn, HEADS, SIZE, 128, count(4), of_rows, tokens)
    assert torch.equal(some, given[tokens])


def test_no_row_is_left(draw: Any, count: Any, device: torch.device) -> None:
    turn = angles(50.0, 4, 8).angles.to(device)
    x = draw(3, 8)
    assert torch.equal(rotate(x.clone(), torch.tensor([0, 3]).int().to(device), turn, 2, 4, 3, count(0)), x)


def test_wrong_arguments_are_refused(draw: Any, count: Any, device: torch.device) -> None:
    x, bounds = draw(3, 8), torch.tensor([0, 3], dtype=torch.int32, device=device)
    for turns, heads in ((3, 2), (6, 2), (4, 3)):
        with pytest.raises(ValueError, match=f"{heads} heads of 4 numbers do not take angles of {turns}"):
            rotate(x, bounds, draw(8, turns), heads, 4, 3, count(1))
    with pytest.raises(ValueError, match="bounds and tokens must be given together"):
        rotate(x, bounds, draw(8, 4), 2, 4, 3, count(1), bounds)
    with pytest.raises(ValueError, match="angles is"):
        rotate(x, bounds, draw(8, 4).half(), 2, 4, 3, count(1))
