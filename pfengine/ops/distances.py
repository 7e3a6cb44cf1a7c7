"""What attention scores have from the distance between a query and a key of the same row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Distances(NamedTuple):
    """Parts that are added to scaled attention scores, each optional. A row has at most P tokens; d: head size.

    The query at i and the key at j of a row have t = P - 1 + j - i. Head by head, their score gets
    bias[t] + scale (q_i . keys[bucket[t]] + k_j . queries[bucket[t]]).
    """

    bias: Tensor | None = None  # float32 [heads, 2 P - 1]
    bucket: Tensor | None = None  # int64 [2 P - 1]: the entry of `keys` and `queries`
    keys: Any | None = None  # float32 [heads, buckets, d], or what an op set made of it
    queries: Any | None = None  # the same

    @property
    def most(self) -> int:
        """P."""
        by_distance = self.bias if self.bucket is None else self.bucket
        assert by_distance is not None
        return (by_distance.shape[-1] + 1) // 2


def prepared(
    distances: Distances | None, bias_by: Callable[[Tensor], Tensor], table_by: Callable[[Tensor], Any]
) -> Distances | None:
    """The same, the bias by the one function, `keys` and `queries` by the other."""
    if distances is None:
        return None
    bias, bucket, *tables = distances
    keys, queries = (None if table is None else table_by(table) for table in tables)
    return Distances(None if bias is None else bias_by(bias), bucket, keys, queries)


def multiply(x: Tensor, table: Tensor) -> Tensor:
    """Each head's vectors times its table: [..., heads, n, d] and [heads, buckets, d] -> [..., heads, n, buckets]."""
    return x @ table.transpose(1, 2)


def distance_scores(
    q: Tensor,
    k: Tensor,
    positions: Tensor,
    scale: float,
    distances: Distances,
    multiply: Callable[[Tensor, Any], Tensor] = multiply,
) -> Tensor:
    """What is added to the scaled scores: q [..., heads, Q, d] at `positions` [Q], k [..., heads, K, d] at 0 to K - 1.

    Returns [heads, Q, K] or [..., heads, Q, K].
    """
    at = torch.arange(k.shape[-2], dtype=torch.int64, device=k.device)
    at = distances.most - 1 + at[None, :] - positions[:, None]
    parts = [] if distances.bias is None else [distances.bias[:, at]]
    if distances.bucket is not None:
        bucket = distances.bucket[at]
        if distances.keys is not None:
            of_query = multiply(q, distances.keys)
            parts.append(scale * of_query.gather(-1, bucket.expand(*of_query.shape[:-1], -1)))
        if distances.queries is not None:
            of_key = multiply(k, distances.queries)
            of_key = of_key.gather(-1, bucket.T.expand(*of_key.shape[:-1], -1))
            parts.append(scale * of_key.transpose(-1, -2))
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total
