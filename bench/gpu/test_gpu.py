"""What `bench/gpu.sh` runs: plan, warm-up, measurement, and the report where nothing is measured."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import pytest
import torch

from ..knobs import AT_THE_END
from . import report
from .parts import ceilings, kernels, ragged_attention, soak, timelines
from .results import KEPT, OUT_OF_TIME, Results, kept
from .whole import full_depth, gemm_share, head_share, latency, replay
from .work import (
    AUTOTUNED,
    DOCS,
    DRY,
    EAGER,
    INT8,
    LENGTHS,
    OUT,
    OVERHEAD,
    RAGGED,
    SIZES,
    Cell,
    Prediction,
    asked_for,
    device,
    engine,
    exit_layers,
    int8_engine,
    seconds_left,
)

DEVICE = device()
ASKED = asked_for(os.environ.get("PFENGINE_GPU_PARTS"))
STOPPED = os.environ.get("PFENGINE_GPU_REPORT") == "1"  # a run that was killed before it wrote its own
PATIENCE = 20 if DRY else 1  # interpreted kernels may take minutes on a slow machine
COMPILES = {OVERHEAD: 40, AUTOTUNED: 75}  # seconds that a model may take to compile, with some to spare


class Item(NamedTuple):
    part: str  # of a run, one of PARTS; the ceilings are of every run, as its figures are held against them
    what: str
    run: Callable[[torch.device, Results], None]
    needs: int = 8  # seconds that must be left, or it is not begun
    limit: int = 90  # seconds after which it is stopped


HIDDEN, GOAL, LARGE = SIZES.hidden[0], SIZES.goal_batch, SIZES.large_batch
FIRST = Cell(HIDDEN, "SST-2", GOAL)
OF_GOALS = [Cell(HIDDEN, "SST-2", n) for n in sorted({LARGE, 32, 1} & {*SIZES.batches, LARGE}, reverse=True)]
IN_INT8 = [Cell(HIDDEN, lengths, GOAL) for lengths in LENGTHS]
CELLS = [Cell(size, lengths, n) for size in SIZES.hidden for lengths in LENGTHS for n in SIZES.batches]


# to compile for; the largest first, so that workers end together
WARM = sorted({FIRST, *OF_GOALS, *(CELLS if ASKED & {"tables", "peers"} else ())}, key=lambda cell: -cell.batch)


def plan() -> Iterator[Item]:
    """What takes little time and what goals ask for first; what torch.compile has to be waited for last."""
    yield Item("", "ceilings", ceilings)
    yield _full_depth("goals", FIRST, EAGER)
    yield Item("goals", "GEMM share", gemm_share)
    yield Item("goals", "latency of one row", latency)
    for cell in OF_GOALS:
        yield _replay("goals", cell)
    for lengths in reversed(LENGTHS):
        cell = Cell(HIDDEN, lengths, GOAL)
        yield Item("goals", f"{cell}: exit head", partial(head_share, cell))
    yield Item("goals", "ragged attention", ragged_attention)
    yield _full_depth("goals", FIRST, OVERHEAD)
    yield Item("timeline", "timeline", partial(timelines, sorted({FIRST, *OF_GOALS}, reverse=True)), needs=25)
    for hidden in SIZES.hidden:
        for batch in (1, GOAL, LARGE):
            yield Item("kernels", f"hidden {hidden}, batch {batch}: kernels", partial(kernels, hidden, batch))
    for cell in IN_INT8:
        yield _full_depth("tables", cell, INT8)
    for cell in CELLS:
        if cell not in OF_GOALS:
            yield _replay("tables", cell)
        if cell != FIRST:
            yield _full_depth("tables", cell, EAGER)
    yield _full_depth("peers", FIRST, AUTOTUNED)
    for peer in (OVERHEAD, RAGGED):
        for cell in CELLS:
            if (cell, peer) != (FIRST, OVERHEAD):
                yield _full_depth("peers", cell, peer)
    yield Item("soak", "soak", soak, needs=int(SIZES.soak_seconds) + 20, limit=int(SIZES.soak_seconds) + 60)


def asked(item: Item) -> bool:
    return item.part in ASKED or not item.part


def _full_depth(part: str, cell: Cell, peer: str) -> Item:
    needs = COMPILES.get(peer, 8)
    return Item(part, f"{cell}: {peer}", partial(full_depth, cell, peer), needs, limit=max(90, 3 * needs))


def _replay(part: str, cell: Cell) -> Item:
    return Item(part, f"{cell}: replay", partial(replay, cell))


@pytest.fixture(scope="session")
def results(request: pytest.FixtureRequest) -> Iterator[Results]:
    """Written as they come, and shown at the end of the run."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # of a shell in the background; it is how time is called
        signal.signal(signal.SIGINT, signal.default_int_handler)
    found = Results(before=None if DRY else kept())
    request.config.stash[AT_THE_END].append(partial(report.summary, found))
    found.expect({item.what: asked(item) for item in plan()})
    yield found
    found.write(report.markdown)


@pytest.mark.skipif(os.environ.get("PFENGINE_GPU_WARM") != "1", reason="asked for by PFENGINE_GPU_WARM=1")
@pytest.mark.skipif(DEVICE is None, reason="there is no GPU")
@pytest.mark.timeout(300)
@pytest.mark.parametrize("cell", WARM, ids=str)
def test_warm(cell: Cell) -> None:
    """Not measured: makes the checkpoints and compiles what pfengine launches, so that no measurement waits for it."""
    assert DEVICE is not None
    rows = cell.rows()
    for layers in (exit_layers(rows, 2.0), None):
        Prediction(engine(cell.hidden, "authors", DEVICE), rows, cell.batch, layers)()
    Prediction(engine(cell.hidden, "authors", DEVICE), rows, cell.batch, None, "entropy:0")()
    Prediction(engine(cell.hidden, "classifier", DEVICE), rows, cell.batch)()
    if cell in IN_INT8:
        Prediction(int8_engine(cell.hidden, DEVICE), rows, cell.batch)()


@pytest.mark.skipif(DEVICE is None, reason="there is no GPU, and PFENGINE_GPU_DRY=1 is not set")
@pytest.mark.parametrize(
    "item",
    [
        pytest.param(item, id=item.what, marks=pytest.mark.timeout(PATIENCE * item.limit, method="signal"))
        for item in plan()
        if asked(item)
    ],
)
def test_measure(item: Item, results: Results) -> None:
    """One thing after the other while there is time."""
    assert DEVICE is not None
    if seconds_left() < item.needs:
        pytest.skip(OUT_OF_TIME)  # which is what the results say of it from the start
    with results.measuring(item.what):
        item.run(DEVICE, results)


@pytest.mark.skipif(DEVICE is not None and not STOPPED, reason="the run on this device writes its own report")
def test_counted() -> None:
    """The report where nothing is measured: FLOPs and bytes as counted now, times as they were kept."""
    place = KEPT if DOCS else OUT
    place.mkdir(parents=True, exist_ok=True)
    (place / "gpu.md").write_text(report.markdown(kept(OUT if STOPPED else KEPT)))
