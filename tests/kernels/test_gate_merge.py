from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pfengine.kernels.decide import ExitTest, Form
from pfengine.kernels.gate_merge import gate_merge
from pfengine.ops import reference
from pfengine.ops.decide import signal


def expected(past: Tensor, labels: int, width: int, future: Tensor | None, gate: Any, layers: int) -> Tensor:
    logits, gates = past[:, :labels], past[:, labels : labels + width]
    if not width:
        return logits if future is None else logits + future
    return reference.gate_merge(logits, gates, future, gate, layers)


CASES = [  # form, gates per "row" or "label", labels, chunks, rows, rows in use
    ("none", "row", 2, 0, 1, 1), ("none", "row", 40, 5, 21, 18), ("none", "label", 3, 1, 3, 0),
    ("paper", "row", 2, 1, 21, 18), ("paper", "label", 7, 5, 1, 1), ("paper", "label", 40, 1, 3, 0),
    ("paper", "row", 3, 5, 21, 18), ("authors", "row", 7, 0, 21, 18), ("authors", "label", 2, 1, 1, 1),
    ("authors", "label", 3, 5, 21, 18), ("authors", "row", 40, 1, 3, 0), ("authors", "label", 7, 0, 3, 0),
]  # fmt: skip


@pytest.mark.parametrize(("form", "width", "labels", "chunks", "rows", "used"), CASES)
def test_gate_merge(
    draw: Any, count: Any, form: Any, width: str, labels: int, chunks: int, rows: int, used: int
) -> None:
    gates = 0 if form == "none" else 1 if width == "row" else labels
    past, shares, bias = draw(rows, labels + gates + 2), draw(chunks, rows, labels), draw(labels)
    past[used:], shares[:, used:] = float("nan"), float("nan")
    gate = (draw(gates, gates), draw(gates)) if form == "authors" else None
    future = (shares, bias if labels != 3 else None) if chunks else None
    logits = gate_merge(past, labels, gates, form, ExitTest(1), count(used), future=future, gate=gate, states=3).logits
    summed = None if future is None else shares.cpu().double().sum(0)[:used]
    summed = summed if summed is None or labels == 3 else summed + bias.cpu().double()
    prepared = None
    if gate is not None:
        prepared = reference.prepare_linear(*(x.cpu().double() for x in gate), torch.float64)
    exact = expected(past.cpu().double()[:used], labels, gates, summed, prepared, 3)
    torch.testing.assert_close(logits[:used].cpu().double(), exact.double(), atol=2e-5, rtol=1e-5)


def test_rows_that_leave_write_their_answers(draw: Any, count: Any, device: torch.device) -> None:
    past, shares, slots = draw(20, 4), draw(2, 20, 2), torch.arange(20, device=device).flip(0)
    out, left = torch.full((20, 2), 9.0, device=device), torch.zeros(20, dtype=torch.int64, device=device)
    numbers = torch.tensor([[0.4, 1.0, 1.0]], device=device)
    test = ExitTest(3, (Form("entropy", "<"),), numbers, slots=slots, to_logits=out, to_layers=left)
    logits, _, leave = gate_merge(past, 2, 2, "paper", test, count(18), future=(shares, None))
    assert torch.equal(leave[:18].cpu(), signal("entropy", logits[:18].cpu()) < 0.4)
    assert 0 < leave[:18].sum() < 18
    goes = torch.zeros(20, dtype=torch.bool, device=device)
    goes[:18] = leave[:18]
    assert torch.equal(left.flip(0), 3 * goes)
    assert torch.equal(out.flip(0), torch.where(goes[:, None], logits, 9.0))


def test_wrong_arguments_are_refused() -> None:
    past, used = torch.zeros(2, 4), torch.ones(1, dtype=torch.int32)
    for arguments, text in (
        ({"labels": 3, "gates": 1, "form": "none"}, "1 gates for 3 labels, which does not fit the form 'none'"),
        ({"labels": 3, "gates": 2, "form": "paper"}, "2 gates for 3 labels, which does not fit the form 'paper'"),
        ({"labels": 3, "gates": 3, "form": "paper"}, "past has 4 columns, expected 6 or more"),
        ({"labels": 2, "gates": 2, "form": "paper"}, "the paper's gate weighs a future"),
        ({"labels": 2, "gates": 1, "form": "authors"}, "gate is None, which does not fit the form 'authors'"),
        ({"labels": 2, "gates": 1, "form": "neither"}, "form 'neither'"),
        ({"labels": 4, "gates": 0, "form": "none", "future": (torch.zeros(1, 2, 3), torch.zeros(4))}, "shares is"),
    ):
        with pytest.raises(ValueError, match=text):
            gate_merge(past, test=ExitTest(1), count=used, **arguments)  # type: ignore[arg-type]
