from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pfengine.kernels.answers import Answers
from pfengine.kernels.exit_head import SIGNALS, exit_head


def signal_of(logits: Tensor, signal: str) -> Tensor:
    log_p = torch.log_softmax(logits, -1)
    p = log_p.exp()
    if signal == "entropy":
        return -(p * log_p.clamp(min=-1e30)).sum(-1)
    top = p.topk(min(2, p.shape[1])).values
    return top[:, 0] if signal == "confidence" else top[:, 0] - (top[:, 1] if top.shape[1] > 1 else 0)


def formula(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.linear(x.to(weight.dtype), weight, bias)


@pytest.mark.parametrize("signal", SIGNALS)
@pytest.mark.parametrize("labels", [1, 2, 3, 7, 33])
@pytest.mark.parametrize(("rows", "used"), [(1, 1), (5, 0), (17, 16), (40, 35)])
def test_exit_head(
    draw: Any, count: Any, check: Any, dtype: torch.dtype, device: torch.device, signal: str, labels: int, rows: int,
    used: int,
) -> None:  # fmt: skip
    x, weight, bias = draw(rows, 60, dtype=dtype), draw(labels, 60, scale=0.3), draw(labels)
    x[used:] = float("nan")
    limit = 0.5 if signal == "entropy" else 0.6
    threshold = torch.tensor([limit], device=device)
    logits, value, leave = exit_head(x, weight, bias, signal, threshold, count(used))
    assert (logits.shape, value.shape, leave.dtype) == ((rows, labels), (rows,), torch.bool)
    check(logits[:used], formula, [x[:used], weight, bias])
    exact = signal_of(logits[:used].cpu().double(), signal)
    torch.testing.assert_close(value[:used].cpu().double(), exact, atol=2e-6, rtol=0)
    assert torch.equal(leave[:used], value[:used] < limit if signal == "entropy" else value[:used] > limit)


@pytest.mark.parametrize("signal", SIGNALS)
def test_everybody_and_nobody(draw: Any, count: Any, device: torch.device, signal: str) -> None:
    x, weight, bias = draw(20, 16), draw(3, 16), draw(3)
    for limit, expected in ((-1.0, signal != "entropy"), (10.0, signal == "entropy")):
        leave = exit_head(x, weight, bias, signal, torch.tensor([limit], device=device), count(20))[2]
        assert leave.all() if expected else not leave.any()


@pytest.mark.parametrize("signal", SIGNALS)
def test_logits_that_saturate_or_tie_or_are_nan(count: Any, device: torch.device, signal: str) -> None:
    def run(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        limit = torch.tensor([0.1 if signal == "entropy" else 0.9], device=device)
        bias = torch.zeros(2, device=device)
        return exit_head(x.to(device), weight.to(device), bias, signal, limit, count(len(x)))[1:]

    value, leave = run(torch.eye(2), torch.tensor([[1e4, 1.0], [-1e4, 1.0]]))
    surest, tie = {"entropy": (0.0, 0.6931472), "confidence": (1.0, 0.5), "margin": (1.0, 0.0)}[signal]
    assert value.tolist() == pytest.approx([surest, tie], abs=1e-6)
    assert leave.tolist() == [True, False]
    value, leave = run(torch.ones(1, 1), torch.tensor([[float("nan")], [0.0]]))
    assert value.isnan().all()
    assert not leave.any()


@pytest.mark.parametrize("labels", [2, 20])
def test_rows_by_place(draw: Any, count: Any, device: torch.device, labels: int) -> None:
    x, weight, bias, threshold = draw(9, 32), draw(labels, 32), draw(labels), torch.zeros(1, device=device)
    source_rows = torch.tensor([0, 4, 8], dtype=torch.int32, device=device)
    some = exit_head(x, weight, bias, "entropy", threshold, count(3), source_rows=source_rows)[0]
    every = exit_head(x, weight, bias, "entropy", threshold, count(9))[0]
    assert torch.equal(some, every[source_rows.long()])


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("with_layers", [False, True])
@pytest.mark.parametrize(("rows", "used", "labels"), [(1, 1, 2), (5, 0, 3), (20, 17, 40)])
def test_rows_that_leave_write_their_answers(
    draw: Any, count: Any, device: torch.device, rows: int, used: int, labels: int, with_layers: bool, last: bool
) -> None:
    x, weight, bias = draw(rows, 32), draw(labels, 32, scale=0.3), draw(labels)
    source_rows = torch.arange(rows, device=device).flip(0) + 2
    layers = torch.arange(rows + 2, device=device) if with_layers else None
    out = torch.full((rows + 2, labels), 9.0, device=device)
    left = torch.zeros(rows + 2, dtype=torch.int64, device=device)
    alone, entropy, _ = exit_head(x, weight, bias, "entropy", torch.zeros(1, device=device), count(rows))
    limit = entropy.median().reshape(1)
    to = Answers(source_rows, out, left, 5, layers, last)
    logits, _, leave = exit_head(x, weight, bias, "entropy", limit, count(used), to=to)
    assert torch.equal(logits[:used], alone[:used])
    for row in range(rows):
        place = int(source_rows[row])
        goes = row < used and (bool(entropy[row] < limit) or (with_layers and place <= 5) or last)
        assert row >= used or bool(leave[row]) == goes
        assert int(left[place]) == (5 if goes else 0)
        assert torch.equal(out[place], alone[row] if goes else torch.full_like(alone[row], 9.0))
    assert (out[:2] == 9).all()


@pytest.mark.slow
def test_as_many_labels_as_there_may_be(draw: Any, count: Any, check: Any, device: torch.device) -> None:
    x, weight, bias = draw(18, 64), draw(1024, 64, scale=0.3), draw(1024)
    logits, value, _ = exit_head(x, weight, bias, "entropy", torch.zeros(1, device=device), count(18))
    check(logits, formula, [x, weight, bias])
    torch.testing.assert_close(value.cpu().double(), signal_of(logits.cpu().double(), "entropy"), atol=1e-5, rtol=0)


def test_wrong_arguments_are_refused() -> None:
    x, weight, one = torch.zeros(2, 4), torch.zeros(3, 4), torch.ones(1)
    good: dict[str, Any] = {
        "x": x, "weight": weight, "bias": torch.zeros(3), "signal": "entropy", "threshold": one,
        "count": one.int(),
    }  # fmt: skip
    for wrong, text in (
        ({"signal": "patience"}, "signal is 'patience'; it must be one of entropy, confidence, margin"),
        ({"weight": torch.zeros(1025, 4), "bias": torch.zeros(1025)}, "1025 labels, expected 1 to 1,024"),
        ({"threshold": torch.zeros(2)}, r"threshold is torch.float32 \[2\]"),
        ({"weight": weight.half()}, "weight is torch.float16"),
    ):
        with pytest.raises(ValueError, match=text):
            exit_head(**(good | wrong))
