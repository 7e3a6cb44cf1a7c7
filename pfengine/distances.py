"""Attention biases by distance, as in T5 and MPNet: a near key has a bucket of its own, far ones share buckets."""

from __future__ import annotations

import math

import torch
from torch import Tensor

BUCKETS, MOST_DISTANT = 32, 128  # half of the buckets for keys behind the query; keys beyond share the last one


def bucket(distance: Tensor) -> Tensor:
    """The bucket of each distance, int64: that of a query at i and a key at j is j - i.

    Half of the buckets of a side hold one distance each, the others grow by a constant factor (Raffel et al., JMLR
    2020, section 2.1). The logarithm is float32, as in transformers, because borders of buckets depend on its rounding.
    """
    side, size = BUCKETS // 2, distance.abs()
    exact = side // 2
    growth = torch.log(size.float() / exact) / math.log(MOST_DISTANT / exact) * (side - exact)
    far = (exact + growth.clamp(min=0).to(torch.int64)).clamp(max=side - 1)
    return torch.where(size < exact, size, far) + side * (distance > 0)


def by_distance(table: Tensor, most: int) -> Tensor:
    """Biases float32 [heads, 2 most - 1] of the distances 1 - most to most - 1, from a table [buckets, heads]."""
    distances = torch.arange(1 - most, most, dtype=torch.int64, device="cpu")
    return table.float()[bucket(distances)].T.contiguous()
