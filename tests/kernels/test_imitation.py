"""Guesses alone: exits whose past is zero."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from .exits import Parts, parts_of


def guessing(draw: Any, labels: int, activation: str, **options: Any) -> Parts:
    parts = parts_of(draw, "none", False, labels, activation, more=0, **options)
    for part in parts.past:
        part.zero_()
    return parts


@pytest.mark.parametrize(
    ("activation", "layers", "hidden", "rows", "used", "labels"),
    [
        ("tanh", 1, 64, 1, 1, 2), ("none", 3, 60, 70, 66, 7), ("tanh", 5, 48, 70, 66, 2), ("none", 1, 64, 4, 0, 2),
        ("tanh", 3, 60, 1, 1, 7), ("tanh", 2, 64, 5, 5, 4), ("relu", 3, 90, 3, 3, 3),
        ("tanh", 35, 32, 3, 2, 16),  # more chunks than are added up at once
    ],
)  # fmt: skip
def test_imitation(
    draw: Any, count: Any, dtype: torch.dtype, activation: str, layers: int, hidden: int, rows: int, used: int,
    labels: int,
) -> None:  # fmt: skip
    parts = guessing(draw, labels, activation, hidden=hidden, learners=layers, dtype=dtype, offset=labels == 2)
    x = draw(rows, hidden, dtype=dtype)
    x[used:] = float("nan")
    future = parts.exact_future(x[:used])
    assert future is not None
    # the guesses themselves are float32 here, in every dtype
    torch.testing.assert_close(parts.run(x, count(used)).logits[:used].cpu().double(), future, atol=2e-5, rtol=1e-5)


def test_states_are_rounded_to_the_learners(draw: Any, count: Any, dtype: torch.dtype) -> None:
    parts, x = guessing(draw, 3, "tanh", dtype=dtype), draw(9, 32)
    assert torch.equal(parts.run(x, count(9)).logits, parts.run(x.to(dtype), count(9)).logits)
