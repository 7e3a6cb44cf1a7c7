"""Which layers to test. Every row pays for the head of a tested exit, even where few rows leave there."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .base import Criterion
from .calibration import Simulation, alike, answers_at, candidates_of, layer_speedup
from .data import DataCriterion

EXHAUSTIVE = 7  # with up to so many exits before the last, every set is tried; with more, exits are dropped one by one


@dataclass(frozen=True)
class Price:
    """Measured seconds of one kind of work at each layer, [n] each: per row, and per call in addition."""

    row: np.ndarray
    call: np.ndarray


@dataclass(frozen=True)
class Costs:
    """What a layer costs with its head but without its exit, and what a tested exit adds.

    batch_rows: rows that enter a batch. base: seconds per row before layer 1, tokenisation included.
    """

    layer: Price
    exit: Price
    batch_rows: float
    base: float

    def seconds(self, exit_layers: Sequence[int], taken: np.ndarray) -> float:
        """Mean predicted seconds per row; `exit_layers` are tested and rows leave after layers `taken`, int64 [rows].

        A layer's call is paid while a row of the batch is left, and shared by all rows that entered the batch.
        """
        layers = np.arange(1, len(self.layer.row) + 1)
        alive = (taken[:, None] >= layers).mean(0)
        called = 1 - (1 - alive) ** self.batch_rows
        tested = np.isin(layers, exit_layers)
        row = self.layer.row + np.where(tested, self.exit.row, 0)
        call = self.layer.call + np.where(tested, self.exit.call, 0)
        return self.base + float((alive * row + called * call / self.batch_rows).sum())


@dataclass(frozen=True)
class Placement:
    """A set of tested exits with its threshold, and what is predicted for it on the rows it was chosen on."""

    exit_layers: tuple[int, ...]
    threshold: float
    seconds: float  # per row
    agreement: float
    layer_speedup: float


def place(
    criterion: Criterion,
    logits: np.ndarray,
    exit_layers: Sequence[int],
    costs: Costs,
    agreement: float,
    learned: np.ndarray | None = None,
    tolerance: float | None = None,
    label_sets: bool = False,
) -> Placement | None:
    """The set of exits with the least predicted time that agrees with the full model on a share `agreement` of rows.

    criterion: at any threshold. logits: [exits, rows, labels] of all exits, `exit_layers` 1-based; learned: float32
    [exits, rows], the score that some heads add. Each set is judged at its fastest threshold that keeps the agreement.
    tolerance, label_sets: as in `alike`. None where no set keeps the agreement.
    """
    early = list(exit_layers[:-1])

    def of(chosen: Sequence[int]) -> Placement | None:
        layers = (*chosen, exit_layers[-1])
        return judge(criterion, logits, exit_layers, layers, costs, agreement, learned, tolerance, label_sets)

    if len(early) <= EXHAUSTIVE:
        sets = itertools.chain.from_iterable(itertools.combinations(early, k) for k in range(1, len(early) + 1))
        return min(filter(None, map(of, sets)), key=lambda p: p.seconds, default=None)
    best = of(early)
    while len(early) > 1:
        shorter = [of([layer for layer in early if layer != dropped]) for dropped in early]
        found = min(filter(None, shorter), key=lambda p: p.seconds, default=None)
        if found is None or (best is not None and found.seconds >= best.seconds):
            break
        best, early = found, list(found.exit_layers[:-1])
    return best


def judge(
    criterion: Criterion,
    logits: np.ndarray,
    exit_layers: Sequence[int],
    chosen: tuple[int, ...],
    costs: Costs,
    agreement: float,
    learned: np.ndarray | None = None,
    tolerance: float | None = None,
    label_sets: bool = False,
) -> Placement | None:
    """The set `chosen` at its fastest threshold that keeps the agreement; None where none does.

    Agreement is assumed to fall with faster thresholds, apart from noise, so that the fastest is found by bisection.
    Where the criterion is not `monotone` every candidate is tried.
    """
    if isinstance(criterion, DataCriterion):
        criterion = criterion.for_exits(exit_layers, chosen)
    places = [exit_layers.index(layer) for layer in chosen]
    part, scores = logits[places], None if learned is None else learned[places]
    candidates, simulation = candidates_of(criterion, part, chosen, scores), Simulation(part, chosen, scores)

    def at(threshold: float) -> Placement | None:
        taken = simulation.exits(criterion.with_threshold(threshold))
        share = float(alike(answers_at(part, chosen, taken), logits[-1], tolerance, label_sets).mean())
        if share < agreement:
            return None
        return Placement(chosen, threshold, costs.seconds(chosen, taken), share, layer_speedup(taken, chosen[-1]))

    if not criterion.monotone:
        return min(filter(None, map(at, candidates)), key=lambda p: p.seconds, default=None)
    low, high, best = 0, len(candidates) - 1, None
    while low <= high:
        middle = (low + high) // 2
        found = at(candidates[middle])
        low, high, best = (middle + 1, high, found) if found else (low, middle - 1, best)
    return best
