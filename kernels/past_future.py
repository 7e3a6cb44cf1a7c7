"""A whole exit in one launch: its past, what the later states are guessed to add, the gate, and who leaves.

Programs compute parts of a block of rows: tiles of the past, chunks of the guesses. The last to finish has them all,
and decides.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import configs
from .decide import Decided, ExitTest, arguments, check_test, constants
from .dependent import wait_for_turn
from .gate_merge import Form, launch_gate_merge, merge_and_decide, tile_of
from .imitation import BLOCK_C as SHARE_C
from .imitation import FEW_LABELS, Chunk, chunk_of, chunk_part
from .launch import FLOATS, check, launch, power_of_two, rows_of
from .linear import arguments_of
from .scratch import empty
from .thin_linear import BLOCK_C as THIN_C
from .thin_linear import BLOCK_K as THIN_K
from .thin_linear import BLOCK_R as THIN_R
from .thin_linear import thin_tile

FP32 = torch.float32
MAX_DECIDED = 16  # labels; with more of them the decision is a second launch


class Imitated(NamedTuple):
    """A future of P act(L s + l) + p, where s is the state."""

    learners: Tensor  # [M H, H], those of the M later layers concatenated, fp32, fp16 or bf16: states are rounded to it
    bias: Tensor  # fp32 [M H]
    activation: str
    projection: Tensor  # fp32 [C, M H]
    offset: Tensor | None  # fp32 [C], or None for zero


class Folded(NamedTuple):
    """A future of F s + f, where s is the state."""

    weight: Tensor  # fp32 [C, H]
    bias: Tensor  # fp32 [C]


@triton.jit
def _is_last(arrived, programs):
    """Is this program the last of so many to get here? Then it may read what they all have written.

    What the threads of a program have written happens before the barrier, and so before its one atomic operation, which
    releases it to the whole chip. The last program acquires what those before it released, and after the second barrier
    all of its threads read that: the acquisition empties the first-level cache, and no load is moved above a barrier.
    """
    tl.debug_barrier()
    before = tl.atomic_add(arrived, 1, sem="acq_rel", scope="gpu")
    tl.debug_barrier()
    return before == programs - 1


@triton.jit
def _thin_part(
    tile, x, weight, bias, add, out, source_rows, add_source_rows, first_row, rows, columns, inner, add_width, add_from,
    out_width, SIGMOID: tl.constexpr, THIN_R: tl.constexpr, THIN_C: tl.constexpr, THIN_K: tl.constexpr,
):  # fmt: skip
    """Compute this tile of columns, if there is one of this number."""
    if (tile >= 0) & (tile * THIN_C < columns) & (first_row < rows):
        thin_tile(
            x, weight, bias, add, out, source_rows, add_source_rows, first_row, tile * THIN_C, rows, columns, inner,
            add_width, add_from, out_width, SIGMOID, THIN_R, THIN_C, THIN_K,
        )  # fmt: skip


@triton.jit(  # the code must not depend on the number of rows nor on the layer
    do_not_specialize=["rows_of_shares", "layer", "signal_rows", "slot_count", "width"]
)
def _past_future_kernel(
    x, weight, bias, add, out, source_rows, add_source_rows, count, arrived, score, score_bias, learners, learner_bias,
    projection, shares, offset, gate, gate_bias,
    columns, inner, add_width, add_from, guessed, chunks, gates, rows_of_shares, states,
    logits, signals, leave, slots, to_logits, to_layers, numbers, by_slot, state_in, state_out, learned,
    labels, layer, slot_count, signal_rows, width, log_labels,
    FORM: tl.constexpr, ACTIVATION: tl.constexpr, PRECISION: tl.constexpr, EVEN_K: tl.constexpr, CLAUSES: tl.constexpr,
    CODES: tl.constexpr, LAST: tl.constexpr, ONCE: tl.constexpr, DECIDES: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, FEW: tl.constexpr, SHARE_C: tl.constexpr, THIN_R: tl.constexpr,
    THIN_C: tl.constexpr, THIN_K: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_G: tl.constexpr,
):  # fmt: skip
    wait_for_turn()
    # in one dimension, as CUDA takes 65,535 programs in each of the others
    row_blocks = rows_of_shares // BLOCK_M
    block, part = tl.program_id(0) % row_blocks, tl.program_id(0) // row_blocks
    rows, first_row = tl.load(count), block * BLOCK_M
    if first_row >= rows:
        return
    APART: tl.constexpr = BLOCK_M // THIN_R  # blocks of rows of thin tiles
    first, tile = first_row + part % APART * THIN_R, part // APART
    _thin_part(
        tile, x, weight, bias, add, out, source_rows, add_source_rows, first, rows, columns, inner, add_width, add_from,
        columns, False, THIN_R, THIN_C, THIN_K,
    )  # fmt: skip
    tiles = tl.cdiv(columns, THIN_C)
    if score is not None:
        _thin_part(
            tile - tiles, x, score, score_bias, None, learned, source_rows, None, first, rows, 1, inner, 0, 0, 1, True,
            THIN_R, THIN_C, THIN_K,
        )  # fmt: skip
        tiles += 1
    if projection is not None:
        chunk_part(
            part - tiles * APART, x, learners, learner_bias, projection, shares, source_rows, first_row, rows, guessed,
            inner, labels, rows_of_shares,
            ACTIVATION, PRECISION, EVEN_K, BLOCK_M, BLOCK_N, BLOCK_K, FEW, SHARE_C, BLOCK_C,
        )  # fmt: skip
    elif learners is not None:
        _thin_part(
            tile - tiles, x, learners, learner_bias, None, shares, source_rows, None, first, rows, labels, inner, 0, 0,
            BLOCK_C, False, THIN_R, THIN_C, THIN_K,
        )  # fmt: skip
    if DECIDES:
        arrived += block
        if _is_last(arrived, tl.num_programs(0) // row_blocks):
            merge_and_decide(
                out, shares, offset, gate, gate_bias, first_row, rows, gates, columns, chunks, rows_of_shares, states,
                logits, signals, leave, slots, to_logits, to_layers, numbers, by_slot, state_in, state_out, learned,
                labels, layer, slot_count, signal_rows, width, log_labels,
                FORM, CLAUSES, CODES, LAST, ONCE, BLOCK_M, BLOCK_C, BLOCK_S, BLOCK_G,
            )  # fmt: skip
            tl.store(arrived, 0)  # as the next launch expects it


def arrivals_of(rows: int) -> int:
    """How many numbers `past_future` needs for so many rows."""
    return triton.cdiv(rows, THIN_R)


def past_future(
    x: Tensor,
    past: tuple[Tensor, Tensor],
    labels: int,
    gates: int,
    form: Form,
    test: ExitTest,
    count: Tensor,
    arrived: Tensor,
    *,
    source_rows: Tensor | None = None,
    add: Tensor | None = None,
    add_source_rows: Tensor | None = None,
    add_from: int = 0,
    to: Tensor | None = None,
    future: Imitated | Folded | None = None,
    gate: tuple[Tensor, Tensor] | None = None,
    states: int = 1,
    learned: tuple[Tensor, Tensor] | None = None,
    out: Decided | None = None,
) -> Decided:
    """`reference.exit` of the first `count` rows' states, who leaves, and the answers of those.

    Output past `count` is uninitialised. Fills `out`; where it is not given, the result has no signals.

    x: [T, H], fp32, fp16 or bf16: the states, by `source_rows` as in `linear`. past: fp32 [W, H] and [W]; its first C
    outputs are scores, the next `gates` outputs are gates: C or 1, and 0 where form is "none". add, add_source_rows,
    add_from: what is added to the past, as in `linear`, in fp32. to: fp32 [R, W], filled with the past. gate: the
    authors' G and g, fp32 [k, k] and [k] with k gates. states: over how many states the past is summed. learned: fp32
    [1, H] and [1], of the score that is written to `test.learned`. count: int32 [1], at most R. arrived: int32,
    `arrivals_of(R)` zeros or more, and zeros again afterwards; launches that run at the same time have different ones.
    At most 1,024 labels. Raises ValueError for anything else.
    """
    check("x", x, FLOATS, -1, -1, like=x)
    inner, rows, (weight, bias) = x.shape[1], rows_of(x, source_rows), past
    check("past", weight, FP32, -1, inner, like=x)
    product = arguments_of(x, weight, bias, count, source_rows, add, add_source_rows, add_from, to, FP32, (FP32,))
    matrix, gate_bias = _checked_gate(weight, labels, gates, form, future is not None, gate)
    check("arrived", arrived, torch.int32, -1, like=x)
    if len(arrived) < arrivals_of(rows):
        raise ValueError(f"arrived has {len(arrived)} numbers, expected {arrivals_of(rows)} for {rows} rows")
    score, score_bias = learned or (None, None)
    if score is not None and score_bias is not None:
        check("learned", score, FP32, 1, inner, like=x)
        check("learned's bias", score_bias, FP32, 1, like=x)
        if test.learned is None:
            raise ValueError("learned is given, but test.learned, which it is written to, is None")
    out = out or Decided.empty(rows, labels, x.device)
    check_test(test, rows, labels, out, x)
    ahead, decides = _ahead(future, x, labels), labels <= MAX_DECIDED
    chunk = ahead.chunk
    row_blocks = triton.cdiv(rows, chunk.block_m)
    padded, width = row_blocks * chunk.block_m, power_of_two(labels, 2)  # so that shares are read without masks
    shares = empty(ahead.chunks, padded, width, dtype=FP32, device=x.device) if ahead.chunks else None
    tiles = triton.cdiv(len(weight), THIN_C) + (score is not None) + ahead.tiles
    merged = {
        "shares": shares, "offset": ahead.offset, "gate": matrix, "gate_bias": gate_bias, "count": count,
        "gates": gates, "chunks": ahead.chunks, "rows_of_shares": padded, "states": float(states),
    }  # fmt: skip
    decision = arguments(test if decides else ExitTest(test.layer, learned=test.learned), labels, out)
    unread = {} if decides else dict.fromkeys(("offset", "gate", "gate_bias", "logits", "signals", "leave"))
    launch(
        _past_future_kernel,
        (row_blocks * (tiles * (chunk.block_m // THIN_R) + ahead.programs),),
        {
            **product, **merged, "arrived": arrived, "score": score, "score_bias": score_bias,
            "learners": ahead.learners, "learner_bias": ahead.learner_bias, "projection": ahead.projection,
            "guessed": 0 if ahead.learners is None else len(ahead.learners), **decision, **unread,
        },
        {
            "FORM": form if decides else "none", "ACTIVATION": ahead.activation, "PRECISION": ahead.precision,
            "EVEN_K": inner % chunk.block_k == 0, **constants(test if decides else ExitTest(test.layer)),
            "DECIDES": decides, "BLOCK_M": chunk.block_m, "BLOCK_N": chunk.block_n, "BLOCK_K": chunk.block_k,
            "FEW": labels <= FEW_LABELS, "SHARE_C": SHARE_C, "THIN_R": THIN_R, "THIN_C": THIN_C, "THIN_K": THIN_K,
            **tile_of(chunk.block_m, labels, 0 if gate is None else gates, ahead.chunks, decides),
        },
        num_warps=chunk.num_warps,
        num_stages=chunk.num_stages,
        max_registers=chunk.max_registers,
    )  # fmt: skip
    if not decides:
        merged |= {"past": product["out"], "past_width": len(weight), **arguments(test, labels, out)}
        launch_gate_merge(rows, merged, {"FORM": form, **constants(test)})
    return out


def _checked_gate(
    past: Tensor, labels: int, gates: int, form: Form, has_future: bool, gate: tuple[Tensor, Tensor] | None
) -> tuple[Tensor | None, Tensor | None]:
    """The gate's G and g, or Nones; ValueError where the form does not fit."""
    if form not in ("none", "paper", "authors") or gates not in ((0,) if form == "none" else (1, labels)):
        raise ValueError(f"there are {gates} gates for {labels} labels, which does not fit the form {form!r}")
    if len(past) < labels + gates:
        raise ValueError(f"past has {len(past)} rows, expected {labels + gates} or more for {labels} labels")
    if form == "paper" and not has_future:
        raise ValueError("the paper's gate weighs a future, but future is None")
    if (form == "authors") != (gate is not None):
        raise ValueError(f"gate is {'None' if gate is None else 'given'}, which does not fit the form {form!r}")
    if gate is None:
        return None, None
    check("gate", gate[0], FP32, gates, gates, like=past)
    check("gate's bias", gate[1], FP32, gates, like=past)
    return gate


class _Ahead(NamedTuple):
    """What a launch has for its future."""

    learners: Tensor | None = None
    learner_bias: Tensor | None = None
    projection: Tensor | None = None
    offset: Tensor | None = None
    activation: str = "none"
    precision: str = "ieee"
    chunk: Chunk = Chunk(THIN_R, 1, 1, 4, 2)  # without guesses the smallest block of rows
    chunks: int = 0  # of shares
    tiles: int = 0  # thin ones
    programs: int = 0  # others, for each block of rows


def _ahead(future: Imitated | Folded | None, x: Tensor, labels: int) -> _Ahead:
    """Raise ValueError where a future is not as its class says."""
    inner = x.shape[1]
    if future is None:
        return _Ahead()
    if isinstance(future, Folded):
        check("future", future.weight, FP32, labels, inner, like=x)
        check("future's bias", future.bias, FP32, labels, like=x)
        return _Ahead(future.weight, future.bias, chunks=1, tiles=triton.cdiv(labels, THIN_C))
    learners, bias, activation, projection, offset = future
    check("learners", learners, FLOATS, -1, inner, like=x)
    check("learners' bias", bias, FP32, len(learners), like=x)
    check("projection", projection, FP32, labels, len(learners), like=x)
    if offset is not None:
        check("offset", offset, FP32, labels, like=x)
    chunk, precision = chunk_of(learners.dtype, x.dtype), configs.precision(learners.dtype)
    chunks = triton.cdiv(len(learners), chunk.block_n)
    return _Ahead(learners, bias, projection, offset, activation, precision, chunk, chunks, programs=chunks)
