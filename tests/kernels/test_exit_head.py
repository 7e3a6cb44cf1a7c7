"""The exit head in one launch; what it decides is `test_decide`'s."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pfengine.kernels.decide import Decided, ExitTest, Form
from pfengine.kernels.exit_head import exit_head
from pfengine.ops.decide import signal

ENTROPY = Form("entropy", "<")


def formula(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.linear(x.to(weight.dtype), weight, bias)


def below(limit: float, device: torch.device, **options: Any) -> ExitTest:
    return ExitTest(5, (ENTROPY,), torch.tensor([[limit, 1.0, 1.0]], device=device), **options)


@pytest.mark.parametrize(("labels", "rows", "used"), [(1, 1, 1), (2, 5, 0), (3, 17, 16), (7, 1, 1), (33, 40, 35)])
def test_exit_head(
    draw: Any, count: Any, check: Any, dtype: torch.dtype, device: torch.device, labels: int, rows: int, used: int
) -> None:
    x, weight, bias = draw(rows, 60, dtype=dtype), draw(labels, 60, scale=0.3), draw(labels)
    x[used:] = float("nan")
    out = Decided.empty(rows, labels, device, 1)
    logits, value, leave = exit_head(x, weight, bias, below(0.5, device), count(used), out=out)
    check(logits[:used], formula, [x[:used], weight, bias])
    assert value is not None
    exact = signal("entropy", logits[:used].cpu().double()).double()
    torch.testing.assert_close(value[0, :used].cpu().double(), exact, atol=2e-6, rtol=0)
    assert torch.equal(leave[:used], value[0, :used] < 0.5)


@pytest.mark.parametrize("labels", [2, 20])
def test_source_rows(draw: Any, count: Any, device: torch.device, labels: int) -> None:
    x, weight, bias = draw(9, 32), draw(labels, 32), draw(labels)
    rows = torch.tensor([0, 4, 8], dtype=torch.int32, device=device)
    some = exit_head(x, weight, bias, ExitTest(1), count(3), source_rows=rows)
    every = exit_head(x, weight, bias, ExitTest(1), count(9))
    assert torch.equal(some.logits, every.logits[rows.long()])
    assert not every.leave.any()  # nothing is asked


@pytest.mark.parametrize(("last", "once"), [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize(("rows", "used", "labels"), [(5, 0, 3), (20, 17, 40)])
def test_rows_that_leave_write_their_answers(
    draw: Any, count: Any, device: torch.device, rows: int, used: int, labels: int, last: bool, once: bool
) -> None:
    x, weight, bias = draw(rows, 32), draw(labels, 32, scale=0.3), draw(labels)
    slots = torch.arange(rows, device=device).flip(0) + 2
    out = torch.full((rows + 2, labels), 9.0, device=device)
    left = torch.zeros(rows + 2, dtype=torch.int64, device=device)
    left[3] = 2  # it has an answer
    alone = exit_head(x, weight, bias, ExitTest(1), count(rows)).logits
    entropy = signal("entropy", alone.cpu())
    limit = float(entropy.median())
    to: dict[str, Any] = {"slots": slots, "to_logits": out, "to_layers": left}
    test = ExitTest(5, last=True, **to) if last else below(limit, device, once=once, **to)
    leave = exit_head(x, weight, bias, test, count(used)).leave
    for row in range(rows):
        slot = int(slots[row])
        goes = row < used and (float(entropy[row]) < limit - 1e-6 or last)
        if abs(float(entropy[row]) - limit) < 1e-6 and not last:
            continue
        assert row >= used or bool(leave[row]) == goes
        writes = goes and not (once and slot == 3)
        assert int(left[slot]) == (5 if writes else 2 if slot == 3 else 0)
        assert torch.equal(out[slot], alone[row] if writes else torch.full_like(alone[row], 9.0))
    assert (out[:2] == 9).all()


@pytest.mark.slow
def test_as_many_labels_as_there_may_be(draw: Any, count: Any, check: Any, device: torch.device) -> None:
    x, weight, bias = draw(18, 64), draw(1024, 64, scale=0.3), draw(1024)
    out = Decided.empty(18, 1024, device, 1)
    exit_head(x, weight, bias, below(0.0, device), count(18), out=out)
    check(out.logits, formula, [x, weight, bias])
    assert out.signals is not None
    exact = signal("entropy", out.logits.cpu().double()).double()
    torch.testing.assert_close(out.signals[0].cpu().double(), exact, atol=1e-5, rtol=0)


def test_wrong_arguments_are_refused() -> None:
    x, weight, one = torch.zeros(2, 4), torch.zeros(3, 4), torch.ones(1, dtype=torch.int32)
    good: dict[str, Any] = {"x": x, "weight": weight, "bias": torch.zeros(3), "test": ExitTest(1), "count": one}
    for wrong, text in (
        ({"weight": torch.zeros(1025, 4), "bias": torch.zeros(1025)}, "1025 labels, expected 1 to 1,024"),
        ({"weight": weight.half()}, "weight is torch.float16"),
        ({"source_rows": torch.zeros(2)}, r"source_rows is torch.float32 \[2\]"),
        ({"out": Decided.empty(2, 4, x.device)}, r"out.logits is torch.float32 \[2, 4\]"),
    ):
        with pytest.raises(ValueError, match=text):
            exit_head(**(good | wrong))
