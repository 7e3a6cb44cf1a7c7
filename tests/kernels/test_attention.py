from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pfengine.kernels.attention import attention
from pfengine.ops import reference
from pfengine.ops.distances import Distances, distance_scores


def formula(
    qkv: Tensor, lengths: list[int], heads: int, scale: float, first_only: bool, distances: Distances | None = None
) -> Tensor:
    out = []
    for row in qkv.split(lengths):
        q, k, v = (x.unflatten(1, (heads, -1)).transpose(0, 1) for x in row.chunk(3, dim=1))
        q = q[:, :1] if first_only else q
        scores = (q @ k.mT).float().to(torch.promote_types(qkv.dtype, torch.float32)) * scale
        if distances is not None:
            parts = Distances(
                *(
                    None if part is None else part.long() if i == 1 else part.to(scores.dtype)
                    for i, part in enumerate(distances)
                )
            )
            places = torch.arange(q.shape[1], device=qkv.device)
            scores = scores + distance_scores(q.to(scores.dtype), k.to(scores.dtype), places, scale, parts)
        p = torch.softmax(scores, -1)
        out.append((p.to(qkv.dtype) @ v).transpose(0, 1).flatten(1))
    return torch.cat(out)


@pytest.mark.parametrize("queries", ["all", "first"])
@pytest.mark.parametrize(
    ("lengths", "used", "size"), [([1], 1, 20), ([5, 1, 33, 2], 4, 64), ([64, 65, 7, 1], 3, 32), ([2, 40], 2, 20)]
)
def test_attention(
    draw: Any, count: Any, check: Any, device: torch.device, dtype: torch.dtype, lengths: list[int], used: int,
    size: int, queries: Any,
) -> None:  # fmt: skip
    heads, tokens = 2, sum(lengths)
    kept = sum(lengths[:used])
    qkv = draw(tokens, 3 * heads * size, dtype=dtype)
    qkv[kept:] = float("nan")
    bounds = torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32, device=device)
    ours = attention(qkv, bounds, heads, size**-0.5, max(lengths), count(used), queries)
    ours = ours[: used if queries == "first" else kept]
    check(ours, formula, [qkv[:kept], lengths[:used], heads, size**-0.5, queries == "first"])


PARTS = [("bias",), ("keys",), ("queries",), ("bias", "keys", "queries")]


def some_distances(
    draw: Any, parts: tuple[str, ...], heads: int, size: int, most: int, dtype: torch.dtype
) -> Distances:
    bias, buckets = 2 * draw(heads, 2 * most - 1, dtype=torch.float32), 11
    bucket = torch.arange(2 * most - 1, dtype=torch.int32, device=bias.device) * 7 % buckets
    tables = {name: draw(heads, buckets, size, dtype=dtype) for name in ("keys", "queries")}
    made = Distances(bias, None if parts == ("bias",) else bucket, **tables)
    return made._replace(**{name: None for name in ("bias", "keys", "queries") if name not in parts})


@pytest.mark.parametrize("parts", PARTS, ids=", ".join)
@pytest.mark.parametrize("queries", ["all", "first"])
def test_scores_of_distances(
    draw: Any, count: Any, check: Any, device: torch.device, dtype: torch.dtype, queries: Any, parts: tuple[str, ...]
) -> None:
    lengths, heads, size = [5, 1, 70, 33], 2, 20
    qkv = draw(sum(lengths), 3 * heads * size, dtype=dtype)
    distances = some_distances(draw, parts, heads, size, 70, dtype)
    bounds = torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32, device=device)
    ours = attention(qkv, bounds, heads, size**-0.5, 128, count(4), queries, distances)
    check(ours, formula, [qkv, lengths, heads, size**-0.5, queries == "first", distances])


@pytest.mark.parametrize("parts", [(), *PARTS], ids=", ".join)
def test_a_list_of_queries(
    draw: Any, count: Any, device: torch.device, dtype: torch.dtype, parts: tuple[str, ...]
) -> None:
    lengths, heads, size = [5, 40, 3, 7], 2, 32
    qkv = draw(sum(lengths), 3 * heads * size, dtype=dtype)
    bounds = torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32, device=device)
    distances = some_distances(draw, parts, heads, size, 40, dtype) if parts else None
    every = attention(qkv, bounds, heads, 0.2, 40, count(4), "all", distances)
    tokens = torch.tensor([1, 4, 5, 20, 44, 51, 54], device=device)  # none of the third row
    of_rows = torch.tensor([0, 2, 5, 5, 7], dtype=torch.int32, device=device)
    width = heads * size
    q, kv = qkv[tokens, :width].contiguous(), qkv[:, width:].contiguous()
    kv[48:] = float("nan")  # the fourth row is not read
    some = attention(kv, bounds, heads, 0.2, 40, count(3), (q, of_rows), distances, tokens)
    assert some.shape == (7, width)
    assert torch.equal(some[:5], every[tokens[:5]])


@pytest.mark.parametrize("window", [0, 9, 200])
def test_windows(draw: Any, count: Any, check: Any, device: torch.device, dtype: torch.dtype, window: int) -> None:
    lengths, heads, size, scale = [5, 1, 70, 33], 2, 20, 0.2
    qkv = draw(sum(lengths), 3 * heads * size, dtype=dtype)
    bounds = torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32, device=device)
    every = attention(qkv, bounds, heads, scale, 128, count(4), window=window)
    check(every, lambda qkv: reference.attention(qkv, bounds, heads, scale, window=window), [qkv])
    assert torch.equal(attention(qkv, bounds, heads, scale, 128, count(4), "first", window=window), every[bounds[:-1]])
    tokens = torch.tensor([1, 4, 5, 6, 40, 75, 90, 108], device=device)
    of_rows = torch.tensor([0, 2, 3, 6, 8], dtype=torch.int32, device=device)
    q, kv = qkv[tokens, : heads * size].contiguous(), qkv[:, heads * size :].contiguous()
    some = attention(kv, bounds, heads, scale, 128, count(4), (q, of_rows), query_tokens=tokens, window=window)
    assert torch.equal(some, every[tokens])
    with pytest.raises(ValueError, match="window is -1"):
        attention(qkv, bounds, heads, scale, 128, count(4), window=-1)


def test_no_row_is_left(draw: Any, count: Any, device: torch.device) -> None:
    bounds = torch.tensor([0, 3], dtype=torch.int32, device=device)
    assert attention(draw(3, 96), bounds, 2, 0.25, 3, count(0)).shape == (3, 32)
    assert attention(draw(0, 96), bounds[:1], 2, 0.25, 3, count(0)).shape == (0, 32)


def test_a_row_does_not_depend_on_its_neighbours(
    draw: Any, count: Any, dtype: torch.dtype, device: torch.device
) -> None:
    lengths = [40, 3, 70, 33]
    qkv = draw(sum(lengths), 96, dtype=dtype)
    bounds = torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32, device=device)
    ours = attention(qkv, bounds, 2, 0.25, 70, count(4))
    for row, length in enumerate(lengths):
        part = slice(int(bounds[row]), int(bounds[row + 1]))
        alone = torch.tensor([0, length], dtype=torch.int32, device=device)
        assert torch.equal(attention(qkv[part].contiguous(), alone, 2, 0.25, length, count(1)), ours[part])


@pytest.mark.parametrize("queries", ["all", "first"])
@pytest.mark.parametrize(("most", "rows"), [(16, 1), (16, 9), (30, 6)])
def test_several_rows_per_program(
    draw: Any, count: Any, dtype: torch.dtype, device: torch.device, monkeypatch: pytest.MonkeyPatch, most: int,
    rows: int, queries: Any,
) -> None:  # fmt: skip
    lengths = [1 + (7 * row) % most for row in range(rows - 1)] + [most]
    qkv, used = draw(sum(lengths), 96, dtype=dtype), max(1, rows - 1)
    bounds = torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32, device=device)
    one = attention(qkv, bounds, 2, 0.25, most, count(used), queries)
    monkeypatch.setattr("pfengine.kernels.attention.MANY", 1)
    several = attention(qkv, bounds, 2, 0.25, most, count(used), queries)
    kept = used if queries == "first" else int(bounds[used])
    assert torch.equal(several[:kept], one[:kept])


@pytest.mark.slow
def test_long_rows(draw: Any, count: Any, check: Any, device: torch.device) -> None:
    qkv = draw(522, 192, dtype=torch.float16)
    bounds = torch.tensor([0, 512, 522], dtype=torch.int32, device=device)
    check(attention(qkv, bounds, 1, 0.125, 512, count(2)), formula, [qkv, [512, 10], 1, 0.125, False])


def test_wrong_arguments_are_refused() -> None:
    qkv, bounds, used = torch.zeros(3, 24), torch.tensor([0, 3], dtype=torch.int32), torch.ones(1, dtype=torch.int32)
    with pytest.raises(ValueError, match="24 columns, expected three times a multiple of the 5 heads"):
        attention(qkv, bounds, 5, 1.0, 3, used)
    with pytest.raises(ValueError, match=r"cu_seqlens is torch.int64 \[2\]"):
        attention(qkv, bounds.long(), 2, 1.0, 3, used)
    with pytest.raises(ValueError, match="at most 0 tokens"):
        attention(qkv, bounds, 2, 1.0, 0, used)
    with pytest.raises(ValueError, match=r"bounds of queries is torch.int32 \[3\]"):
        attention(qkv, bounds, 2, 1.0, 3, used, (torch.zeros(2, 12), torch.zeros(3, dtype=torch.int32)))
    with pytest.raises(ValueError, match=r"bias of distances is torch.float32 \[3, 5\]"):
        attention(qkv, bounds, 2, 1.0, 3, used, "all", Distances(torch.zeros(3, 5)))
    with pytest.raises(ValueError, match="are 6 distances, expected as many ahead as behind"):
        attention(qkv, bounds, 2, 1.0, 3, used, "all", Distances(torch.zeros(2, 6)))
    bucket = torch.zeros(5, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"keys of distances is torch.float32 \[2, 9, 5\]"):
        attention(qkv, bounds, 2, 1.0, 3, used, "all", Distances(None, bucket, torch.zeros(2, 9, 5)))
    with pytest.raises(ValueError, match=r"buckets of distances is torch.int64 \[5\]"):
        attention(qkv, bounds, 2, 1.0, 3, used, "all", Distances(None, bucket.long(), torch.zeros(2, 9, 4)))
    with pytest.raises(ValueError, match="query_tokens is given without"):
        attention(qkv, bounds, 2, 1.0, 3, used, "all", Distances(torch.zeros(2, 5)), torch.zeros(3, dtype=torch.int32))
