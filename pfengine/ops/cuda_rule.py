"""An exit rule on the GPU: the part that decides the code of kernels, and its numbers as kernels read them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..kernels.decide import NUMBERS, Form
from .cuda_buffers import RuleForm
from .rule import WINDOWS, ExitRule, number_at


def forms_of(rule: ExitRule) -> tuple[Form, ...]:
    """The clauses without their numbers. Rules of the same forms run the same code."""
    numbers, forms = iter(range(2 * len(rule.clauses))), []
    for clause in rule.clauses:
        threshold = next(numbers) if _differs(clause.threshold) else -1
        times = next(numbers) if clause.memory == "running" and _differs(clause.times) else -1
        tempered = bool((clause.temperature != 1).any())
        size = clause.size if clause.memory in WINDOWS else 0
        forms.append(Form(clause.signal, clause.comparison, clause.memory, size, tempered, threshold, times))
    return tuple(forms)


def form_of(rule: ExitRule) -> RuleForm:
    """What decides the launches of a rule's segments."""
    forms = forms_of(rule)
    return RuleForm(forms, by_slot_shape(rule, forms), rule.tokens)


def width_of(forms: tuple[Form, ...], labels: int) -> int:
    """How many numbers a row carries from exit to exit."""
    return sum(form.width(labels) for form in forms)


def by_slot_shape(rule: ExitRule, forms: tuple[Form, ...]) -> tuple[int, int]:
    """For how many layers there are numbers by slot (1: the same for all layers), and how many for each layer."""
    layers = max((len(numbers) for _, numbers in _by_slot(rule, forms)), default=1)
    return layers, len(list(_by_slot(rule, forms)))


def numbers_of(rule: ExitRule) -> np.ndarray:
    """float32 [n, K, 3]: threshold, times and temperature of each clause by layer, for slot 0 where slots differ."""
    found = np.zeros((len(rule.tested), len(rule.clauses), NUMBERS), np.float32)
    for i, clause in enumerate(rule.clauses):
        for j, numbers in enumerate((clause.threshold, clause.times, clause.temperature)):
            found[:, i, j] = numbers[:, 0]
    return found


def fill_by_slot(rule: ExitRule, forms: tuple[Form, ...], slots: np.ndarray, out: np.ndarray) -> None:
    """Write the numbers of these slots, int64 [R], into float32 [L, V, at least R]; (L, V) is `by_slot_shape`."""
    for i, numbers in _by_slot(rule, forms):
        for layer in range(1, len(out) + 1):
            out[layer - 1, i, : len(slots)] = number_at(numbers, layer, slots)


def _by_slot(rule: ExitRule, forms: tuple[Form, ...]) -> Iterator[tuple[int, np.ndarray]]:
    for clause, form in zip(rule.clauses, forms, strict=True):
        if form.threshold >= 0:
            yield form.threshold, clause.threshold
        if form.times >= 0:
            yield form.times, clause.times


def _differs(numbers: np.ndarray) -> bool:
    """Are there different numbers for different slots?"""
    return numbers.shape[1] > 1
