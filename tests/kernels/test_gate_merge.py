from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pfengine.kernels.answers import Answers
from pfengine.kernels.gate_merge import gate_merge
from pfengine.ops import reference


def expected(past: Tensor, labels: int, width: int, future: Tensor | None, gate: Any, layers: int) -> Tensor:
    logits, gates = past[:, :labels], past[:, labels : labels + width]
    if not width:
        return logits if future is None else logits + future
    return reference.gate_merge(logits, gates, future, gate, layers)


@pytest.mark.parametrize("form", ["none", "paper", "authors"])
@pytest.mark.parametrize("width", ["row", "label"])
@pytest.mark.parametrize("labels", [2, 3, 7, 40])
@pytest.mark.parametrize("chunks", [0, 1, 5])
@pytest.mark.parametrize(("rows", "used"), [(1, 1), (3, 0), (21, 18)])
def test_gate_merge(
    draw: Any, count: Any, device: torch.device, form: Any, width: str, labels: int, chunks: int, rows: int, used: int
) -> None:
    if form == "paper" and not chunks:
        pytest.skip("the paper's gate weighs a future")
    gates = 0 if form == "none" else 1 if width == "row" else labels
    past, shares, bias = draw(rows, labels + gates + 2), draw(chunks, rows, labels), draw(labels)
    past[used:], shares[:, used:] = float("nan"), float("nan")
    gate = (draw(gates, gates), draw(gates)) if form == "authors" else None
    future = (shares, bias if labels != 3 else None) if chunks else None
    limit = torch.tensor([0.4], device=device)
    logits, entropy, leave = gate_merge(
        past, labels, gates, form, "entropy", limit, count(used), future=future, gate=gate, states=3
    )
    summed = None if future is None else shares.cpu().double().sum(0)[:used]
    summed = summed if summed is None or labels == 3 else summed + bias.cpu().double()
    prepared = None
    if gate is not None:
        prepared = reference.prepare_linear(*(x.cpu().double() for x in gate), torch.float64)
    exact = expected(past.cpu().double()[:used], labels, gates, summed, prepared, 3)
    torch.testing.assert_close(logits[:used].cpu().double(), exact.double(), atol=2e-5, rtol=1e-5)
    log_p = torch.log_softmax(logits[:used].cpu().double(), -1)
    torch.testing.assert_close(entropy[:used].cpu().double(), -(log_p.exp() * log_p).sum(-1), atol=2e-6, rtol=0)
    assert torch.equal(leave[:used], entropy[:used] < 0.4)


def test_rows_that_leave_write_their_answers(draw: Any, count: Any, device: torch.device) -> None:
    past, shares, places = draw(20, 4), draw(2, 20, 2), torch.arange(20, device=device).flip(0)
    out, left = torch.full((20, 2), 9.0, device=device), torch.zeros(20, dtype=torch.int64, device=device)
    limit = torch.tensor([0.4], device=device)
    to = Answers(places, out, left, 3)
    logits, entropy, leave = gate_merge(past, 2, 2, "paper", "entropy", limit, count(18), future=(shares, None), to=to)
    assert torch.equal(leave[:18], entropy[:18] < 0.4)
    assert 0 < leave[:18].sum() < 18
    goes = torch.zeros(20, dtype=torch.bool, device=device)
    goes[:18] = leave[:18]
    assert torch.equal(left.flip(0), 3 * goes)
    assert torch.equal(out.flip(0), torch.where(goes[:, None], logits, 9.0))


def test_wrong_arguments_are_refused() -> None:
    past, one, used = torch.zeros(2, 4), torch.ones(1), torch.ones(1, dtype=torch.int32)
    for arguments, text in (
        ({"labels": 3, "gates": 1, "form": "none"}, "1 gates for 3 labels, which does not fit the form 'none'"),
        ({"labels": 3, "gates": 2, "form": "paper"}, "2 gates for 3 labels, which does not fit the form 'paper'"),
        ({"labels": 3, "gates": 3, "form": "paper"}, "past has 4 columns, expected 6 or more"),
        ({"labels": 2, "gates": 2, "form": "paper"}, "the paper's gate weighs a future"),
        ({"labels": 2, "gates": 1, "form": "authors"}, "gate is None, which does not fit the form 'authors'"),
        ({"labels": 2, "gates": 1, "form": "neither"}, "form 'neither'"),
        (
            {
                "labels": 2,
                "gates": 0,
                "form": "none",
                "to": Answers(torch.arange(2), torch.zeros(2, 3), used.long(), 1),
            },
            r"answers' logits is torch.float32 \[2, 3\]",
        ),
        ({"labels": 4, "gates": 0, "form": "none", "future": (torch.zeros(1, 2, 3), torch.zeros(4))}, "shares is"),
    ):
        with pytest.raises(ValueError, match=text):
            gate_merge(past, signal="entropy", threshold=one, count=used, **arguments)  # type: ignore[arg-type]
