"""What an exit rule means, in plain torch: the definition that `_C`'s loop and Triton's deciding kernel are held to.

Signals of scores x [C], with y = x / temperature and p = softmax(y):

    entropy              -sum p ln p, natural logarithm; p ln p is 0 at p = 0
    normalised_entropy   entropy / ln C
    confidence           max p
    margin               the largest p less the second largest
    energy               -T ln sum exp(y), T the temperature
    label                number of the largest score, the first of equals
    label_0              p of label 0
    label_repeats        1 where the label is that of the exit before, else 0; nan at the first exit
    change               max |x - x of the exit before|; nan at the first exit
    learned              the score that the head adds to its logits
    layer                number of the layer

What a memory makes of the signal v, before it is compared:

    none      v
    running   the comparison is of v itself; it must hold at `times` exits in a row, this one included
    votes     how often the label given most often has been given so far (v must be "label")
    sum       the sum of v over the exits in a row, up to this one, that gave this one's label
    side      over the last `size` exits: max(min v - 1/2, 1/2 - max v), how far all are on one side of 1/2
    trend     over the last `size` exits: |first v - 1/2| where no later one moves back towards 1/2, else -1
    range     over the last `size` exits: max v - min v where all are on one side of 1/2, else inf

A window that is not full gives nan, as does a row whose scores hold a nan: no comparison is true, and it stays.
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
    """A signal that needs the scores of this exit alone: [..., C] -> float32 [...]."""
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
            raise ValueError(f"{name} is no signal of one exit's scores")
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
    """Who leaves after `layer` (1-based), bool [R], and what the rows carry on, float32 [R, W].

    logits: float32 [R, C]; learned: float32 [R], the head's own score, None where it has none; state: what the last
    tested exit returned, for these rows, None before the first; slots: int64 [R], where the rows' numbers in the
    clauses are; signal: an op set's own. W = rule.width(C).

    With `rule.tokens`, logits are float32 [T, C] of a tag head and bounds, int32 [R + 1], says which tokens are whose:
    row r has tokens bounds[r] to bounds[r + 1]. The signal of every token is read, and then the largest or the mean of
    a row's, or the largest in the window around each token, goes on to memory and comparison: leave is bool [R], or
    bool [T] where the unit is a token. slots are as many.
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

    Arguments as those of `decide`, state the clause's own part. The count of "running" is not among what is kept.
    """
    units, labels = logits.shape
    temperature = float(number_at(clause.temperature, layer, np.zeros(1, np.int64))[0])
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
    value, after = _remembered(clause, v, label, state)
    return value, torch.cat([*before, after], 1)


def pooled(tokens: TokenRule, v: Tensor, bounds: Tensor) -> Tensor:
    """Signals of all tokens, [T], as the rule reads them: of rows, [R], or of the window around each token, [T]."""
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
    """What the memory makes of v, [R], and what it keeps."""
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
