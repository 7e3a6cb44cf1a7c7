"""Who leaves after an exit, as `ops.decide` defines it; it runs at the end of the kernel that computes the logits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .functions import CHANGE, LABEL_REPEATS, LAYER, LEARNED, SIGNALS, label_of, signal_of
from .launch import check
from .scratch import empty

COMPARISONS, MEMORIES = ("<", "<=", ">", ">="), ("none", "running", "votes", "sum", "side", "trend", "range")
RUNNING, VOTES, SUM, SIDE, TREND, RANGE = (tl.constexpr(i) for i in range(1, 7))  # numbers in MEMORIES
FIELD_BITS = (4, 2, 3, 10, 1, 8, 8)  # of a form's code
CODE_BITS = sum(FIELD_BITS)  # 36, as `decide` and `_clause` have it
NUMBERS = 3  # of a clause: threshold, times, temperature
MAX_LABELS = 1024


class Form(NamedTuple):
    """A clause of an exit rule without its numbers, which decides a kernel's code. Names as in `ops.rule`."""

    signal: str
    comparison: str
    memory: str = "none"
    size: int = 0
    tempered: bool = False  # is the temperature anything but 1?
    threshold: int = -1  # its row among the numbers by slot; -1: one number for all slots
    times: int = -1  # likewise

    def code(self) -> int:
        """In one number of CODE_BITS bits, as a kernel is compiled for it: its fields, four to ten bits each."""
        names = SIGNALS.index(self.signal), COMPARISONS.index(self.comparison), MEMORIES.index(self.memory)
        fields = *names, self.size, int(self.tempered), self.threshold + 1, self.times + 1
        code, at = 0, 0
        for value, bits in zip(fields, FIELD_BITS, strict=True):
            if not 0 <= value < 1 << bits:
                raise ValueError(f"{self} has a number over {(1 << bits) - 1}")
            code, at = code | value << at, at + bits
        return code

    @classmethod
    def of_code(cls, code: int) -> Form:
        fields = []
        for bits in FIELD_BITS:
            fields.append(code & (1 << bits) - 1)
            code >>= bits
        signal, comparison, memory, size, tempered, threshold, times = fields
        names = SIGNALS[signal], COMPARISONS[comparison], MEMORIES[memory]
        return cls(*names, size, bool(tempered), threshold - 1, times - 1)

    def own(self, labels: int) -> int:
        """How many numbers a row carries from exit to exit for the signal."""
        return {"label_repeats": 1, "change": labels}.get(self.signal, 0)

    def kept(self, labels: int) -> int:
        """How many numbers a row carries for the memory."""
        return {"none": 0, "running": 1, "votes": labels, "sum": 2}.get(self.memory, self.size)

    def width(self, labels: int) -> int:
        """As `ops.rule.Clause.width`."""
        return self.own(labels) + self.kept(labels)

    def signal_alone(self) -> Form:
        """The clause without memory and numbers, for a kernel that is to give the signal as it is."""
        return Form(self.signal, "<", tempered=self.tempered)


class ExitTest(NamedTuple):
    """What is tested after `layer`, and where the answers of leaving rows go. R rows, P slots, K clauses.

    Without clauses no row leaves, except after the last layer.
    """

    layer: int
    forms: tuple[Form, ...] = ()
    numbers: Tensor | None = None  # fp32 [K, 3]: threshold, times and temperature of each clause after this layer
    by_slot: Tensor | None = None  # fp32 [V, P]: numbers that differ between slots
    state_in: Tensor | None = None  # fp32 [P, W]: what the last tested exit wrote; None before the first
    state_out: Tensor | None = None  # fp32 [P, W], not the same memory as state_in; None where W is 0
    learned: Tensor | None = None  # fp32 [R]: the head's own score
    slots: Tensor | None = None  # int64 [R]: the slot of each row; None: row r has slot r
    to_logits: Tensor | None = None  # fp32 [P, C]
    to_layers: Tensor | None = None  # int64 [P]
    last: bool = False  # do all rows leave?
    once: bool = False  # are answers written only to slots without one, whose exit layer is 0?


class Decided(NamedTuple):
    """What a deciding kernel writes for R rows."""

    logits: Tensor  # fp32 [R, C]
    signals: Tensor | None  # fp32 [K, R]: the value that each clause compares; None where it is not wanted
    leave: Tensor  # bool [R]

    @classmethod
    def empty(cls, rows: int, labels: int, device: torch.device, clauses: int | None = None) -> Decided:
        """Uninitialised. clauses: for how many signals there is room."""
        signals = None if clauses is None else empty(clauses, rows, dtype=torch.float32, device=device)
        return cls(
            empty(rows, labels, dtype=torch.float32, device=device),
            signals,
            empty(rows, dtype=torch.bool, device=device),
        )


def check_labels(labels: int) -> None:
    if not 1 <= labels <= MAX_LABELS:
        raise ValueError(f"there are {labels} labels, expected 1 to {MAX_LABELS:,}")


def check_test(test: ExitTest, rows: int, labels: int, out: Decided, like: Tensor) -> None:
    """Raise ValueError unless tensors are as `ExitTest` and `Decided` say."""
    check_labels(labels)
    check("out.logits", out.logits, torch.float32, rows, labels, like=like)
    check("out.leave", out.leave, torch.bool, rows, like=like)
    if out.signals is not None:
        check("out.signals", out.signals, torch.float32, len(test.forms), rows, like=like)
    slots = rows
    if test.slots is not None:
        check("slots", test.slots, torch.int64, rows, like=like)
        slots = -1
    for name in ("to_logits", "to_layers", "by_slot", "state_in", "state_out"):
        part, dtype = getattr(test, name), torch.int64 if name == "to_layers" else torch.float32
        if part is None:
            continue
        width = sum(form.width(labels) for form in test.forms)
        shape = {"to_logits": (slots, labels), "to_layers": (slots,), "by_slot": (-1, slots)}.get(name, (slots, width))
        check(name, part, dtype, *shape, like=like)
        slots = part.shape[1] if name == "by_slot" else part.shape[0]
    if (test.to_logits is None) != (test.to_layers is None):
        raise ValueError("answers go to both to_logits and to_layers, or to neither")
    if test.forms and test.numbers is None:
        raise ValueError(f"there are {len(test.forms)} clauses, but numbers is None")
    if test.numbers is not None:
        check("numbers", test.numbers, torch.float32, len(test.forms), NUMBERS, like=like)
    if test.learned is not None:
        check("learned", test.learned, torch.float32, rows, like=like)
    by_slot = 0 if test.by_slot is None else test.by_slot.shape[0]
    for form in test.forms:
        if max(form.threshold, form.times) >= by_slot:
            raise ValueError(f"{form} reads numbers by slot, of which there are {by_slot}")
        if form.signal == "learned" and test.learned is None:
            raise ValueError("a clause reads the learned score, but learned is None")
        if form.width(labels) and test.state_out is None:
            raise ValueError(f"{form} remembers, but state_out is None")


def arguments(test: ExitTest, labels: int, out: Decided) -> dict[str, object]:
    """The arguments of a kernel that calls `decide`, other than `constants`."""
    per_slot = next((part for part in (test.to_layers, test.state_out) if part is not None), None)
    slot_count = test.by_slot.shape[1] if test.by_slot is not None else 0 if per_slot is None else len(per_slot)
    return {
        "to_logits": test.to_logits, "to_layers": test.to_layers, "numbers": test.numbers, "by_slot": test.by_slot,
        "state_in": test.state_in, "state_out": test.state_out, "learned": test.learned, "slots": test.slots,
        "logits": out.logits, "signals": out.signals, "leave": out.leave.view(torch.uint8), "labels": labels,
        "layer": test.layer, "slot_count": slot_count, "signal_rows": out.leave.shape[0],
        "width": sum(form.width(labels) for form in test.forms), "log_labels": float(math.log(labels)),
    }  # fmt: skip


def constants(test: ExitTest) -> dict[str, object]:
    codes = sum(form.code() << i * CODE_BITS for i, form in enumerate(test.forms))
    return {"CLAUSES": len(test.forms), "CODES": codes, "LAST": test.last, "ONCE": test.once}


def forms_of(constants: Mapping[str, Any]) -> list[Form]:
    """Of the constants of a launch."""
    count, codes = constants["CLAUSES"], constants["CODES"]
    return [Form.of_code(codes >> i * CODE_BITS & (1 << CODE_BITS) - 1) for i in range(count)]


@triton.jit
def decide(
    scores, row, label, is_row, is_label, labels, logits, signals, leave, slots, to_logits, to_layers, numbers, by_slot,
    state_in, state_out, learned, layer, slot_count, signal_rows, width, log_labels,
    CLAUSES: tl.constexpr, CODES: tl.constexpr, LAST: tl.constexpr, ONCE: tl.constexpr,
):  # fmt: skip
    """Write fp32 scores [rows, labels] as logits, who leaves, and the answers of rows that leave."""
    is_score = is_row[:, None] & is_label[None, :]
    tl.store(logits + row.to(tl.int64)[:, None] * labels + label[None, :], scores, mask=is_score)
    slot = row.to(tl.int64)
    if slots is not None:
        slot = tl.load(slots + row, mask=is_row, other=0)
    leaves = is_row & (row < 0)
    at = slot * width
    for i in tl.static_range(CLAUSES):
        value, says, used = _clause(
            scores, label, is_row, is_label, labels, slot, at, numbers + 3 * i, by_slot, state_in, state_out,
            learned, row, layer, slot_count, log_labels, CODES >> (i * 36),
        )  # fmt: skip
        if signals is not None:
            tl.store(signals + i * signal_rows + row, value, mask=is_row)
        leaves = leaves | says
        at += used
    if LAST:
        leaves = is_row
    tl.store(leave + row, leaves.to(tl.uint8), mask=is_row)
    if to_logits is not None:
        gone = leaves & is_row
        if ONCE:
            gone = gone & (tl.load(to_layers + slot, mask=is_row, other=1) == 0)
            tl.debug_barrier()  # all threads must have read it before one writes
        tl.store(to_logits + slot[:, None] * labels + label[None, :], scores, mask=gone[:, None] & is_score)
        tl.store(to_layers + slot, (slot * 0 + layer).to(tl.int64), mask=gone)


@triton.jit
def _clause(
    scores, label, is_row, is_label, labels, slot, at, numbers, by_slot, state_in, state_out, learned, row, layer,
    slot_count, log_labels, FORM: tl.constexpr,
):  # fmt: skip
    """The value of a clause, whether it says leave, and how many numbers of the state it has used."""
    SIGNAL: tl.constexpr = FORM & 15
    MEMORY: tl.constexpr = FORM >> 6 & 7
    TEMPERED: tl.constexpr = FORM >> 19 & 1
    LABELLED: tl.constexpr = MEMORY == VOTES or MEMORY == SUM
    JUDGED: tl.constexpr = SIGNAL == LABEL_REPEATS or SIGNAL == CHANGE or SIGNAL == LEARNED or SIGNAL == LAYER
    best = row.to(tl.float32)  # of the labels; computed where it is read
    if LABELLED or JUDGED:
        best = label_of(scores, is_label[None, :])
    used = labels * 0
    if SIGNAL == LABEL_REPEATS:
        before = _earlier(state_in, at, is_row)
        value = tl.where(before != before, float("nan"), (best == before).to(tl.float32))
        tl.store(state_out + at, best, mask=is_row)
        used += 1
    elif SIGNAL == CHANGE:
        place = at[:, None] + label[None, :]
        is_score = is_row[:, None] & is_label[None, :]
        change = tl.abs(scores - _earlier(state_in, place, is_score))
        bad = tl.max(((change != change) & is_label[None, :]).to(tl.int32), 1) > 0
        value = tl.where(bad, float("nan"), tl.max(tl.where(is_label[None, :], change, 0.0), 1))
        tl.store(state_out + place, scores, mask=is_score)
        used += labels
    elif SIGNAL == LEARNED:
        value = tl.load(learned + row, mask=is_row, other=0.0)
    elif SIGNAL == LAYER:
        value = row.to(tl.float32) * 0.0 + layer
    else:
        temperature = 1.0
        if TEMPERED:
            temperature = tl.load(numbers + 2)
        value = signal_of(scores, is_label[None, :], temperature, log_labels, SIGNAL, TEMPERED)
    if JUDGED:
        value = tl.where(best != best, float("nan"), value)
    value, says, kept = judged(
        value, best, scores, label, is_row, is_label, labels, slot, at + used, numbers, by_slot, state_in, state_out,
        slot_count, FORM,
    )  # fmt: skip
    return value, says, used + kept


@triton.jit
def judged(
    value, best, scores, label, is_row, is_label, labels, slot, at, numbers, by_slot, state_in, state_out, slot_count,
    FORM: tl.constexpr,
):  # fmt: skip
    """What the memory of a clause makes of its signal, whether it says leave, and how many numbers it has used."""
    COMPARISON: tl.constexpr = FORM >> 4 & 3
    MEMORY: tl.constexpr = FORM >> 6 & 7
    SIZE: tl.constexpr = FORM >> 9 & 1023
    THRESHOLD: tl.constexpr = (FORM >> 20 & 255) - 1
    TIMES: tl.constexpr = (FORM >> 28 & 255) - 1
    used = labels * 0
    if MEMORY == SUM:
        value = value * tl.load(numbers + 1)
    value = _remembered(value, best, scores, label, is_row, is_label, labels, at, state_in, state_out, MEMORY, SIZE)
    says = _compared(value, _number(numbers, by_slot, slot, slot_count, is_row, THRESHOLD), COMPARISON)
    if MEMORY == RUNNING:
        count = _earlier(state_in, at, is_row)
        count = tl.where(says, tl.where(count > 0, count + 1.0, 1.0), 0.0)
        tl.store(state_out + at, count, mask=is_row)
        says = count >= _number(numbers + 1, by_slot, slot, slot_count, is_row, TIMES)
        used += 1
    elif MEMORY == VOTES:
        used += labels
    elif MEMORY == SUM:
        used += 2
    elif MEMORY >= SIDE:
        used += SIZE
    return value, says & is_row, used


@triton.jit
def _remembered(
    value, best, scores, label, is_row, is_label, labels, at, state_in, state_out,
    MEMORY: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """What a memory other than "running" makes of the value; it writes what it keeps."""
    if MEMORY == VOTES:
        place = at[:, None] + label[None, :]
        is_score = is_row[:, None] & is_label[None, :]
        counts = _earlier(state_in, place, is_score)
        given = (best[:, None] == label.to(tl.float32)[None, :]).to(tl.float32)
        counts = tl.where(counts > 0, counts, 0.0) + given
        tl.store(state_out + place, counts, mask=is_score)
        most = tl.max(tl.where(is_label[None, :], counts, 0.0), 1)
        value = tl.where(best != best, float("nan"), most)
    elif MEMORY == SUM:
        same = best == _earlier(state_in, at, is_row)
        value = tl.where(same, _earlier(state_in, at + 1, is_row) + value, value)
        tl.store(state_out + at, best, mask=is_row)
        tl.store(state_out + at + 1, value, mask=is_row)
    elif MEMORY == SIDE or MEMORY == TREND or MEMORY == RANGE:
        newest = value
        first = newest
        if SIZE > 1:
            first = _earlier(state_in, at + 1, is_row)
        low, high, last = first, first, first
        bad, rises, falls = first != first, first == first, first == first
        for i in tl.static_range(SIZE):
            one = newest
            if i + 1 < SIZE:
                one = _earlier(state_in, at + i + 1, is_row)
            tl.store(state_out + at + i, one, mask=is_row)
            bad = bad | (one != one)
            low, high = tl.minimum(low, one), tl.maximum(high, one)
            rises, falls = rises & (one >= last), falls & (one <= last)
            last = one
        if MEMORY == SIDE:
            value = tl.maximum(low - 0.5, 0.5 - high)
        elif MEMORY == RANGE:
            value = tl.where((low > 0.5) | (high < 0.5), high - low, float("inf"))
        else:
            away = tl.where(first > 0.5, rises.to(tl.int32), falls.to(tl.int32)) > 0
            value = tl.where(away, tl.abs(first - 0.5), -1.0)
        value = tl.where(bad, float("nan"), value)
    return value


@triton.jit
def _earlier(state, place, is_there):
    """What the last tested exit wrote to the state; nan before the first."""
    if state is None:
        found = place.to(tl.float32) * 0.0 + float("nan")
    else:
        found = tl.load(state + place, mask=is_there, other=float("nan"))
    return found


@triton.jit
def _number(numbers, by_slot, slot, slot_count, is_row, WHICH: tl.constexpr):
    if WHICH < 0:
        found = tl.load(numbers)
    else:
        found = tl.load(by_slot + WHICH * slot_count + slot, mask=is_row, other=float("nan"))
    return found


@triton.jit
def _compared(value, limit, COMPARISON: tl.constexpr):
    if COMPARISON == 0:
        says = value < limit
    elif COMPARISON == 1:
        says = value <= limit
    elif COMPARISON == 2:
        says = value > limit
    else:
        tl.static_assert(COMPARISON == 3, "unknown comparison")
        says = value >= limit
    return says
