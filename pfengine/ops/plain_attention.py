"""Attention within the rows of a ragged batch, row by row in plain torch; and tokens weighed by queries."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import Activation, Queries
from .distances import Distances, distance_scores


def attention(
    qkv: Tensor,
    cu_seqlens: Tensor,
    num_heads: int,
    scale: float,
    queries: Queries | None = None,
    by_distance: Distances | None = None,
    window: int | None = None,
) -> Tensor:
    """Attention of all tokens, or of the queries: [T, 3 heads d] -> [T or Q, heads d]."""
    bounds = cu_seqlens.tolist()
    asked = bounds if queries is None else queries.bounds.tolist()
    rows = []
    for row, (start, stop) in enumerate(itertools.pairwise(bounds)):
        q, k, v = qkv[start:stop].view(stop - start, 3, num_heads, -1).permute(1, 2, 0, 3)  # [heads, tokens, d]
        places = torch.arange(stop - start, dtype=torch.int64, device=qkv.device)
        if queries is not None:
            places = queries.tokens[asked[row] : asked[row + 1]] - start
            q = q.index_select(1, places)
        scores = q @ k.transpose(1, 2) * scale
        if by_distance is not None:
            scores = scores + distance_scores(q, k, places, scale, by_distance)
        if window is not None:
            scores = scores.masked_fill(unseen(places, stop - start, window), -torch.inf)
        y = torch.softmax(scores, dim=-1) @ v
        rows.append(y.transpose(0, 1).flatten(1))
    return torch.cat(rows) if rows else qkv.new_empty(0, qkv.shape[1] // 3)


def unseen(places: Tensor, tokens: int, window: int) -> Tensor:
    """Which of a row's tokens a query at each place does not see: bool [Q, T]."""
    keys = torch.arange(tokens, dtype=torch.int64, device=places.device)
    return (keys[None, :] - places[:, None]).abs() > window


def composed_query_mean(
    x: Tensor, cu_seqlens: Tensor, queries: Any, linear: Callable[[Tensor, Any, Activation], Tensor]
) -> Tensor:
    """`query_mean` for an op set with this `linear`."""
    x, rows = x.float(), len(cu_seqlens) - 1
    row_of = torch.repeat_interleave(torch.arange(rows, dtype=torch.int64, device=x.device), cu_seqlens.diff())
    scores = linear(x, queries, "none")  # [T, K]
    most = torch.full((rows, scores.shape[1]), -torch.inf, dtype=torch.float32, device=x.device)
    most = most.scatter_reduce_(0, row_of.unsqueeze(1).expand_as(scores), scores.detach(), "amax")
    shares = torch.exp(scores - most[row_of])
    total = torch.zeros_like(most).index_add_(0, row_of, shares)
    weighed = shares.unsqueeze(2) * x.view(len(x), scores.shape[1], -1)
    sums = weighed.new_zeros(rows, *weighed.shape[1:]).index_add_(0, row_of, weighed)
    return (sums / total.unsqueeze(2)).flatten(1)
