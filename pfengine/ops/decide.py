"""What an exit rule means, in plain torch. `_C`'s loop and Triton's deciding kernel are tested against this.

Signals of scores x [C], with y = x / temperature and p = softmax(y):

    entropy              -sum p ln p, natural logarithm; p ln p is 0 at p = 0
    normalised_entropy   entropy / ln C
    confidence           max p
    margin               the largest p minus the second largest
    energy               -T ln sum exp(y), T the temperature
    binary_confidence    the smallest, over labels, of max(q, 1 - q), q = sigmoid(y)
    label                index of the largest score, the first of equals
    label_0              p of label 0
    label_repeats        1 where the label equals that of the exit before, else 0; nan at the first exit
    change               max |x - x of the exit before|; nan at the first exit
    learned              the score that the head adds to its logits
    layer                number of the layer, 1-based

The value that a memory makes of the signal v; it is compared with the threshold:

    none      v
    running   v; the comparison must hold at `times` consecutive exits, this one included
    votes     how often the most frequent label was given so far (v must be "label")
    sum       the sum of `times` v over the latest consecutive exits that gave the same label as this one
    side      over the last `size` exits: max(min v - 1/2, 1/2 - max v), how far all are on one side of 1/2
    trend     over the last `size` exits: |first v - 1/2| where no later one moves back towards 1/2, else -1
    range     over the last `size` exits: max v - min v where all are on one side of 1/2, else inf

A window that is not full gives nan, and so does a row with a nan among its scores. No comparison with nan is true, so
the row stays.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from .rule import WINDOWS, Clause, ExitRule, Signal, TokenRule, number_at

COMPARE = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}


def signal(name: Signal, logits: Tensor, temperature: float = 1.0) -> Tensor:
    """A signal that needs only the scores of this exit: [..., C] -> float32 [...]. ValueError for any other signal."""
    y = logits.float()
    y = y if temperature == 1.0 else y / temperature
    bad = y.isnan().any(-1)
    match name:
        case "label":
            value = y.argmax(-1).float()
        case "energy":
            value = -temperature * torch.logsumexp(y, -1)
        case "entropy" | "normalised_entropy":
            log_p = torch.log_softmax(y, -1).clamp(min=-1e30)  # 0 times -inf would be nan
            value = -(log_p.exp() * log_p).sum(-1)
            if name == "normalised_entropy":
                value = value / float(np.float32(math.log(y.shape[-1])))
        case "binary_confidence":
            value = torch.sigmoid(y.abs().amin(-1))
        case "confidence" | "margin" | "label_0":
            p = torch.softmax(y, -1)
            if name == "label_0":
                value = p[..., 0]
            elif name == "confidence":
                value = p.amax(-1)
            else:
                top = p.topk(min(2, p.shape[-1]), -1).values
                value = top[..., 0] - (top[..., 1] if p.shape[-1] > 1 else 0)
        case _:
            raise ValueError(f"{name} is not a signal of one exit's scores")
    return torch.where(bad, torch.nan, value)


def decide(
    rule: ExitRule,
    layer: int,
    logits: Tensor,
    learned: Tensor | None,
    state: Tensor | None,
    slots: Tensor,
    signal: Callable[[Signal, Tensor, float], Tensor] = signal,
    bounds: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Who leaves after `layer` (1-based), bool [R], and what the rows carry to the next exit, float32 [R, W].

    logits: float32 [R, C]; learned: float32 [R], the head's own score, None where it has none; state: what the last
    tested exit returned, for these rows, None before the first; slots: int64 [R], the rows' slots in the numbers of the
    clauses; signal: the op set's own function. W = rule.width(C).

    With `rule.tokens`, logits are float32 [T, C] of a tag head, and row r has tokens bounds[r] to bounds[r + 1], bounds
    int32 [R + 1]. The signal of each token is computed first. The largest or the mean of a row's signals, or the
    largest in the window around each token, goes to memory and comparison. leave and slots are [R], or [T] where the
    unit is a token.
    """
    rows, labels = len(slots), logits.shape[1]
    if state is None:
        state = torch.full((rows, rule.width(labels)), math.nan, dtype=torch.float32, device=logits.device)
    leave = torch.zeros(rows, dtype=torch.bool, device=logits.device)
    kept, at = [], 0
    for clause in rule.clauses:
        width = clause.width(labels)
        says, after = _clause(
            clause, layer, logits, learned, state[:, at : at + width], slots, signal, rule.tokens, bounds
        )
        leave, at = leave | says, at + width
        kept.append(after)
    return leave, torch.cat(kept, 1) if kept else state


def _clause(
    clause: Clause,
    layer: int,
    logits: Tensor,
    learned: Tensor | None,
    state: Tensor,
    slots: Tensor,
    signal: Callable[[Signal, Tensor, float], Tensor],
    tokens: TokenRule | None,
    bounds: Tensor | None,
) -> tuple[Tensor, Tensor]:
    value, after = compared(clause, layer, logits, learned, state, signal, tokens, bounds)
    says = COMPARE[clause.comparison](value, _numbers(clause.threshold, layer, slots))
    if clause.memory == "running":
        count = torch.where(says, torch.where(state[:, -1] > 0, state[:, -1] + 1, 1.0), 0.0)
        says, after = count >= _numbers(clause.times, layer, slots), torch.cat([after, count[:, None]], 1)
    return says, after


def _numbers(given: np.ndarray, layer: int, slots: Tensor) -> Tensor:
    return torch.from_numpy(number_at(given, layer, slots.numpy(force=True))).to(slots.device)


def _of_all_slots(given: np.ndarray, layer: int) -> float:
    return float(number_at(given, layer, np.zeros(1, np.int64))[0])


def compared(
    clause: Clause,
    layer: int,
    logits: Tensor,
    learned: Tensor | None,
    state: Tensor,
    signal: Callable[[Signal, Tensor, float], Tensor] = signal,
    tokens: TokenRule | None = None,
    bounds: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """What a clause compares with its threshold after `layer`, float32 [R], and what it keeps for the next exit.

    Arguments are those of `decide`; state is the clause's own part. What is kept excludes the count of "running".
    """
    units, labels = logits.shape
    temperature = _of_all_slots(clause.temperature, layer)
    label = signal("label", logits, 1.0)
    before: list[Tensor] = []
    match clause.signal:
        case "label_repeats":
            v = torch.where(state[:, 0].isnan(), torch.nan, (label == state[:, 0]).float())
            before, state = [label[:, None]], state[:, 1:]
        case "change":
            v = (logits - state[:, :labels]).abs().amax(-1)
            before, state = [logits.float()], state[:, labels:]
        case "learned":
            assert learned is not None
            v = learned
        case "layer":
            v = torch.full((units,), float(layer), dtype=torch.float32, device=logits.device)
        case name:
            v = signal(name, logits, temperature)
    v = torch.where(label.isnan(), torch.nan, v)
    if tokens is not None:
        assert bounds is not None
        v = pooled(tokens, v, bounds)
    if clause.memory == "running":
        state = state[:, :-1]
    if clause.memory == "sum":
        v = v * _of_all_slots(clause.times, layer)
    value, after = _remembered(clause, v, label, state)
    return value, torch.cat([*before, after], 1)


def pooled(tokens: TokenRule, v: Tensor, bounds: Tensor) -> Tensor:
    """Signals of all tokens, [T], pooled as the rule says: over rows, [R], or the window around each token, [T]."""
    out = []
    for start, stop in itertools.pairwise(bounds.tolist()):
        row = v[start:stop]
        if tokens.unit == "token":
            half = tokens.window // 2
            padded = torch.nn.functional.pad(row, (half, half), value=-math.inf)
            out.append(padded.unfold(0, tokens.window, 1).amax(1))
        elif tokens.pool == "max":
            out.append(row.amax(0, keepdim=True))
        else:
            out.append(torch.stack([functools.reduce(torch.add, row.unbind(0)) / len(row)]))  # in order, as kernels do
    return torch.cat(out) if out else v[:0]


def _remembered(clause: Clause, v: Tensor, label: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The value that the memory makes of v, [R], and what it keeps."""
    if clause.memory == "votes":
        given = torch.nn.functional.one_hot(label.nan_to_num(0).long(), state.shape[1])
        counts = torch.where(state > 0, state, 0.0) + torch.where(label.isnan()[:, None], 0, given)
        return torch.where(label.isnan(), torch.nan, counts.amax(1)), counts
    if clause.memory == "sum":
        total = torch.where(label == state[:, 0], state[:, 1] + v, v)
        return total, torch.stack([label, total], 1)
    if clause.memory not in WINDOWS:
        return v, state
    window = torch.cat([state[:, 1:], v[:, None]], 1)
    low, high, first = window.amin(1), window.amax(1), window[:, 0]
    if clause.memory == "side":
        value = torch.maximum(low - 0.5, 0.5 - high)
    elif clause.memory == "range":
        value = torch.where((low > 0.5) | (high < 0.5), high - low, math.inf)
    else:
        step = window.diff(dim=1)
        away = torch.where(first > 0.5, (step >= 0).all(1), (step <= 0).all(1))
        value = torch.where(away, (first - 0.5).abs(), -1.0)
    return torch.where(window.isnan().any(1), torch.nan, value), window
