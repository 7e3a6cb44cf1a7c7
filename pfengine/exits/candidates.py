"""Thresholds worth trying for a criterion that is data: those that differ in effect on given rows, and a fixed grid."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigError
from ..ops import decide
from ..ops.rule import WINDOWS, Clause, ExitRule, TokenRule
from .signals import signal

AtKnobs = Callable[[np.ndarray], tuple[Clause, ...]]  # clauses at thresholds by slot, float32 [1, P]
STEPS = 256  # of a grid; finer towards thresholds at which few rows leave
COMPARE = {"<": np.less, "<=": np.less_equal, ">": np.greater, ">=": np.greater_equal}
RANGES: dict[str, Callable[[int], tuple[float, float]]] = {  # of a signal, from the number of labels
    "entropy": lambda labels: (0.0, math.log(labels)),
    "normalised_entropy": lambda labels: (0.0, 1.0),
    "confidence": lambda labels: (1 / labels, 1.0),
    "margin": lambda labels: (0.0, 1.0),
    "label_0": lambda labels: (0.0, 1.0),
    "binary_confidence": lambda labels: (0.5, 1.0),
    "learned": lambda labels: (0.0, 1.0),
    "energy": lambda labels: (-64.0, 0.0),  # unbounded; it is about minus the largest score
}
PROBES = np.linspace(0.05, 0.95, 7, dtype=np.float32)[None]


def candidates(
    at_knobs: AtKnobs,
    tokens: TokenRule | None,
    logits: Tensor,
    exit_layers: Sequence[int],
    learned: Tensor | None,
    bounds: Tensor | None,
) -> list[float]:
    """For each row and exit the slowest threshold at which the row leaves there, slowest first.

    Before them comes a threshold at which none of these rows leaves. A clause's value on a row does not depend on the
    knob. So the row leaves wherever the knob is at least as fast as the slowest number for which the comparison holds.
    That number is found by bisection, whatever the clause makes of the knob. logits: [exits, rows, labels], of exits
    after `exit_layers`.
    """
    number, rising = knob_clause(at_knobs)
    clause = at_knobs(np.ones((1, 1), np.float32))[number]
    compare, state, found = COMPARE[clause.comparison], None, [np.empty(0, np.float32)]
    for i, layer in enumerate(exit_layers[:-1]):
        if state is None:
            units = len(bounds) - 1 if bounds is not None and tokens and tokens.unit == "row" else logits.shape[1]
            width = ExitRule(b"", (clause,)).width(logits.shape[2])
            state = torch.full((units, width), math.nan, dtype=torch.float32, device=logits.device)
        value, kept = decide.compared(
            clause, layer, logits[i], None if learned is None else learned[i], state, signal, tokens, bounds
        )
        state = torch.cat([kept, state[:, kept.shape[1] :]], 1)  # the count of "running" is not read
        distinct = np.unique(value.numpy(force=True))
        distinct = distinct[~np.isnan(distinct)]

        def holds(
            knobs: np.ndarray, layer: int = layer, values: np.ndarray = distinct, compare: np.ufunc = compare
        ) -> np.ndarray:
            with np.errstate(over="ignore"):
                numbers = at_knobs(knobs[None])[number].threshold
            return compare(values, numbers[layer - 1] if len(numbers) > 1 else numbers[0])

        found.append(_slowest(holds, len(distinct), rising))
    knobs = np.unique(np.concatenate(found))
    if not len(knobs):
        return []
    knobs = knobs if rising else knobs[::-1]
    slower = np.nextafter(knobs[0], np.float32(-np.inf if rising else np.inf))
    return [float(slower), *knobs.tolist()]


def _slowest(holds: Callable[[np.ndarray], np.ndarray], count: int, rising: bool) -> np.ndarray:
    """For each of `count` values the slowest float32 knob at which its comparison holds; no entry where there is none.

    rising: a larger knob is faster. The bisection is over the bits of floats as integers, which have the same order.
    """
    sign = 1 if rising else -1
    most = _ordinal(np.float32(np.finfo(np.float32).max))
    low, high = np.full(count, -most - 1), np.full(count, most)  # slower than all, and the fastest
    ever = holds(_float(sign * high))
    for _ in range(33):
        middle = (low + high + 1) // 2
        there = holds(_float(sign * np.minimum(middle, high)))
        low, high = np.where(there, low, middle), np.where(there, np.minimum(middle, high), high)
        if (high - low <= 1).all():
            break
    return _float(sign * high)[ever]


def _ordinal(value: np.float32) -> int:
    return int(value.view(np.int32))


def _float(ordinals: np.ndarray) -> np.ndarray:
    bits = np.abs(ordinals).astype(np.int32).view(np.float32)
    return np.where(ordinals < 0, -bits, bits)


def grid(at_knobs: AtKnobs, exits: int, labels: int) -> list[float]:
    """STEPS thresholds over the range of the knob's signal, and before them one at which no row leaves."""
    number, rising = knob_clause(at_knobs)
    clause = at_knobs(np.ones((1, 1), np.float32))[number]
    if clause.memory == "votes":
        low, high = 0.0, float(exits)
    elif clause.memory in WINDOWS:
        low, high = {"side": (-0.5, 0.5), "trend": (0.0, 0.5), "range": (0.0, 1.0)}[clause.memory]
    elif clause.signal in RANGES:
        low, high = RANGES[clause.signal](labels)
        if clause.memory == "sum":
            high *= float(np.broadcast_to(clause.times[:, 0], exits).sum())
    else:
        raise ConfigError(
            f"a guarantee needs thresholds fixed beforehand, and the signal {clause.signal!r} has no known range; "
            "define the criterion's grid(exits, labels)"
        )
    slow, fast = (low, high) if rising else (high, low)
    beyond = 1e30 if clause.signal == "energy" else 0.0 if clause.comparison == "<" else 1.0
    return [
        slow - beyond if rising else slow + beyond,
        *(slow + (fast - slow) * (k / STEPS) ** 3 for k in range(1, STEPS + 1)),
    ]


def knob_clause(at_knobs: AtKnobs) -> tuple[int, bool]:
    """Which clause compares with the knob, and whether a larger knob is faster.

    Raises ConfigError where there is not exactly one such clause, or its threshold is not monotone in the knob.
    """
    clauses = at_knobs(PROBES)
    found = [
        (number, clause)
        for number, clause in enumerate(clauses)
        if clause.threshold.shape[1] > 1 or clause.times.shape[1] > 1
    ]
    if len(found) == 1 and found[0][1].threshold.shape[1] > 1 and found[0][1].times.shape[1] == 1:
        number, clause = found[0]
        steps = np.diff(clause.threshold, axis=1)
        if (steps >= 0).all() or (steps <= 0).all():
            return number, bool((steps >= 0).all()) == (clause.comparison in ("<", "<="))
    raise ConfigError(
        "thresholds can be searched for where one clause compares its signal with the knob, or a number that rises or "
        "falls with it; define the criterion's candidates(logits) and grid(exits, labels)"
    )
