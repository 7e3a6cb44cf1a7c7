"""What a run measures, the goals' numbers first: whoever runs out of time has them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch

from .alone import kernels
from .ceilings import ceilings
from .depth import full_depth, gemm_share, latency
from .exits import head_share, replay
from .knobs import SIZES
from .peers import AUTOTUNED, COMPILED, EAGER, OURS, OVERHEAD, RAGGED
from .results import Results
from .varlen import ragged_attention
from .work import LENGTHS, Cell

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
    yield Item("latency of a row", latency)
    replayed = [Cell(hidden, "SST-2", batch) for batch in sorted({large, 32, 1} & set(SIZES.batches) | {large})]
    for cell in reversed(replayed):
        yield _replay(cell)
    yield Item("exit head", head_share)
    yield Item("ragged attention", ragged_attention)
    for batch in (goal, large):
        yield Item(f"kernels at batch {batch}", partial(_kernels, batch), needs=15)
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


def _kernels(batch: int, device: torch.device, results: Results) -> None:
    kernels(batch, device, results)


def _full_depth(cell: Cell) -> Item:
    return Item(f"{cell}: {OURS}, {EAGER}, {RAGGED}", partial(full_depth, cell))


def _replay(cell: Cell) -> Item:
    return Item(f"{cell}: replay", partial(replay, cell))


def _compiled(peer: str, cell: Cell) -> Item:
    needs = COMPILES[peer]
    return Item(f"{cell}: {peer}", partial(full_depth, cell, peers=(peer,)), needs, limit=3 * needs)
