"""What every exit says of one row, and where the row leaves: at one threshold, and at every other."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..answers import probabilities, raise_first
from ..api import Engine
from ..cascade_runner import CascadeRunner
from ..errors import ConfigError
from ..exits import Never
from ..exits.calibration import candidates_of, exits_taken
from ..exits.candidates import RANGES
from ..exits.data import Binding, DataCriterion, is_data
from ..exits.selection import Selection
from ..exits.signals import signal
from ..exits.text import has_knob
from ..inference import Runner
from ..ops import decide
from ..ops.rule import Clause, ExitRule, number_at
from ..rows import Row
from ..torch_state import isolated, on_one_thread

MOST_LABELS = 100  # whose probabilities are told, of a model that has more: those with the largest ones
_FIRST_SLOT = np.zeros(1, np.int64)
_KNOBS = np.array([[1.0, 2.0]], np.float32)  # thresholds by slot, to see what a clause makes of them


@dataclass(frozen=True)
class Scores:
    """What the criterion may ask at: every exit of a model, or in a cascade every model's answer.

    layers: of these exits, as the criterion counts them; the last is full depth. computed: layers that a row has gone
    through when it leaves there. logits: float32 [exits, 1, labels]. learned: float32 [exits, 1], the head's own score,
    None where it has none. seconds: until each exit, of this row alone; full_seconds: those of full depth, which in a
    cascade takes the last model only.
    """

    layers: tuple[int, ...]
    computed: tuple[int, ...]
    logits: np.ndarray
    learned: np.ndarray | None
    seconds: tuple[float, ...]
    full_seconds: float
    models: Sequence[int | None]  # whose answer it is, 1-based; None where it is no cascade


def explain(engine: Engine, selection: Selection, row: Row) -> dict[str, Any]:
    """One row through all layers. Raises InputError where the model's numbers overflow on it.

    `exits`: of each exit its layer, in a cascade its model, the layers computed until then, the probabilities of
    `labels`, what the criterion's `clauses` compare there, and the seconds until then. `full_seconds`: those of full
    depth. `exit`: the place in `exits` of the one where the row leaves. `steps`: the same for other thresholds, the
    slowest first: a step holds for its threshold, and for all faster ones up to the next.
    """
    scores = _scores(engine, selection, row)
    criterion, labels = selection.criterion, engine.labels
    found = probabilities(scores.logits[:, 0], engine.model.config.problem_type)
    shown = np.arange(len(labels))
    if len(labels) > MOST_LABELS:
        shown = np.sort(np.argsort(-found.max(0), kind="stable")[:MOST_LABELS])
    with isolated(), on_one_thread():
        values = _compared(criterion, scores) if is_data(criterion) else []
        leaves = exits_taken(criterion, scores.logits, scores.layers, learned=scores.learned)
        steps = _steps(criterion, scores)
    return {
        "tokens": len(row.ids),
        "truncated": row.truncated,
        "labels": [labels[i] for i in shown],
        "exits": [
            {
                "layer": layer,
                "model": scores.models[i],
                "computed": computed,
                "probabilities": found[i, shown].tolist(),
                "clauses": [each[i] for each in values],
                "seconds": seconds,
            }
            for i, (layer, computed, seconds) in enumerate(
                zip(scores.layers, scores.computed, scores.seconds, strict=True)
            )
        ],
        "exit": scores.layers.index(int(leaves[0])),
        "steps": steps,
        "full_seconds": scores.full_seconds,
    }


def describe(criterion: Any, exits: Sequence[int]) -> dict[str, Any]:
    """A criterion: its text, its threshold (None: none, or one per exit), and the `clauses` by which rows leave.

    exits: the layers that it is asked at, and the last one. knob: does it take thresholds? Of a clause, which of its
    numbers the threshold is: "threshold", "times" (at so many exits), or None. rising: do rows leave earlier at a
    larger threshold?
    """
    if not is_data(criterion):
        return {"text": "code of this server", "threshold": None, "knob": False, "counts": False, "clauses": []}
    threshold: Any = criterion.threshold
    return {
        "text": repr(criterion),
        "threshold": None if threshold is None or isinstance(threshold, tuple) else float(threshold),
        "knob": has_knob(type(criterion)),
        "counts": criterion.counts,
        "clauses": [_described(clause) for clause in _clauses(criterion, exits, _KNOBS)],
    }


def _described(clause: Clause) -> dict[str, Any]:
    """clause: at the thresholds 1 and 2."""
    moves = clause.threshold.shape[1] > 1
    grows = moves and bool(clause.threshold[0, 1] > clause.threshold[0, 0])
    return {
        "signal": clause.signal,
        "comparison": clause.comparison,
        "memory": clause.memory,
        "times": int(clause.times[0, 0]) if clause.memory == "running" else 1,
        "knob": "threshold" if moves else "times" if clause.times.shape[1] > 1 else None,
        "rising": moves and grows == (clause.comparison in ("<", "<=")),
    }


def track(description: dict[str, Any], labels: int, rows: Sequence[dict[str, Any]]) -> dict[str, float] | None:
    """From which threshold to which it is worth going on these explained rows; None where the criterion takes none.

    slow: the end where few rows leave early; fast: the other end. power: a point at u of the way from 0 to 1 is the
    threshold slow + (fast - slow) u^power, as in grids of thresholds: sure rows are close together near the slow end.
    """
    place = next((i for i, each in enumerate(description["clauses"]) if each["knob"]), None)
    if place is None or not description["knob"]:
        return None
    clause = description["clauses"][place]
    if description["counts"]:
        most = max([2, *(len(row["exits"]) - 1 for row in rows if "exits" in row)])
        return {"slow": float(most), "fast": 1.0, "power": 1.0}
    plain = clause["memory"] in ("none", "running") and clause["knob"] == "threshold"
    if plain and clause["signal"] in RANGES and clause["signal"] != "energy":
        low, high, power = *RANGES[clause["signal"]](labels), 3.0
    else:
        found = [exit["clauses"][place]["at"] for row in rows for exit in row.get("exits", ())]
        known = [each for each in [*found, description["threshold"]] if each is not None] or [0.0, 1.0]
        room = 0.05 * (max(known) - min(known)) or 1.0
        low, high, power = min(known) - room, max(known) + room, 1.0
    slow, fast = (low, high) if clause["rising"] else (high, low)
    return {"slow": slow, "fast": fast, "power": power}


def _scores(engine: Engine, selection: Selection, row: Row) -> Scores:
    tokens = len(row.ids)
    runner: Runner | CascadeRunner
    if engine.cascade is None:
        runner = Runner(engine.model, engine.precision, tokens)
    else:
        runner = CascadeRunner(engine.cascade, engine.precision, tokens)
    row = row._replace(row_id=0, knob=None, threshold=None)
    window, scores = runner.layer_scores([row])
    raise_first(window)
    if engine.cascade is None:
        layers = engine.model.exit_layers
        seconds = _seconds(runner, selection, row, layers)
        return Scores(layers, layers, scores.logits, scores.learned, seconds, seconds[-1], [None] * len(layers))
    ends, start, computed, answers = engine.cascade.ends, 0, [0], []
    for member in engine.cascade.members:
        own = member.model.exit_layers
        part = slice(start, start + len(own))
        learned = None if scores.learned is None else scores.learned[part]
        with isolated(), on_one_thread():
            (leaves,) = exits_taken(member.criterion, scores.logits[part], own, learned=learned)
        answers.append(scores.logits[start + own.index(int(leaves))])
        computed.append(computed[-1] + int(leaves))
        start += len(own)
    (full,) = _seconds(runner, selection, row, ends[-1:], Never())
    if isinstance(selection.criterion, Never):  # through the last model alone, to its last layer
        return Scores(ends[-1:], (engine.num_layers,), scores.logits[-1:], None, (full,), full, [len(ends)])
    seconds = _seconds(runner, selection, row, ends)
    return Scores(ends, tuple(computed[1:]), np.stack(answers), None, seconds, full, range(1, len(ends) + 1))


def _seconds(
    runner: Runner | CascadeRunner, selection: Selection, row: Row, layers: Sequence[int], never: Never | None = None
) -> tuple[float, ...]:
    """Seconds until each of these exits, of which none but the last is taken: the faster of two runs.

    never: what runs in the place of a criterion that is asked at each of them.
    """
    runs = []
    for _ in range(2):
        watch = _Watch()
        criterion = watch if never is None else never
        for answered in runner.answer([[row]], Selection(selection.checkpoint, criterion, criterion), None):
            raise_first(answered.window)
        watch.note(layers[-1])
        runs.append(watch.seconds)
    found = min(runs, key=lambda seconds: seconds[layers[-1]])
    return tuple(found[layer] for layer in layers)


class _Watch:
    """A criterion by which no row leaves, and which notes when it is asked."""

    def __init__(self) -> None:
        self.seconds: dict[int, float] = {}
        self._started = time.perf_counter()

    def note(self, layer: int) -> None:
        self.seconds[layer] = time.perf_counter() - self._started

    def __call__(self, layer: int, logits: Tensor, state: Any, row_ids: Tensor) -> tuple[Tensor, None]:
        self.note(layer)
        return torch.zeros(len(row_ids), dtype=torch.bool, device=row_ids.device), None


def _clauses(criterion: DataCriterion, exits: Sequence[int], knobs: np.ndarray | None = None) -> tuple[Clause, ...]:
    """exits: layers, the last is full depth. knobs: thresholds by slot, float32 [1, P]; None: the criterion's own."""
    if knobs is None or not has_knob(type(criterion)):
        return criterion.exit_rule(exits[-1], exits).clauses
    return criterion.clauses(Binding(criterion, exits[-1], exits, knobs))


def _compared(criterion: DataCriterion, scores: Scores) -> list[list[dict[str, Any]]]:
    """What each clause compares at each exit, in the order of clauses, then of exits.

    value: what is compared; limit: with what; at: of a clause with a knob, the threshold at which they are equal;
    holds: is the comparison true; run: at how many exits running. All are None after the last layer, where nothing is
    asked.
    """
    found, logits = [], torch.from_numpy(scores.logits)
    per_unit = _clauses(criterion, scores.layers, _KNOBS)
    for clause, unit in zip(_clauses(criterion, scores.layers), per_unit, strict=True):
        width = ExitRule(b"", (clause,)).width(logits.shape[2])
        state = torch.full((1, width), math.nan, dtype=torch.float32, device="cpu")
        run, exits = 0, []
        for i, layer in enumerate(scores.layers[:-1]):
            learned = None if scores.learned is None else torch.from_numpy(scores.learned[i])
            value, kept = decide.compared(clause, layer, logits[i], learned, state, signal)
            state = torch.cat([kept, state[:, kept.shape[1] :]], 1)  # the count of "running" is kept by `run`
            limit = torch.from_numpy(number_at(clause.threshold, layer, _FIRST_SLOT))
            holds = bool(decide.COMPARE[clause.comparison](value, limit))
            run = run + 1 if holds else 0
            at = run if unit.times.shape[1] > 1 else _knob_at(unit, layer, float(value))
            exits.append(
                {"value": _finite(float(value)), "limit": _finite(float(limit)), "at": at, "holds": holds, "run": run}
            )
        found.append([*exits, dict.fromkeys(("value", "limit", "at", "holds", "run"))])
    return found


def _knob_at(clause: Clause, layer: int, value: float) -> float | None:
    """The knob at which the clause compares with this value, where it multiplies it by a number of its own."""
    if clause.threshold.shape[1] == 1:
        return None
    one, two = map(float, number_at(clause.threshold, layer, np.arange(2)))
    return _finite(value / one) if one > 0 and two == 2 * one else None


def _steps(criterion: Any, scores: Scores) -> list[dict[str, Any]]:
    if not is_data(criterion) or not has_knob(type(criterion)) or len(scores.layers) == 1:
        return []
    try:
        thresholds = candidates_of(criterion, scores.logits, scores.layers, scores.learned)
    except ConfigError:  # a criterion of the user's own whose thresholds cannot be searched
        return []
    found: list[dict[str, Any]] = []
    for threshold in thresholds:
        changed = criterion.with_threshold(threshold)
        (leaves,) = exits_taken(changed, scores.logits, scores.layers, learned=scores.learned)
        place = scores.layers.index(int(leaves))
        if not found or found[-1]["exit"] != place:
            found.append({"threshold": threshold, "exit": place})
    return found


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
