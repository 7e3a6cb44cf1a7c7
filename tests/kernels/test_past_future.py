"""A whole exit in one launch. The gate alone is `test_gate_merge`'s, guesses `test_imitation`'s."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pfengine.kernels.decide import Decided, ExitTest, Form
from pfengine.kernels.launch import recording
from pfengine.kernels.past_future import Folded, Imitated, arrivals_of, past_future
from pfengine.kernels.thin_linear import thin_linear
from pfengine.ops.decide import signal

from .conftest import INTERPRETED
from .exits import parts_of

CASES = [  # form, gates per label, labels, future, rows, rows in use, something to add
    ("authors", True, 2, "tanh", 70, 66, True), ("authors", False, 3, "none", 1, 1, False),
    ("authors", True, 5, "tanh", 4, 0, True), ("authors", True, 17, "tanh", 34, 33, True),
    ("authors", True, 2, "", 20, 17, True), ("paper", False, 2, "folded", 20, 17, True),
    ("paper", True, 40, "folded", 9, 9, False), ("none", False, 2, "", 17, 16, True),
    ("none", False, 1, "folded", 3, 2, False), ("none", False, 7, "tanh", 33, 33, False),
]  # fmt: skip


@pytest.mark.parametrize(("form", "per_label", "labels", "future", "rows", "used", "before"), CASES)
def test_past_future(
    draw: Any, count: Any, device: torch.device, dtype: torch.dtype, form: str, per_label: bool, labels: int,
    future: str, rows: int, used: int, before: bool,
) -> None:  # fmt: skip
    parts = parts_of(draw, form, per_label, labels, future, dtype=dtype)
    x, width = draw(rows, 32), len(parts.past[0])
    x[used:] = float("nan")
    add: dict[str, Any] = {}
    if before:
        sources = torch.arange(rows, dtype=torch.int32, device=device).flip(0)
        add = {"add": draw(rows, width + 5), "add_source_rows": sources, "add_from": 3}
    to = torch.full((rows, width), 9.0, device=device)
    arrived = torch.zeros(arrivals_of(rows), dtype=torch.int32, device=device)
    decided = parts.run(x, count(used), arrived, to=to, **add)
    added = add["add"].flip(0)[:used, 3 : 3 + width].cpu() if before else 0.0
    past, logits = parts.exact(x[:used], added)
    torch.testing.assert_close(to[:used].cpu().double(), past, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(decided.logits[:used].cpu().double(), logits, atol=2e-5, rtol=1e-5)
    assert (to[used:] == 9).all()
    assert not arrived.any()
    assert not decided.leave[:used].any()  # nothing is asked


@pytest.mark.parametrize("future", ["tanh", "folded", ""])
def test_a_row_does_not_depend_on_how_many_there_are(draw: Any, count: Any, dtype: torch.dtype, future: str) -> None:
    """Nor on how many there may be, nor does its past on whether it is asked for alone."""
    parts = parts_of(draw, "authors", True, 3, future, dtype=dtype)
    x, width = draw(70, 32), len(parts.past[0])
    add, every = draw(70, width), torch.empty(70, width, device=x.device)
    logits = parts.run(x, count(70), to=every, add=add).logits
    for rows, used in ((1, 1), (2, 2), (33, 33), (70, 9)):
        some = torch.empty(rows, width, device=x.device)
        ours = parts.run(x[:rows].contiguous(), count(used), to=some, add=add[:rows].contiguous()).logits
        assert torch.equal(ours[:used], logits[:used])
        assert torch.equal(some[:used], every[:used])
    assert torch.equal(thin_linear(x, *parts.past, count(70), add=add), every)


def test_states_by_place(draw: Any, count: Any, device: torch.device) -> None:
    x, sources = draw(9, 32), torch.tensor([0, 4, 8, 99], dtype=torch.int32, device=device)
    score = draw(1, 32), draw(1)
    for future in ("tanh", "folded"):
        parts = parts_of(draw, "authors", True, 2, future)
        learned, every = (torch.empty(rows, device=device) for rows in (4, 9))
        some = parts.run(x, count(3), source_rows=sources, learned=score, test=ExitTest(1, learned=learned))
        expected = parts.run(x, count(9), learned=score, test=ExitTest(1, learned=every))
        assert torch.equal(some.logits[:3], expected.logits[sources[:3].long()])
        assert torch.equal(learned[:3], every[sources[:3].long()])
        torch.testing.assert_close(expected.logits.cpu().double(), parts.exact(x)[1], atol=2e-5, rtol=1e-5)
        exact = torch.sigmoid(x.double() @ score[0][0].double() + score[1].double())
        torch.testing.assert_close(every.double(), exact, atol=2e-6, rtol=0)


@pytest.mark.parametrize("future", ["tanh", "folded"])
def test_launches_share_their_counters(draw: Any, count: Any, device: torch.device, future: str) -> None:
    """As a graph replays them: with any number of rows, blocks of rows that have none, and none at all in between."""
    parts = parts_of(draw, "authors", True, 2, future)
    x, arrived = draw(140, 32), torch.zeros(arrivals_of(140) + 3, dtype=torch.int32, device=device)
    logits = parts.run(x, count(140)).logits
    for used in (1, 140, 0, 5, 64, 0, 65, 140):
        assert torch.equal(parts.run(x, count(used), arrived).logits[:used], logits[:used])
        assert not arrived.any()


@pytest.mark.parametrize("future", ["tanh", "folded", ""])
def test_one_part_is_the_last(draw: Any, count: Any, future: str) -> None:
    """A single chunk of guesses, or a single tile."""
    parts = parts_of(draw, "none", False, 2, future, learners=1, more=0)
    x = draw(3, 32)
    torch.testing.assert_close(parts.run(x, count(3)).logits.cpu().double(), parts.exact(x)[1], atol=2e-5, rtol=1e-5)


@pytest.mark.skipif(not INTERPRETED, reason="a GPU has an order of its own")
@pytest.mark.parametrize("order", ["last first", "shuffled"])
@pytest.mark.parametrize("future", ["tanh", "folded"])
def test_parts_may_finish_in_any_order(
    draw: Any, count: Any, monkeypatch: pytest.MonkeyPatch, future: str, order: str
) -> None:
    from triton.runtime.interpreter import interpreter_builder as builder

    parts, x = parts_of(draw, "authors", True, 2, future), draw(70, 32)
    logits = parts.run(x, count(70)).logits
    place = builder.set_grid_idx

    @functools.cache
    def order_of(programs: int) -> list[int]:
        if order == "last first":
            return [*range(programs)][::-1]
        return np.random.default_rng(0).permutation(programs).tolist()

    def elsewhere(number: int, *_: int) -> None:
        place(order_of(builder.grid_dim[0])[number], 0, 0)

    monkeypatch.setattr(builder, "set_grid_idx", elsewhere)
    assert torch.equal(parts.run(x, count(70)).logits, logits)


def meta(*shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def test_many_parts_and_rows_are_within_what_cuda_launches() -> None:
    """65,535 programs in all dimensions but the first: 24 layers of 700 gated labels, and many rows."""
    with recording() as found:
        for labels, more, rows in ((700, 24 * 1400, 4096), (2, 0, 1 << 20)):
            parts = parts_of(meta, "authors", True, labels, "tanh", more=more)
            parts.run(meta(rows, 32), meta(1, dtype=torch.int32))
    assert len(found) == 3
    assert found[0].grid[0] > 1 << 20
    for launch in found:
        assert all(size < 1 << 16 for size in launch.grid[1:])
        assert launch.grid[0] < 1 << 31


@pytest.mark.parametrize(("labels", "launches"), [(2, 1), (16, 1), (17, 2), (1024, 2)])
def test_few_labels_are_decided_in_the_same_launch(labels: int, launches: int) -> None:
    for future in ("tanh", "folded", ""):
        parts = parts_of(meta, "authors", True, labels, future)
        with recording() as found:
            parts.run(meta(128, 32), meta(1, dtype=torch.int32))
        assert len(found) == launches


@pytest.mark.parametrize("labels", [2, 20])
@pytest.mark.parametrize(("last", "once"), [(False, False), (True, False), (False, True)])
def test_rows_that_leave_write_their_answers(
    draw: Any, count: Any, device: torch.device, last: bool, once: bool, labels: int
) -> None:
    parts, x = parts_of(draw, "authors", True, labels, "tanh"), draw(40, 32)
    alone = parts.run(x, count(40)).logits
    entropy = signal("entropy", alone.cpu())
    limit = float(entropy.median()) + 1e-4
    slots = torch.arange(40, device=device).flip(0)
    out, left = torch.full((40, labels), 9.0, device=device), torch.zeros(40, dtype=torch.int64, device=device)
    left[5] = 2  # it has an answer
    to: dict[str, Any] = {"slots": slots, "to_logits": out, "to_layers": left}
    numbers = torch.tensor([[limit, 1.0, 1.0]], device=device)
    below = ExitTest(3, (Form("entropy", "<"),), numbers, once=once, **to)
    decided = Decided.empty(40, labels, device, 0 if last else 1)
    parts.run(x, count(37), test=ExitTest(3, last=True, **to) if last else below, out=decided)
    goes = (entropy < limit) | last
    goes[37:] = False
    assert 0 < goes.sum() < 40
    assert torch.equal(decided.leave[:37].cpu(), goes[:37])
    writes = goes & ~(once & (slots.cpu() == 5))
    assert torch.equal(left[slots].cpu(), torch.where(writes, 3, torch.where(slots.cpu() == 5, 2, 0)))
    assert torch.equal(out[slots].cpu(), torch.where(writes[:, None], alone.cpu(), 9.0))
    if decided.signals is not None and not last:
        torch.testing.assert_close(decided.signals[0, :37].cpu(), entropy[:37], atol=2e-6, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("labels", [2, 150])
def test_real_size(draw: Any, count: Any, labels: int) -> None:
    parts = parts_of(draw, "authors", True, labels, "tanh", hidden=384, dtype=torch.float16)
    x = draw(9, 384, dtype=torch.float16)
    torch.testing.assert_close(parts.run(x, count(9)).logits.cpu().double(), parts.exact(x)[1], atol=1e-4, rtol=1e-4)


def test_wrong_arguments_are_refused() -> None:
    def weights(outputs: int) -> tuple[Tensor, Tensor]:
        return torch.zeros(outputs, 4), torch.zeros(outputs)

    one = torch.ones(1, dtype=torch.int32)
    good: dict[str, Any] = {
        "x": torch.zeros(2, 4), "past": weights(4), "labels": 2, "gates": 0, "form": "none", "test": ExitTest(1),
        "count": one, "arrived": one,
    }  # fmt: skip
    imitated = Imitated(torch.zeros(12, 4), torch.zeros(12), "tanh", torch.zeros(2, 12), torch.zeros(2))
    for wrong, text in (
        ({"labels": 5}, "past has 4 rows, expected 5 or more for 5 labels"),
        ({"past": (torch.zeros(4, 3), torch.zeros(4))}, r"past is torch.float32 \[4, 3\]"),
        ({"arrived": one.long()}, r"arrived is torch.int64 \[1\]"),
        ({"arrived": one[:0]}, "arrived has 0 numbers, expected 1 for 2 rows"),
        ({"learned": weights(2)}, r"learned is torch.float32 \[2, 4\]"),
        ({"learned": weights(1)}, "test.learned, which it is written to, is None"),
        ({"future": Folded(*weights(3))}, r"future is torch.float32 \[3, 4\]"),
        ({"future": imitated._replace(projection=torch.zeros(2, 9))}, r"projection is torch.float32 \[2, 9\]"),
        ({"future": imitated._replace(learners=torch.zeros(12, 4).double())}, r"learners is torch\.float64"),
        ({"future": imitated._replace(offset=torch.zeros(3))}, r"offset is torch.float32 \[3\]"),
        ({"past": weights(1025), "labels": 1025}, "there are 1025 labels, expected 1 to 1,024"),
        ({"to": torch.zeros(2, 3)}, r"out is torch.float32 \[2, 3\]"),
    ):
        with pytest.raises(ValueError, match=text):
            past_future(**(good | wrong))
