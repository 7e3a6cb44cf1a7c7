from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pfengine.kernels.survivors import ROWS, SCAN, TICKET, Report, Survivors, remaining, survivors
from pfengine.kernels.token_list import TokenList


def drawn(lengths: list[int], device: torch.device) -> tuple[Tensor, Tensor]:
    bounds = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    return bounds.to(device), torch.randperm(len(lengths), generator=torch.Generator().manual_seed(0)).to(device)


@pytest.mark.parametrize("pattern", ["nobody", "everybody", "some", "first", "last"])
@pytest.mark.parametrize("lengths", [[1], [5, 1], [3, 200, 1, 130, 7], [2] * 70])
@pytest.mark.parametrize("beyond", [0, 2])
def test_survivors(count: Any, device: torch.device, lengths: list[int], pattern: str, beyond: int) -> None:
    used, rows = len(lengths) - min(beyond, len(lengths) - 1), len(lengths)
    bounds, slots = drawn(lengths, device)
    leave = {
        "nobody": torch.zeros(rows), "everybody": torch.ones(rows), "some": torch.arange(rows) % 3 == 1,
        "first": torch.arange(rows) == 0, "last": torch.arange(rows) == used - 1,
    }[pattern].bool().to(device)  # fmt: skip
    out = Survivors.empty(rows, int(bounds[-1]), device)
    for part in out:
        part.fill_(-7)
    found = survivors(bounds, slots, leave, count(used), out)
    stay = [row for row in range(used) if not leave[row]]
    tokens = [token for row in stay for token in range(int(bounds[row]), int(bounds[row + 1]))]
    left = len(stay)
    assert found.counts.tolist() == [left, len(tokens)]
    ends = torch.tensor([0, *(lengths[row] for row in stay)]).cumsum(0).tolist()
    assert found.bounds[: left + 1].tolist() == ends
    assert found.slots[:left].tolist() == slots[stay].tolist()
    assert found.source_rows[:left].tolist() == stay
    assert found.source_firsts[:left].tolist() == bounds[stay].tolist()
    assert found.source_tokens[: len(tokens)].tolist() == tokens
    assert (found.source_tokens[len(tokens) :] == -7).all()
    assert (found.bounds[left + 1 :] == -7).all()


@pytest.mark.parametrize("beyond", [0, 5])
def test_many_rows_and_what_the_host_is_told(count: Any, device: torch.device, beyond: int) -> None:
    """More than a program looks at at a time. The last of them may leave, or not be there at all."""
    lengths = [row % 3 + 1 for row in range(SCAN + 2 * ROWS + 1)]
    bounds, slots = drawn(lengths, device)
    rows = len(lengths)
    leave = (torch.arange(rows) % 5 != 1).to(device)
    used, out, report = rows - beyond, Survivors.empty(rows, int(bounds[-1]), device), told(device)
    survivors(bounds, slots, leave, count(used), out, report=report)
    stay = [row for row in range(used) if not leave[row]]
    tokens = [token for row in stay for token in range(int(bounds[row]), int(bounds[row + 1]))]
    assert out.counts.tolist() == [len(stay), len(tokens)]
    assert out.source_rows[: len(stay)].tolist() == stay
    assert out.source_tokens[: len(tokens)].tolist() == tokens
    assert [int(word) >> TICKET for word in report.words] == [41] * 3
    assert [int(word) & 0xFFFFFFFF for word in report.words] == [len(stay), len(tokens), len(tokens)]


def test_no_rows_at_all(count: Any, device: torch.device) -> None:
    bounds, slots = drawn([2, 3], device)
    out, report = Survivors.empty(2, 5, device), told(device)
    survivors(bounds, slots, slots < 0, count(0), out, report=report)
    assert out.counts.tolist() == [0, 0]
    assert int(out.bounds[0]) == 0
    assert report.words.tolist() == [41 << TICKET] * 3


def told(device: torch.device) -> Report:
    words = torch.zeros(3, dtype=torch.int64, pin_memory=device.type == "cuda")
    return Report(torch.tensor([41], dtype=torch.int64, device=device), words)


def test_survivors_of_survivors_that_have_not_moved(count: Any, device: torch.device) -> None:
    bounds, slots = drawn([3, 2, 4, 1, 5], device)
    first, second = (Survivors.empty(5, 15, device) for _ in range(2))
    survivors(bounds, slots, torch.tensor([0, 1, 0, 0, 0], dtype=torch.bool, device=device), count(5), first)
    leave = torch.tensor([1, 0, 0, 1, 1], dtype=torch.bool, device=device)
    earlier = {"earlier_rows": first.source_rows, "earlier_firsts": first.source_firsts}
    survivors(first.bounds, first.slots, leave, first.counts[:1], second, **earlier)
    assert second.counts.tolist() == [2, 5]
    assert second.slots[:2].tolist() == slots[[2, 3]].tolist()
    assert second.source_rows[:2].tolist() == [2, 3]
    assert second.source_tokens[:5].tolist() == [5, 6, 7, 8, 9]


@pytest.mark.parametrize("cold", ["none", "all", "some"])
def test_tokens_that_are_queries_are_listed(count: Any, device: torch.device, cold: str) -> None:
    lengths, stay = [3, 200, 1, 130], [0, 1, 3]
    bounds, _ = drawn(lengths, device)
    slots = torch.tensor([140, 143, 345, 0], device=device)  # of first tokens
    every = torch.cat([torch.arange(lengths[r], device=device) + slots[r] for r in stay])
    frozen = {"none": every < 0, "all": every >= 0, "some": every % 3 == 1}[cold]
    by_slot = torch.ones(400, dtype=torch.uint8, device=device).index_copy(0, every, frozen.to(torch.uint8))
    asking = torch.stack([(by_slot[slots[r] : slots[r] + lengths[r]] == 0).sum() for r in range(4)]).to(torch.int32)
    leave = torch.tensor([False, False, True, False, True], device=device)[:4].contiguous()
    out, tokens = Survivors.empty(4, 400, device), TokenList.empty(4, 400, device)
    for part in (*out, *tokens):
        part.fill_(-7)
    report = told(device)
    survivors(bounds, slots, leave, count(4), out, tokens=tokens, frozen=by_slot, asking=asking, report=report)
    asks = (~frozen).nonzero().flatten()
    total, queries = len(every), len(asks)
    ends = [int((asks < sum(lengths[s] for s in stay[:r])).sum()) for r in range(4)]
    assert tokens.slots[:total].tolist() == every.tolist()
    assert tokens.query_count.tolist() == [queries]
    assert [int(word) & 0xFFFFFFFF for word in report.words] == [len(stay), total, queries]
    assert tokens.bounds[:4].tolist() == ends
    assert tokens.queries[:queries].tolist() == asks.tolist()
    sources = torch.cat([torch.arange(int(bounds[r]), int(bounds[r + 1]), device=device) for r in stay])
    assert out.source_tokens[:total].tolist() == sources.tolist()
    assert tokens.sources[:queries].tolist() == sources[asks].tolist()
    numbers = torch.full((total,), -1, device=device).index_copy(0, asks, torch.arange(queries, device=device))
    assert tokens.numbers[:total].tolist() == numbers.tolist()
    assert (torch.stack([tokens.numbers[total], tokens.queries[queries], tokens.sources[queries]]) == -7).all()


@pytest.mark.parametrize("answered", [[], [0, 2], [0, 1, 2], [0, 1, 2, 3]])
@pytest.mark.parametrize("used", [0, 1, 3])
def test_remaining(device: torch.device, answered: list[int], used: int) -> None:
    exit_layers = torch.zeros(4, dtype=torch.int64, device=device)
    exit_layers[answered] = 7
    counts = torch.tensor([used, 5], dtype=torch.int32, device=device)
    some, report = any(row not in answered for row in range(used)), told(device)
    out = torch.full_like(counts, -7)
    assert remaining(exit_layers, counts, out, report) is out
    assert out.tolist() == ([used, 5] if some else [0, 0])
    assert counts.tolist() == [used, 5]  # launches beside it read them
    assert [int(word) & 0xFFFFFFFF for word in report.words] == ([used, 5, 5] if some else [0, 0, 0])


def test_wrong_arguments_are_refused() -> None:
    bounds, slots = drawn([2, 3], torch.device("cpu"))
    leave, one, out = slots > 0, torch.ones(1, dtype=torch.int32), Survivors.empty(2, 5, torch.device("cpu"))
    with pytest.raises(ValueError, match=r"bounds is torch.int32 \[2\]"):
        survivors(bounds[:2], slots, leave, one, out)
    with pytest.raises(ValueError, match=r"out.counts is torch.int32 \[1\]"):
        survivors(bounds, slots, leave, one, out._replace(counts=one))
    with pytest.raises(ValueError, match="give all three, or none"):
        survivors(bounds, slots, leave, one, out, tokens=TokenList.empty(2, 5, slots.device))
    many = torch.zeros(4097, dtype=torch.int64)
    with pytest.raises(ValueError, match="there are 4097 rows, expected at most 4096"):
        survivors(torch.zeros(4098, dtype=torch.int32), many, many > 0, one, out)
