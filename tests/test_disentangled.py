"""Buckets of distances are those of DeBERTa in transformers."""

from __future__ import annotations

import pytest
import torch
from transformers.models.deberta_v2.modeling_deberta_v2 import build_relative_position

from pfengine.disentangled import Disentangled


@pytest.mark.parametrize(
    ("span", "most", "bucketed"), [(256, 512, True), (32, 128, True), (11, 40, True), (2, 1000, True), (64, 64, False)]
)
def test_buckets_are_those_of_transformers(span: int, most: int, bucketed: bool) -> None:
    form = Disentangled(
        span=span, bucketed=bucketed, most=most, keys=True, queries=True, own=False, normed=False, used=True
    )
    tokens = torch.zeros(1, 1500, 1)
    expected = build_relative_position(tokens, tokens, bucket_size=span if bucketed else -1, max_position=most)[0]
    distances = torch.arange(1500)[:, None] - torch.arange(1500)[None, :]
    assert torch.equal(form.bucket(distances), (expected + span).clamp(0, 2 * span - 1))
