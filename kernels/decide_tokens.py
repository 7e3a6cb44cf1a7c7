"""Who leaves after an exit of a head that scores tokens: the words of each row are read together.

`exit_head` gives logits and signals of all tokens. Those of first pieces are the words'. Then this kernel pools the
signals of words and decides, one program per row. It marks the words that leave, freezes their pieces, and writes their
answers. A caller's mask may take the place of the clauses.
"""

from __future__ import annotations

from typing import Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

from .decide import CODE_BITS, NUMBERS, ExitTest, check_labels, judged
from .dependent import wait_for_turn
from .functions import label_of
from .launch import check, check_count, launch, power_of_two, rows_of

BLOCK_T, BLOCK = 16, 2048  # words, and scores at most, that are read at a time
Pool = Literal["window", "max", "mean"]


@triton.jit
def _pooled(signals, places, length, POOL: tl.constexpr, BLOCK_T: tl.constexpr):
    """The largest or the mean signal of a row's words, fp32 [1]; nan where one is nan.

    signals: of the row's tokens; places: of its words among them, -1 after the last one.
    """
    one = tl.arange(0, 1)
    if POOL == "mean":
        total, words = one.to(tl.float32), one.to(tl.float32)
        for word in range(length):
            place = tl.load(places + word + one)
            total += tl.load(signals + place, mask=place >= 0, other=0.0)
            words += (place >= 0).to(tl.float32)
        value = tl.math.div_rn(total, words)  # `/` rounds as it likes
    else:
        most = tl.full((BLOCK_T,), float("-inf"), tl.float32)
        bad = tl.zeros((BLOCK_T,), tl.int32)
        for begin in range(0, length, BLOCK_T):
            word = begin + tl.arange(0, BLOCK_T)
            place = tl.load(places + word, mask=word < length, other=-1)
            v = tl.load(signals + place, mask=place >= 0, other=float("-inf"))
            bad = bad | (v != v).to(tl.int32)
            most = tl.maximum(most, v)
        value = tl.where(tl.max(bad, 0) > 0, float("nan"), tl.max(most, 0)) + one.to(tl.float32)
    return value


@triton.jit
def _in_window(signals, places, word, length, half):
    """The largest signal among those of words that are at most `half` words away; nan where one is nan."""
    most = (word * 0).to(tl.float32) + float("-inf")
    for i in range(2 * half + 1):
        near = word + i - half
        place = tl.load(places + near, mask=(near >= 0) & (near < length), other=-1)
        v = tl.load(signals + place, mask=place >= 0, other=float("-inf"))
        most = tl.maximum(most, v, propagate_nan=tl.PropagateNan.ALL)
    return most


@triton.jit(do_not_specialize=["layer", "slot_count", "signal_rows", "width", "half"])
def _decide_tokens_kernel(
    logits, source_rows, signals, given, bounds, count, slots, places, pieces, to_logits, to_layers, frozen, numbers,
    by_slot, state_in, state_out, leave, asking, labels, layer, slot_count, signal_rows, width, half,
    CLAUSES: tl.constexpr, CODES: tl.constexpr, POOL: tl.constexpr, LABELLED: tl.constexpr, FREEZES: tl.constexpr,
    ANSWERS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    wait_for_turn()
    row = tl.program_id(0)
    if row >= tl.load(count):
        return
    start, first_slot = tl.load(bounds + row), tl.load(slots + row)
    length, places = tl.load(bounds + row + 1) - start, places + first_slot
    label = tl.arange(0, BLOCK_C)
    is_label = label < labels
    row_goes = 0
    if POOL != "window":
        one = tl.arange(0, 1)
        says_row, row_slot = one < 0, first_slot + one
        row_at = row_slot * width
        for i in tl.static_range(CLAUSES):
            pooled = _pooled(signals + i * signal_rows + start, places, length, POOL, BLOCK_T)
            _, says_one, row_used = judged(
                pooled, pooled, pooled, label, one == 0, is_label, labels, row_slot, row_at, numbers + 3 * i, by_slot,
                state_in, state_out, slot_count, CODES >> (i * 36),
            )  # fmt: skip
            says_row = says_row | says_one
            row_at += row_used
        row_goes = tl.max(says_row.to(tl.int32), 0)
    wait, cold_tokens = start * 0, start * 0
    for begin in range(0, length, BLOCK_T):
        word = begin + tl.arange(0, BLOCK_T)
        place = tl.load(places + word, mask=word < length, other=-1)
        is_word = place >= 0
        token, slot = start + place, first_slot + place
        goes = is_word & (word * 0 + row_goes > 0)
        if given is not None:
            goes = is_word & (tl.load(given + token, mask=is_word, other=0) != 0)
        if POOL == "window":
            scores = label.to(tl.float32)[None, :]
            best = word.to(tl.float32)
            if LABELLED:
                is_score = is_word[:, None] & is_label[None, :]
                scores = tl.load(logits + token.to(tl.int64)[:, None] * labels + label[None, :], mask=is_score, other=0)
                best = label_of(scores, is_label[None, :])
            at = slot * width
            for i in tl.static_range(CLAUSES):
                value = _in_window(signals + i * signal_rows + start, places, word, length, half)
                _, says, used = judged(
                    value, best, scores, label, is_word, is_label, labels, slot, at, numbers + 3 * i, by_slot,
                    state_in, state_out, slot_count, CODES >> (i * 36),
                )  # fmt: skip
                goes = goes | says
                at += used
        here = is_word & (tl.load(to_layers + slot, mask=is_word, other=1) == 0)
        cold = is_word & (tl.load(frozen + slot, mask=is_word, other=0) != 0)
        own_pieces = tl.load(pieces + slot, mask=is_word, other=0)
        tl.debug_barrier()  # all threads must have read both before one writes
        new = here & goes
        if FREEZES:
            for piece in range(tl.max(tl.where(new, own_pieces, 0), 0)):
                tl.store(frozen + slot + piece, new.to(tl.uint8), mask=new & (piece < own_pieces))
            cold = cold | new
        if ANSWERS:
            source = token
            if source_rows is not None:
                source = tl.load(source_rows + token, mask=new, other=0)
            for first in range(0, labels, BLOCK_C):
                column = first + label
                is_answer = new[:, None] & (column < labels)[None, :]
                answer = tl.load(
                    logits + source.to(tl.int64)[:, None] * labels + column[None, :], mask=is_answer, other=0.0
                )
                tl.store(to_logits + slot[:, None] * labels + column[None, :], answer, mask=is_answer)
            tl.store(to_layers + slot, (slot * 0 + layer).to(tl.int64), mask=new)
        else:
            tl.store(to_layers + slot, (slot * 0 - 1).to(tl.int64), mask=new)
        wait += tl.sum((here & (new == 0)).to(tl.int32), 0)
        cold_tokens += tl.sum(tl.where(cold, own_pieces, 0), 0)
    tl.store(leave + row, (wait == 0).to(tl.uint8))
    tl.store(asking + row, length - cold_tokens)


def decide_tokens(
    test: ExitTest,
    logits: Tensor,
    bounds: Tensor,
    count: Tensor,
    frozen: Tensor,
    leave: Tensor,
    asking: Tensor,
    places: Tensor,
    pieces: Tensor,
    *,
    signals: Tensor | None = None,
    pool: Pool = "window",
    window: int = 1,
    freezes: bool = True,
    given: Tensor | None = None,
    source_rows: Tensor | None = None,
    answers: bool = True,
) -> None:
    """Decide which words of the first `count` rows leave, mark and answer them, and say which rows have none left.

    R rows of T tokens, P slots of tokens, K clauses. A word has the slot, scores and signals of its first piece.
    logits: fp32 [A, C]; source_rows: int32 [T], the row of logits that each token has, or None: A is T.
    bounds: int32 [R + 1]; count: int32 [1], at most R.
    signals: fp32 [K, T], of each clause, as `exit_head` gives them for `Form.signal_alone`. They are pooled as
    `ops.rule.TokenRule` says, "window" for unit "token".
    given: bool [T], words that leave whatever the clauses say.
    places: int32 [P], at the slots of each row the numbers of the tokens within the row that words begin with, rising,
    then -1. pieces: int32 [P], at the slot of a word's first piece, how many it has.
    test: clauses, their numbers and the state of their memories alone; slots: int64 [R], of each row's first token (the
    slots of its other tokens follow); to_logits: fp32 [P, C]; to_layers: int64 [P], 0 where a word has not left.
    answers: whether words that leave are answered. Those that are not get layer -1.
    frozen: uint8 [P], set to 1 for the pieces of a word that leaves, where it `freezes`.
    Fills leave, bool [R]: have all of a row's words left? And asking, int32 [R]: how many tokens are not frozen?
    Raises ValueError for anything else.
    """
    rows, labels, clauses = bounds.shape[0] - 1, logits.shape[1], len(test.forms)
    check_labels(labels)
    check("bounds", bounds, torch.int32, rows + 1, like=logits)
    check_count("count", count, logits)
    check("logits", logits, torch.float32, -1, -1, like=logits)
    tokens = rows_of(logits, source_rows)
    if given is not None:
        check("given", given, torch.bool, tokens, like=logits)
    if test.slots is None or test.to_logits is None or test.to_layers is None:
        raise ValueError("the test of a head that scores tokens needs slots, to_logits and to_layers")
    check("slots", test.slots, torch.int64, rows, like=logits)
    check("to_layers", test.to_layers, torch.int64, -1, like=logits)
    slots = test.to_layers.shape[0]
    check("to_logits", test.to_logits, torch.float32, slots, labels, like=logits)
    check("frozen", frozen, torch.uint8, slots, like=logits)
    check("places", places, torch.int32, slots, like=logits)
    check("pieces", pieces, torch.int32, slots, like=logits)
    check("leave", leave, torch.bool, rows, like=logits)
    check("asking", asking, torch.int32, rows, like=logits)
    width = sum(form.kept(labels) for form in test.forms)
    if clauses:
        if signals is None or test.numbers is None:
            raise ValueError(f"there are {clauses} clauses, but signals or numbers is None")
        check("signals", signals, torch.float32, clauses, tokens, like=logits)
        check("numbers", test.numbers, torch.float32, clauses, NUMBERS, like=logits)
    by_slot = 0
    if test.by_slot is not None:
        by_slot = test.by_slot.shape[0]
        check("by_slot", test.by_slot, torch.float32, by_slot, slots, like=logits)
    for name in ("state_in", "state_out"):
        if (state := getattr(test, name)) is not None:
            check(name, state, torch.float32, slots, width, like=logits)
    for form in test.forms:
        if max(form.threshold, form.times) >= by_slot:
            raise ValueError(f"{form} reads numbers by slot, of which there are {by_slot}")
        if width and test.state_out is None:
            raise ValueError(f"{form} remembers, but state_out is None")
        if pool != "window" and (form.own(labels) or form.memory in ("votes", "sum")):
            raise ValueError(f"{form} reads labels, of which a row whose tokens are pooled has none")
    if pool not in ("window", "max", "mean") or window < 1 or window % 2 == 0:
        raise ValueError(f"signals are pooled by {pool!r} over {window} tokens; expected window, max or mean, and odd")
    labelled = any(form.memory in ("votes", "sum") for form in test.forms)
    block_c = power_of_two(labels, 2) if labelled else min(64, power_of_two(labels, 2))
    codes = sum(form.code() << i * CODE_BITS for i, form in enumerate(test.forms))
    launch(
        _decide_tokens_kernel,
        (rows,),
        {
            "logits": logits, "source_rows": source_rows, "signals": signals,
            "given": None if given is None else given.view(torch.uint8), "bounds": bounds, "count": count,
            "slots": test.slots, "places": places, "pieces": pieces, "to_logits": test.to_logits,
            "to_layers": test.to_layers, "frozen": frozen, "numbers": test.numbers, "by_slot": test.by_slot,
            "state_in": test.state_in, "state_out": test.state_out, "leave": leave.view(torch.uint8), "asking": asking,
            "labels": labels, "layer": test.layer,
            "slot_count": slots, "signal_rows": tokens, "width": width, "half": window // 2,
        },
        {
            "CLAUSES": clauses, "CODES": codes, "POOL": pool, "LABELLED": labelled, "FREEZES": freezes,
            "ANSWERS": answers, "BLOCK_T": min(BLOCK_T, BLOCK // block_c), "BLOCK_C": block_c,
        },
        num_warps=4 if block_c <= 128 else 8 if block_c <= 512 else 16,
        max_registers=128,
    )  # fmt: skip
