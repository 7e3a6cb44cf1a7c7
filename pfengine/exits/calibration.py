"""Thresholds for layer speed-ups, from held-out rows whose logits at every exit are known."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from ..errors import ConfigError, shown
from ..ops import decide
from ..ops.rule import Clause, TokenRule, number_at
from .base import Criterion
from .candidates import COMPARE
from .data import DataCriterion, is_data
from .signals import signal
from .user_criterion import checked

Score = Callable[[np.ndarray], dict[str, float]]  # of the answers' logits, [rows, labels]
SPEEDUPS = (1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0)


def exits_taken(
    criterion: Criterion,
    logits: np.ndarray,
    exit_layers: Sequence[int],
    *,
    learned: np.ndarray | None = None,
    bounds: np.ndarray | None = None,
    thresholds: np.ndarray | None = None,
) -> np.ndarray:
    """The exit layer that the engine would take for each row: logits [exits, rows, labels] -> int64 [rows].

    exit_layers: 1-based, the last is the full model's. learned: float32 [exits, rows], the score that some heads add.
    bounds: for a tag head, whose logits are [exits, tokens, labels]: row r has tokens bounds[r] to bounds[r + 1]. Where
    tokens leave one by one, the result is int64 [tokens]. thresholds: float [rows], one per row, nan for full depth;
    for criteria that are data.

    Raises ConfigError where the exits do not follow from logits at full depth: frozen tokens change other tokens'
    logits.
    """
    return Simulation(logits, exit_layers, learned, bounds).exits(criterion, thresholds)


class Simulation:
    """`exits_taken`, for repeated use on the same rows: what clauses compare with thresholds is computed once."""

    def __init__(
        self,
        logits: np.ndarray,
        exit_layers: Sequence[int],
        learned: np.ndarray | None = None,
        bounds: np.ndarray | None = None,
    ) -> None:
        self.exit_layers = exit_layers
        self._logits = [torch.from_numpy(values) for values in logits]
        self._learned = [None] * len(logits) if learned is None else [torch.from_numpy(scores) for scores in learned]
        self._bounds = None if bounds is None else torch.from_numpy(bounds)
        self._values: dict[tuple[Any, ...], list[np.ndarray]] = {}

    def exits(self, criterion: Criterion, thresholds: np.ndarray | None = None) -> np.ndarray:
        """The exit layers under this criterion, as `exits_taken` returns them."""
        if not is_data(criterion):
            return self._called(criterion)
        assert isinstance(criterion, DataCriterion)
        tokens = criterion.tokens()
        if tokens is not None and tokens.freezes:
            raise ConfigError(
                f"criterion {shown(criterion)} freezes tokens, so its exits cannot be computed from logits; run the "
                "engine with it"
            )
        rows = tokens is not None and tokens.unit == "row" and self._bounds is not None
        units = len(self._bounds) - 1 if rows and self._bounds is not None else len(self._logits[0])
        rule = criterion.exit_rule(self.exit_layers[-1], self.exit_layers, 0, units, thresholds)
        slots = np.arange(units)
        taken = np.full(units, self.exit_layers[-1], np.int64)
        for clause in rule.clauses:
            count = np.zeros(units, np.float32)
            for layer, values in zip(self.exit_layers[:-1], self._compared(clause, tokens, units), strict=True):
                says = COMPARE[clause.comparison](values, number_at(clause.threshold, layer, slots))
                if clause.memory == "running":
                    count = np.where(says, count + 1, 0)
                    says = count >= number_at(clause.times, layer, slots)
                taken[says & (layer < taken)] = layer
        return taken

    def exits_of_all(self, criterion: Criterion) -> np.ndarray:
        """`exits`, with one number per row of the logits: of a tag head per token, also where rows leave as a whole."""
        taken = self.exits(criterion)
        if self._bounds is not None and len(taken) < len(self._logits[0]):
            taken = taken.repeat(self._bounds.diff().numpy())
        return taken

    def _compared(self, clause: Clause, tokens: TokenRule | None, units: int) -> list[np.ndarray]:
        """What the clause compares after each exit except the last, float32 [rows or tokens] each."""
        key = (clause.signal, clause.memory, clause.size, clause.temperature.tobytes(), clause.times.tobytes(), tokens)
        if clause.signal == "learned" and self._learned[0] is None:
            raise ConfigError("this criterion compares a learned score: give learned, float32 [exits, rows]")
        if tokens is not None and self._bounds is None:
            raise ConfigError("this criterion reads tokens: give bounds, int32 [rows + 1]")
        if key not in self._values:
            width = clause.width(self._logits[0].shape[1])
            state = torch.full((units, width), math.nan, dtype=torch.float32, device="cpu")
            found = self._values[key] = []
            for i, layer in enumerate(self.exit_layers[:-1]):
                value, kept = decide.compared(
                    clause, layer, self._logits[i], self._learned[i], state, signal, tokens, self._bounds
                )
                state = torch.cat([kept, state[:, kept.shape[1] :]], 1)  # the count of "running" is kept by `exits`
                found.append(value.numpy())
        return self._values[key]

    def _called(self, criterion: Criterion) -> np.ndarray:
        call, state, units = checked(criterion), None, len(self._logits[0])
        row_ids = torch.arange(units, dtype=torch.int64, device="cpu")
        taken = torch.full((units,), self.exit_layers[-1], dtype=torch.int64, device="cpu")
        for layer, values in zip(self.exit_layers[:-1], self._logits, strict=False):
            leave, state = call(layer, values.clone(), state, row_ids.clone())
            taken[leave & (layer < taken)] = layer
        return taken.numpy()


def candidates_of(
    criterion: Criterion,
    logits: np.ndarray,
    exit_layers: Sequence[int],
    learned: np.ndarray | None = None,
    bounds: np.ndarray | None = None,
) -> list[float]:
    """`Criterion.candidates` for exits after these layers; the arrays as in `exits_taken`."""
    values = torch.from_numpy(logits)
    if type(criterion).candidates is not DataCriterion.candidates:
        return criterion.candidates(values)
    assert isinstance(criterion, DataCriterion)
    scores, rows = (None if array is None else torch.from_numpy(array) for array in (learned, bounds))
    return criterion.candidates_at(values, exit_layers, scores, rows)


def layer_speedup(taken: np.ndarray, num_layers: int) -> float:
    """sum(n m_i) / sum(i m_i) over the m_i rows that left after layer i (Past-Future, eq. 15); nan without rows.

    taken: each row's exit layer, 1-based, int64 [rows].
    """
    return num_layers * len(taken) / int(taken.sum()) if len(taken) else float("nan")


def exit_rows(taken: np.ndarray, num_layers: int) -> list[int]:
    """How many rows left after each of the layers 1 to n; taken: each row's exit layer, int64 [rows]."""
    return np.bincount(taken, minlength=num_layers + 1)[1:].tolist()


def answers_at(logits: np.ndarray, exit_layers: Sequence[int], taken: np.ndarray) -> np.ndarray:
    """Each row's logits at the exit it takes: [exits, rows, labels] and [rows] -> [rows, labels]."""
    return logits[np.searchsorted(exit_layers, taken), np.arange(len(taken))]


def alike(
    answers: np.ndarray, full: np.ndarray, tolerance: float | None = None, label_sets: bool = False
) -> np.ndarray:
    """Which rows are answered as at full depth, bool [rows]: logits of their answers and of full depth [rows, labels].

    They are where the label is the same; with `label_sets`, where the same labels have a probability (sigmoid) above
    1/2. With one label otherwise, which is regression, they are where the score is within `tolerance`, and ConfigError
    is raised without one.
    """
    same: np.ndarray
    if label_sets:
        same = ((answers > 0) == (full > 0)).all(1)
    elif full.shape[1] > 1:
        same = answers.argmax(1) == full.argmax(1)
    elif tolerance is None:
        raise ConfigError("scores of regression agree within a tolerance: give tolerance, such as 0.1")
    else:
        same = deviations(answers, full) <= tolerance
    return same


def deviations(answers: np.ndarray, full: np.ndarray) -> np.ndarray:
    """How far each score of regression is from the one at full depth: [rows, 1] twice -> float64 [rows]."""
    gaps: np.ndarray = np.abs(answers[:, 0].astype(np.float64) - full[:, 0])
    return gaps


def correlation(scores: np.ndarray, values: np.ndarray) -> float | None:
    """Pearson's correlation of two [rows]; None where one of them is the same for all rows, so that there is none."""
    if len(scores) < 2 or not np.ptp(scores) or not np.ptp(values):
        return None
    return float(np.corrcoef(scores, values)[0, 1])


def threshold_for(
    criterion: Criterion,
    logits: np.ndarray,
    exit_layers: Sequence[int],
    speedup: float,
    learned: np.ndarray | None = None,
) -> float:
    """The slowest threshold that reaches a layer speed-up on these rows; inf where none does.

    criterion: at any threshold; its `candidates` are searched. Where it is `monotone`, which means that no row leaves
    later at a faster threshold, the search is a bisection. Otherwise every candidate is tried.
    """
    candidates = candidates_of(criterion, logits, exit_layers, learned)
    simulation = Simulation(logits, exit_layers, learned)

    def reached(threshold: float) -> float:
        return layer_speedup(simulation.exits(criterion.with_threshold(threshold)), exit_layers[-1])

    return _slowest(candidates, reached, criterion.monotone, speedup)


def _slowest(candidates: Sequence[float], reached: Callable[[float], float], monotone: bool, speedup: float) -> float:
    """The first of the candidates at which `reached` gives the speed-up, inf where none does."""
    if not monotone:
        return next((each for each in candidates if reached(each) >= speedup), math.inf)
    low, high = 0, len(candidates) - 1
    if not candidates or reached(candidates[high]) < speedup:
        return math.inf
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if reached(candidates[middle]) >= speedup else (middle + 1, high)
    return candidates[low]


def calibration_table(
    criterion: Criterion,
    logits: np.ndarray,
    labels: np.ndarray | None,
    exit_layers: Sequence[int],
    learned: np.ndarray | None = None,
    tolerance: float | None = None,
    *,
    label_sets: bool = False,
    bounds: np.ndarray | None = None,
    score: Score | None = None,
) -> list[dict[str, Any]]:
    """Points {threshold, layer_speedup, exit_rows, agreement, [accuracy], rows} for each of SPEEDUPS that is reached.

    logits: [exits, rows, labels] of held-out rows; labels: int64 [rows], None where they are unknown; learned: float32
    [exits, rows], the score that some heads add. agreement is the share of rows answered as at full depth. Thresholds
    that give the same speed-up are one point. bounds: for a tag head, as in `exits_taken`; "rows" are then words, for
    which it answers, in the counts too. score: further entries of a point, of the answers' logits [rows, labels].

    label_sets: for models whose labels are given or not each by itself: see `alike`; `labels` must be None then.

    With one label otherwise, which is regression, points have deviation, the mean |score - score at full depth|;
    agreement where there is a `tolerance`, see `alike`; and pearson, the correlation with `labels`, numbers [rows],
    where there is one.
    """
    if len(exit_layers) == 1 or not logits.shape[1]:
        return []
    simulation, full = Simulation(logits, exit_layers, learned, bounds), logits[-1]
    scores = logits.shape[2] == 1 and not label_sets

    def run(threshold: float) -> tuple[np.ndarray, Callable[[], np.ndarray]]:
        taken = simulation.exits_of_all(criterion.with_threshold(threshold))
        return taken, lambda: answers_at(logits, exit_layers, taken)

    def judged(answers: np.ndarray) -> dict[str, float]:
        found = {"deviation": float(deviations(answers, full).mean())} if scores else {}
        if not scores or tolerance is not None:
            found["agreement"] = float(alike(answers, full, tolerance, label_sets).mean())
        found["rows"] = len(full)
        if labels is not None and not scores:
            found["accuracy"] = float((answers.argmax(-1) == labels).mean())
        elif labels is not None and (pearson := correlation(answers[:, 0], labels)) is not None:
            found["pearson"] = pearson
        return found | ({} if score is None else score(answers))

    candidates = candidates_of(criterion, logits, exit_layers, learned, bounds)
    return table_of(run, candidates, criterion.monotone, exit_layers[-1], judged)


def table_of(
    run: Callable[[float], tuple[np.ndarray, Callable[[], np.ndarray]]],
    candidates: Sequence[float],
    monotone: bool,
    num_layers: int,
    judged: Score,
) -> list[dict[str, Any]]:
    """`calibration_table`, of what `run` gives at a threshold: exit layers [rows], and a function for the answers.

    candidates: thresholds to search, slowest first; monotone: by bisection. judged: of the answers, for the points.
    """
    run = functools.lru_cache(64)(run)
    table: list[dict[str, Any]] = []
    point: dict[str, Any]

    @functools.cache
    def reached(threshold: float) -> float:
        return layer_speedup(run(threshold)[0], num_layers)

    for speedup in SPEEDUPS:
        threshold = _slowest(candidates, reached, monotone, speedup)
        if not np.isfinite(threshold):
            break
        taken, answers = run(threshold)
        if not table or layer_speedup(taken, num_layers) > table[-1]["layer_speedup"]:
            point = {"threshold": threshold, "layer_speedup": layer_speedup(taken, num_layers)}
            point["exit_rows"] = exit_rows(taken, num_layers)
            table.append(point | judged(answers()))
    return table
