from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pfengine.kernels.imitation import imitation


def formula(states: Tensor, learners: Tensor, bias: Tensor, projection: Tensor, activation: str) -> Tensor:
    guesses = F.linear(states, learners) + bias.to(states.dtype)
    guesses = torch.tanh(guesses) if activation == "tanh" else guesses
    return F.linear(guesses.to(projection.dtype), projection)


@pytest.mark.parametrize(
    ("activation", "layers", "hidden", "rows", "used", "labels"),
    [
        ("tanh", 1, 64, 1, 1, 2),
        ("none", 3, 60, 70, 66, 7),
        ("tanh", 5, 48, 70, 66, 2),
        ("none", 1, 64, 4, 0, 2),
        ("tanh", 3, 60, 1, 1, 7),
    ],
)
def test_imitation(
    draw: Any, count: Any, check: Any, dtype: torch.dtype, activation: str, layers: int, hidden: int, rows: int,
    used: int, labels: int,
) -> None:  # fmt: skip
    states, learners = draw(rows, hidden, dtype=dtype), draw(layers * hidden, hidden, dtype=dtype, scale=hidden**-0.5)
    bias, projection = draw(layers * hidden), draw(labels, layers * hidden, scale=hidden**-0.5)
    states[used:] = float("nan")
    shares = imitation(states, learners, bias, projection, activation, count(used))
    assert (shares.dtype, shares.shape[1:]) == (torch.float32, (rows, labels))
    # the guesses themselves are float32 here, in every dtype
    exact = formula(*(x.cpu().double() for x in (states[:used], learners, bias, projection)), activation)
    torch.testing.assert_close(shares[:, :used].cpu().double().sum(0), exact, atol=2e-5, rtol=1e-5)


def test_a_row_does_not_depend_on_how_many_there_are(draw: Any, count: Any, dtype: torch.dtype) -> None:
    states, learners, bias, projection = draw(70, 32, dtype=dtype), draw(96, 32, dtype=dtype), draw(96), draw(3, 96)
    ours = imitation(states, learners, bias, projection, "tanh", count(70))
    for rows in (1, 2, 33):
        some = imitation(states[:rows].contiguous(), learners, bias, projection, "tanh", count(rows))
        assert torch.equal(some, ours[:, :rows])


def test_states_by_place(draw: Any, count: Any, dtype: torch.dtype, device: torch.device) -> None:
    states, learners, bias, projection = draw(9, 32), draw(96, 32, dtype=dtype), draw(96), draw(3, 96)
    source_rows = torch.tensor([0, 4, 8], dtype=torch.int32, device=device)
    some = imitation(states, learners, bias, projection, "tanh", count(3), source_rows=source_rows)
    every = imitation(states.to(dtype), learners, bias, projection, "tanh", count(9))
    assert torch.equal(some, every[:, source_rows.long()])


@pytest.mark.slow
@pytest.mark.parametrize("labels", [2, 150])
def test_real_size(draw: Any, count: Any, labels: int) -> None:
    states, learners = draw(9, 384, dtype=torch.float16), draw(768, 384, dtype=torch.float16, scale=0.05)
    bias, projection = draw(768), draw(labels, 768, scale=0.05)
    shares = imitation(states, learners, bias, projection, "tanh", count(9))
    exact = formula(*(x.cpu().double() for x in (states, learners, bias, projection)), "tanh")
    torch.testing.assert_close(shares.cpu().double().sum(0), exact, atol=1e-4, rtol=1e-4)


def test_wrong_arguments_are_refused() -> None:
    states, learners, bias = torch.zeros(2, 4), torch.zeros(8, 4), torch.zeros(8)
    with pytest.raises(ValueError, match=r"projection is torch.float32 \[3, 9\]"):
        imitation(states, learners, bias, torch.zeros(3, 9), "tanh", torch.ones(1, dtype=torch.int32))
    with pytest.raises(ValueError, match=r"learners is torch\.float64"):
        imitation(states, learners.double(), bias, torch.zeros(3, 8), "tanh", torch.ones(1, dtype=torch.int32))
