from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pfengine.heads import PastFuture
from pfengine.kernels.imitation_pooled import imitation_pooled
from pfengine.ops import cuda, reference

from ..heads.test_past_future import ROWS, config_of, step
from ..heads.test_variants import random_tensors

POOLINGS = ["max", "attention"]


def formula(
    states: Tensor, learners: Tensor, bias: Tensor, projection: Tensor, activation: str, pooling: str
) -> Tensor:
    guesses = (F.linear(states, learners) + bias).unflatten(1, (-1, states.shape[1]))
    guesses = torch.tanh(guesses) if activation == "tanh" else guesses
    if pooling == "max":
        return F.linear(guesses.amax(1), projection)
    scores = torch.einsum("rjh,rh->rj", guesses, guesses[:, -1]) / states.shape[1] ** 0.5
    return F.linear(torch.einsum("rj,rjh->rh", scores.softmax(1), guesses), projection)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize(
    ("activation", "layers", "hidden", "rows", "used", "labels"),
    [("tanh", 1, 64, 1, 1, 2), ("none", 3, 60, 70, 66, 7), ("tanh", 5, 48, 4, 0, 2), ("tanh", 3, 60, 1, 1, 7)],
)
def test_imitation_pooled(
    draw: Any, count: Any, dtype: torch.dtype, pooling: Any, activation: str, layers: int, hidden: int, rows: int,
    used: int, labels: int,
) -> None:  # fmt: skip
    states, learners = draw(rows, hidden, dtype=dtype), draw(layers * hidden, hidden, dtype=dtype, scale=hidden**-0.5)
    bias, projection = draw(layers * hidden), draw(labels, hidden, scale=hidden**-0.5)
    states[used:] = float("nan")
    shares = imitation_pooled(states, learners, bias, projection, activation, pooling, count(used))
    assert (shares.dtype, shares.shape) == (torch.float32, (1, rows, labels))
    # the guesses themselves are float32 here, in every dtype
    exact = formula(*(x.cpu().double() for x in (states[:used], learners, bias, projection)), activation, pooling)
    torch.testing.assert_close(shares[:, :used].cpu().double().sum(0), exact, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_row_does_not_depend_on_how_many_there_are(draw: Any, count: Any, dtype: torch.dtype, pooling: Any) -> None:
    states, learners, bias, projection = draw(70, 96, dtype=dtype), draw(192, 96, dtype=dtype), draw(192), draw(3, 96)
    ours = imitation_pooled(states, learners, bias, projection, "tanh", pooling, count(70))
    assert len(ours) == (2 if pooling == "max" else 1)
    for rows in (1, 2, 33):
        some = imitation_pooled(states[:rows].contiguous(), learners, bias, projection, "tanh", pooling, count(rows))
        assert torch.equal(some, ours[:, :rows])


@pytest.mark.filterwarnings("ignore:All-NaN slice")  # of numpy, in the interpreter
@pytest.mark.parametrize("pooling", POOLINGS)
def test_nan_stays_in_its_row(draw: Any, count: Any, pooling: Any) -> None:
    states, learners = draw(3, 48), draw(96, 48)
    states[1, 5] = float("nan")
    shares = imitation_pooled(states, learners, draw(96), draw(2, 48), "tanh", pooling, count(3))
    assert torch.equal(shares.isnan().any(0).all(1).cpu(), torch.tensor([False, True, False]))
    assert not shares[:, [0, 2]].isnan().any()


@pytest.mark.slow
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("labels", [2, 150])
def test_real_size(draw: Any, count: Any, labels: int, pooling: Any) -> None:
    states, learners = draw(9, 384, dtype=torch.float16), draw(1152, 384, dtype=torch.float16, scale=0.05)
    bias, projection = draw(1152), draw(labels, 384, scale=0.05)
    shares = imitation_pooled(states, learners, bias, projection, "tanh", pooling, count(9))
    assert shares.shape == (6 if pooling == "max" else 1, 9, labels)
    exact = formula(*(x.cpu().double() for x in (states, learners, bias, projection)), "tanh", pooling)
    torch.testing.assert_close(shares.cpu().double().sum(0), exact, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("pooling", POOLINGS)
def test_as_many_learners_as_a_large_model_has(draw: Any, count: Any, pooling: Any) -> None:
    parts = draw(3, 32), draw(23 * 32, 32, scale=0.2), draw(23 * 32), draw(2, 32, scale=0.2)
    shares = imitation_pooled(*parts, "tanh", pooling, count(3))
    exact = formula(*(x.cpu().double() for x in parts), "tanh", pooling)
    torch.testing.assert_close(shares.cpu().double().sum(0), exact, atol=2e-5, rtol=1e-5)


def test_wrong_arguments_are_refused() -> None:
    states, learners, bias, projection = torch.zeros(2, 4), torch.zeros(8, 4), torch.zeros(8), torch.zeros(3, 4)
    count = torch.ones(1, dtype=torch.int32)
    for wrong, message in (
        ({"projection": torch.zeros(3, 8)}, r"projection is torch.float32 \[3, 8\]"),
        ({"projection": torch.zeros(1025, 4)}, "there are 1025 labels, expected 1 to 1,024"),
        ({"learners": learners.half()}, r"learners is torch\.float16"),
        ({"learners": torch.zeros(7, 4), "bias": torch.zeros(7)}, "learners has 7 rows, expected a multiple of 4"),
        ({"learners": torch.zeros(0, 4), "bias": torch.zeros(0)}, "learners has 0 rows"),
        ({"bias": torch.zeros(4)}, r"bias is torch.float32 \[4\]"),
        ({"count": count.long()}, r"count is torch\.int64"),
        ({"pooling": "avg"}, "pooling is 'avg'; it must be one of max, attention"),
    ):
        good = {"states": states, "learners": learners, "bias": bias, "projection": projection, "pooling": "max"}
        with pytest.raises(ValueError, match=message):
            imitation_pooled(**(good | {"activation": "tanh", "count": count} | wrong))  # type: ignore[arg-type]


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize(("rows", "layer"), [(0, 1), (9, 1), (1, 3)])
def test_the_op_set(draw: Any, dtype: torch.dtype, pooling: Any, rows: int, layer: int) -> None:
    n, hidden, labels = 4, 70, 3
    states, learners = draw(rows, hidden), (draw(n - 1, hidden, hidden, scale=hidden**-0.5), draw(n - 1, hidden))
    projection, results = (draw(labels, hidden, scale=hidden**-0.5), draw(labels)), []
    for ops, dtype_of in ((cuda, dtype), (reference, torch.float32)):
        weights = ops.prepare_imitation(*learners, "tanh", [], dtype_of)
        prepared = ops.prepare_linear(*projection, torch.float32)
        results.append(ops.pooled(states, weights, layer, pooling, prepared))
        assert (results[-1].dtype, results[-1].shape) == (torch.float32, (rows, labels))
        for i in range(rows if ops is cuda else 0):
            assert torch.equal(ops.pooled(states[i : i + 1], weights, layer, pooling, prepared), results[0][i : i + 1])
    tolerance = 2e-5 if dtype == torch.float32 else 5e-3  # states and learners rounded to 16 bits
    torch.testing.assert_close(*results, atol=tolerance, rtol=1e-5)


@pytest.mark.parametrize("incorporate", POOLINGS)
@pytest.mark.parametrize("learner", ["tanh", "linear"])
def test_heads(device: torch.device, incorporate: str, learner: str) -> None:
    config = config_of(4, 24, 3)
    head = {"type": "past-future", "pooler": "per-layer", "incorporate": incorporate, "learner": learner, "gate": "row"}
    tensors, states, results = random_tensors(head, config), torch.randn(4, ROWS, 24), []
    for ops, where in ((cuda, device), (reference, torch.device("cpu"))):
        on_device = {key: value.to(where) for key, value in tensors.items()}
        built, state, logits = PastFuture(ops, config, head, on_device, torch.float32), None, []
        for layer in range(1, 5):
            out, state = step(built, layer, states[layer - 1].to(where), state, answer=True)
            assert out is not None
            logits.append(out.cpu())
        results.append(torch.stack(logits))
    torch.testing.assert_close(*results, atol=2e-5, rtol=2e-5)
