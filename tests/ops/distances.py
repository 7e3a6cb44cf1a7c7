"""Random parts of scores by distance, for tests of every op set."""

from __future__ import annotations

import torch

from pfengine.ops import Distances


def random_distances(heads: int, size: int, most: int, buckets: int = 9) -> Distances:
    """All three parts, for rows of up to `most` tokens; neighbouring distances have any bucket."""
    return Distances(
        bias=torch.randn(heads, 2 * most - 1),
        bucket=torch.randint(buckets, (2 * most - 1,)),
        keys=torch.randn(heads, buckets, size),
        queries=torch.randn(heads, buckets, size),
    )
