"""The gate's forms, decided in the launch of the exit or, for many labels, in one of its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pfengine.kernels.decide import ExitTest
from pfengine.kernels.past_future import Folded, past_future

from .exits import parts_of

CASES = [  # form, gates per label, labels, future, rows, rows in use
    ("none", False, 2, "", 1, 1), ("none", False, 40, "tanh", 21, 18), ("none", False, 3, "folded", 3, 0),
    ("paper", False, 2, "folded", 21, 18), ("paper", True, 7, "tanh", 1, 1), ("paper", True, 40, "folded", 3, 0),
    ("paper", False, 3, "tanh", 21, 18), ("authors", False, 7, "", 21, 18), ("authors", True, 2, "folded", 1, 1),
    ("authors", True, 3, "tanh", 21, 18), ("authors", False, 40, "folded", 3, 2), ("authors", True, 9, "", 3, 3),
    ("authors", True, 40, "tanh", 5, 4), ("authors", True, 300, "", 6, 6),
]  # fmt: skip


@pytest.mark.parametrize(("form", "per_label", "labels", "future", "rows", "used"), CASES)
def test_gate_merge(
    draw: Any, count: Any, form: Any, per_label: bool, labels: int, future: str, rows: int, used: int
) -> None:
    parts = parts_of(draw, form, per_label, labels, future, hidden=20, offset=labels != 3)
    x = draw(rows, 20)
    x[used:] = float("nan")
    logits = parts.run(x, count(used)).logits
    torch.testing.assert_close(logits[:used].cpu().double(), parts.exact(x[:used])[1], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("future", ["folded", "tanh"])
@pytest.mark.parametrize("labels", [3, 20])
def test_nan_stays_in_its_row(draw: Any, count: Any, labels: int, future: str) -> None:
    parts, x = parts_of(draw, "authors", True, labels, future), draw(3, 32)
    x[1, 5] = float("nan")
    logits = parts.run(x, count(3)).logits
    assert torch.equal(logits.isnan().all(1).cpu(), torch.tensor([False, True, False]))
    assert not logits[[0, 2]].isnan().any()


def test_wrong_arguments_are_refused() -> None:
    past, used = (torch.zeros(4, 8), torch.zeros(4)), torch.ones(1, dtype=torch.int32)
    future = Folded(torch.zeros(2, 8), torch.zeros(2))
    for arguments, text in (
        ({"labels": 3, "gates": 1, "form": "none"}, "1 gates for 3 labels, which does not fit the form 'none'"),
        ({"labels": 3, "gates": 2, "form": "paper"}, "2 gates for 3 labels, which does not fit the form 'paper'"),
        ({"labels": 3, "gates": 3, "form": "paper"}, "past has 4 rows, expected 6 or more for 3 labels"),
        ({"labels": 2, "gates": 2, "form": "paper"}, "the paper's gate weighs a future"),
        ({"labels": 2, "gates": 1, "form": "authors"}, "gate is None, which does not fit the form 'authors'"),
        ({"labels": 2, "gates": 1, "form": "paper", "future": future, "gate": past}, "gate is given"),
        ({"labels": 2, "gates": 1, "form": "neither"}, "form 'neither'"),
        ({"labels": 2, "gates": 2, "form": "authors", "gate": (torch.zeros(2, 3), past[1])}, "gate is torch.float32"),
    ):
        with pytest.raises(ValueError, match=text):
            past_future(torch.zeros(2, 8), past, test=ExitTest(1), count=used, arrived=used, **arguments)  # type: ignore[arg-type]
