from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pfengine.kernels.embedding import embed


def formula(
    ids: Tensor, positions: Tensor, types: Tensor, word: Tensor, position: Tensor, kind: Tensor | None, weight: Tensor,
    bias: Tensor,
) -> Tensor:  # fmt: skip
    total = word[ids] + position[positions]
    if kind is not None:
        total = total + kind[types]
    return F.layer_norm(total, total.shape[1:], weight.to(word.dtype), bias.to(word.dtype), 1e-12)


@pytest.mark.parametrize(("tokens", "used"), [(1, 1), (2, 0), (9, 6), (0, 0)])
@pytest.mark.parametrize("size", [60, 384])
@pytest.mark.parametrize("typed", [True, False])
def test_embed(
    draw: Any, count: Any, check: Any, device: torch.device, dtype: torch.dtype, size: int, tokens: int, used: int,
    typed: bool,
) -> None:  # fmt: skip
    tables: Any = draw(11, size, dtype=dtype), draw(9, size, dtype=dtype), draw(2, size, dtype=dtype)
    generator = torch.Generator().manual_seed(1)
    ids, positions, types = (
        torch.randint(0, len(table), (tokens,), generator=generator).to(device) for table in tables
    )
    weight, bias = draw(size), draw(size)
    ids[used:] = 1 << 40  # nobody may look there
    if not typed:
        tables, types[:] = (*tables[:2], None), 1 << 40
    ours = embed(ids, positions, types, tables, weight, bias, 1e-12, count(used))
    assert ours.dtype == dtype
    check(ours[:used], formula, [ids[:used], positions[:used], types[:used], *tables, weight, bias])


def test_wrong_arguments_are_refused() -> None:
    ids, table, one = torch.zeros(3, dtype=torch.int64), torch.zeros(5, 4), torch.ones(4)
    used = torch.ones(1, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"types is torch.int64 \[2\]"):
        embed(ids, ids, ids[:2], (table, table, table), one, one, 1e-5, used)
    with pytest.raises(ValueError, match=r"position is torch.float16"):
        embed(ids, ids, ids, (table, table.half(), table), one, one, 1e-5, used)
