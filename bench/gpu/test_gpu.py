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
from .parts import ceilings, kernels, ragged_attention
from .results import KEPT, OUT_OF_TIME, Results, kept
from .whole import full_depth, gemm_share, head_share, latency, replay
from .work import (
    AUTOTUNED,
    COMPILED,
    DOCS,
    EAGER,
    LENGTHS,
    OURS,
    OUT,
    OVERHEAD,
    RAGGED,
    SIZES,
    Cell,
    Prediction,
    device,
    engine,
    exit_layers,
    seconds_left,
)

DEVICE = device()
STOPPED = os.environ.get("PFENGINE_GPU_REPORT") == "1"  # a run that was killed before it wrote its own
COMPILES = {OVERHEAD: 40, AUTOTUNED: 75}  # seconds that a model may take to compile, with some to spare


class Item(NamedTuple):
    what: str
    run: Callable[[torch.device, Results], None]
    needs: int = 8  # seconds that must be left, or it is not begun
    limit: int = 90  # seconds after which it is stopped


def plan() -> Iterator[Item]:
    hidden, goal, large = SIZES.hidden[0], SIZES.goal_batch, SIZES.large_batch
    first = Cell(hidden, "SST-2", goal)
    yield Item("ceilings", ceilings)
    yield _full_depth(first)
    yield Item("GEMM share", gemm_share)
    yield Item("latency of one row", latency)
    replayed = [Cell(hidden, "SST-2", batch) for batch in sorted({large, 32, 1} & set(SIZES.batches) | {large})]
    for cell in reversed(replayed):
        yield _replay(cell)
    yield Item("exit head", head_share)
    yield Item("ragged attention", ragged_attention)
    for batch in (goal, large):
        yield Item(f"kernels at batch {batch}", partial(kernels, batch), needs=15)
    for peer in COMPILED:
        yield _compiled(peer, first)
    cells = [Cell(size, lengths, batch) for size in SIZES.hidden for lengths in LENGTHS for batch in SIZES.batches]
    for cell in cells:
        if cell not in replayed:
            yield _replay(cell)
        if cell != first:
            yield _full_depth(cell)
    for cell in cells:
        if cell != first:
            for peer in COMPILED:
                yield _compiled(peer, cell)


def _full_depth(cell: Cell) -> Item:
    return Item(f"{cell}: {OURS}, {EAGER}, {RAGGED}", partial(full_depth, cell))


def _replay(cell: Cell) -> Item:
    return Item(f"{cell}: replay", partial(replay, cell))


def _compiled(peer: str, cell: Cell) -> Item:
    needs = COMPILES[peer]
    return Item(f"{cell}: {peer}", partial(full_depth, cell, peers=(peer,)), needs, limit=3 * needs)


@pytest.fixture(scope="session")
def results(request: pytest.FixtureRequest) -> Iterator[Results]:
    """Written as they come, and shown at the end of the run."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # of a shell in the background; it is how time is called
        signal.signal(signal.SIGINT, signal.default_int_handler)
    found = Results()
    request.config.stash[AT_THE_END].append(partial(report.summary, found))
    for item in plan():
        found.miss(item.what, OUT_OF_TIME)  # unless it is reached
    yield found
    found.write(report.markdown)


@pytest.mark.skipif(os.environ.get("PFENGINE_GPU_WARM") != "1", reason="asked for by PFENGINE_GPU_WARM=1")
@pytest.mark.skipif(DEVICE is None, reason="there is no GPU")
@pytest.mark.timeout(300)
@pytest.mark.parametrize("hidden", SIZES.hidden)
def test_warm(hidden: int) -> None:
    """Not measured: makes the checkpoints and compiles what pfengine launches, so that no measurement waits for it."""
    assert DEVICE is not None
    for batch in reversed(SIZES.batches):
        for lengths in LENGTHS:
            rows = Cell(hidden, lengths, batch).rows()
            Prediction(engine(hidden, "authors", DEVICE), rows, batch, exit_layers(rows, 2.0))()
            for head in ("authors", "classifier"):
                Prediction(engine(hidden, head, DEVICE), rows, batch)()


@pytest.mark.skipif(DEVICE is None, reason="there is no GPU, and PFENGINE_GPU_DRY=1 is not set")
@pytest.mark.parametrize(
    "item",
    [pytest.param(item, id=item.what, marks=pytest.mark.timeout(item.limit, method="signal")) for item in plan()],
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
