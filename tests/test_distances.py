"""Biases by distance are those of transformers."""

from __future__ import annotations

import torch
from transformers.models.mpnet.modeling_mpnet import MPNetEncoder

from pfengine.distances import BUCKETS, bucket, by_distance
from pfengine.ops.distances import Distances, distance_scores


def test_buckets_are_those_of_transformers() -> None:
    distances = torch.arange(-9000, 9001)
    assert torch.equal(bucket(distances), MPNetEncoder.relative_position_bucket(distances))
    assert set(bucket(distances).tolist()) == set(range(BUCKETS)) - {BUCKETS // 2}, "0 is not behind and ahead"


def test_each_query_and_key_have_the_bias_of_their_distance() -> None:
    table, positions = torch.randn(BUCKETS, 3), torch.tensor([0, 4, 11])
    q, k = torch.zeros(3, 3, 4), torch.zeros(3, 12, 4)
    found = distance_scores(q, k, positions, 1.0, Distances(by_distance(table, 12)))
    assert found.shape == (3, 3, 12)
    for i, query in enumerate(positions.tolist()):
        for key in range(12):
            assert torch.equal(found[:, i, key], table[bucket(torch.tensor(key - query))])
