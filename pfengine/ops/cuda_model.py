"""A batch through layers on the GPU, at fixed capacity: only the device knows how many rows are left, nothing waits.

Launches depend on sizes and on which exits are tested, never on a number of the batch: any layers make a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..kernels.answers import Answers
from ..kernels.exit_head import exit_head
from ..kernels.gate_merge import gate_merge
from ..kernels.imitation import imitation
from ..kernels.launch import power_of_two
from ..kernels.survivors import Survivors, remaining, survivors
from ..kernels.thin_linear import MAX_COLUMNS, thin_linear
from . import Exit
from .cuda import Embedding, Linear, run_block, run_embed, run_linear
from .reference import PreparedBlock

LEAST_TOKENS, LEAST_LONGEST = 16, 16  # of a bucket: below, no kernel is shorter


class PreparedModel(NamedTuple):
    embedding: Embedding
    widen: Linear | None
    layers: list[list[PreparedBlock]]
    exits: list[tuple[Exit, int] | None]  # behind each layer, and from which number of the past it adds up; -1: none

    def exit(self, layer: int) -> tuple[Exit, int]:
        behind = self.exits[layer - 1]
        assert behind is not None
        return behind

    def exit_before(self, layer: int) -> int:
        """The last layer before this one that has an exit; 0 for none."""
        return max((i for i in range(1, layer) if self.exits[i - 1] is not None), default=0)

    def exit_number(self, layer: int) -> int:
        """Which of the exits the one behind `layer` is, from 1 on."""
        return sum(behind is not None for behind in self.exits[:layer])

    def is_kept(self, layer: int) -> bool:
        """Does the next exit add to the past of this one?"""
        later = (behind for behind in self.exits[layer:] if behind is not None)
        return next(later, (None, -1))[1] >= 0

    @property
    def labels(self) -> int:
        return self.exit(len(self.layers))[0].labels

    @property
    def hidden(self) -> int:
        return len(self.layers[0][0].output_norm.weight)


class Plan(NamedTuple):
    """What decides which launches a batch is, beside its sizes."""

    tested: bytes  # [n]: is the exit behind this layer tested?
    replays: bool  # is a layer given for each row?
    late: bool = False  # do exits run beside the next layer, whose rows stay together? See `run_segment`

    def segments(self) -> list[tuple[int, int]]:
        """First and last layers of what runs in one piece: up to the next exit that is tested."""
        n = len(self.tested)
        ends = [layer for layer in range(1, n) if self.tested[layer - 1]] + [n]
        return list(zip([1, *(end + 1 for end in ends)], ends, strict=False))

    def exits_before(self, layer: int) -> int:
        """How often rows may have left before this layer."""
        return sum(map(bool, self.tested[: layer - 1]))


class Bucket(NamedTuple):
    """Sizes that launches are made for: powers of two, so that few of them serve all batches."""

    rows: int
    tokens: int
    longest: int  # tokens of a row

    @classmethod
    def of(cls, rows: int, tokens: int, longest: int) -> Bucket:
        return cls(power_of_two(rows), power_of_two(tokens, LEAST_TOKENS), power_of_two(longest, LEAST_LONGEST))


class Buffers:
    """Room for batches of so many rows and tokens: what outlives a segment, at addresses that stay.

    What a batch brings is in `inbox`, int64, so that one copy brings all of it: the counts, the threshold, a layer and
    a bound for each row that there is room for, then ids, positions and types of each token of the bucket.
    """

    def __init__(self, weights: PreparedModel, rows: int, tokens: int) -> None:
        device = weights.embedding.tables[0].device
        dtype = weights.embedding.tables[0].dtype
        exits = [behind[0] for behind in weights.exits if behind is not None]
        self.rows, self.tokens, self.labels = rows, tokens, weights.labels
        self.ids_from = -(-(2 + rows + rows // 2 + 1) // 16) * 16
        self.inbox = torch.zeros(self.ids_from + 3 * tokens, dtype=torch.int64, device=device)
        self.row_ids = torch.arange(rows, dtype=torch.int64, device=device)
        self.states = [torch.empty(tokens, weights.hidden, dtype=dtype, device=device) for _ in range(2)]
        width = max(len(parts.past.weight) for parts in exits)
        self.pasts = [torch.empty(rows * width, dtype=torch.float32, device=device) for _ in range(2)]
        self.slots = [Survivors.empty(rows, tokens, device) for _ in range(2)]
        self.logits = torch.empty(rows, self.labels, dtype=torch.float32, device=device)
        self.exit_layers = torch.empty(rows, dtype=torch.int64, device=device)

    @staticmethod
    def inputs(inbox: Tensor, rows: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Counts int32 [2], threshold fp32 [1], layers int64 [R] and bounds int32 [R + 1] of an inbox for R rows."""
        bounds = inbox[2 + rows : 2 + rows + rows // 2 + 1].view(torch.int32)[: rows + 1]
        return inbox[:1].view(torch.int32), inbox[1:2].view(torch.float32)[:1], inbox[2 : 2 + rows], bounds

    def ids(self, inbox: Tensor, bucket: Bucket) -> Tensor:
        """Ids, positions and types, int64 [3, T]."""
        return inbox[self.ids_from : self.ids_from + 3 * bucket.tokens].view(3, bucket.tokens)

    def batch(self, exits_before: int, bucket: Bucket) -> Survivors:
        """Who is there after so many tested exits; before any of them without `rows`, `firsts` and `tokens`."""
        if exits_before:
            slot = self.slots[exits_before % 2]
        else:
            counts, _, _, bounds = self.inputs(self.inbox, self.rows)
            slot = self.slots[0]._replace(bounds=bounds, row_ids=self.row_ids, counts=counts)
        rows, tokens = bucket.rows, bucket.tokens
        return Survivors(
            slot.bounds[: rows + 1], slot.row_ids[:rows], slot.rows[:rows], slot.firsts[:rows], slot.tokens[:tokens],
            slot.counts,
        )  # fmt: skip

    def batch_of(self, plan: Plan, segment: int, bucket: Bucket) -> Survivors:
        """Who is there as a segment, from 0 on, begins. Where exits are late, all of them, until it is nobody."""
        return self.batch(0 if plan.late else segment, bucket)

    def past(self, exit_number: int, width: int, rows: int) -> Tensor:
        """fp32 [R, W]: what this exit leaves to the next one."""
        return self.pasts[exit_number % 2][: rows * width].view(rows, width)


def run_segment(
    weights: PreparedModel,
    buffers: Buffers,
    plan: Plan,
    segment: tuple[int, int],
    bucket: Bucket,
    side: torch.cuda.Stream | None = None,
) -> None:
    """Layers `segment[0]` to `segment[1]`, and what exits decide: all there is between two buffers' states.

    A large batch decides behind the last of them who goes on. A small one, whose layers cost the same however many rows
    are in them, goes on whole (`plan.late`): the exit behind the segment before runs beside this one, on `side` where
    there is such a stream. Once nobody is left it says so, and all launches from there on are empty, those of this very
    segment, too: whichever of them have run by then, nobody reads what they wrote. Exit layers must be 0 beforehand.
    """
    first, last = segment
    n, exits_before = len(weights.layers), plan.exits_before(first)
    here = buffers.batch_of(plan, exits_before, bucket)
    rows, tokens = here.counts[:1], here.counts[1:]
    if first == 1:
        _embed(weights, buffers, bucket, tokens)
    forked = plan.late and first > 1
    if forked:

        def decide() -> None:
            _run_exit(weights, buffers, plan, first - 1, buffers.states[(first - 1) % 2][: bucket.tokens], here)
            remaining(buffers.exit_layers[: bucket.rows], here.counts)

        _fork(side, decide)
    moved = exits_before > 0 and not plan.late
    for layer in range(first, last + 1):
        x = buffers.states[(layer - 1) % 2]
        x, places = (x, (here.tokens, here.firsts)) if moved else (x[: bucket.tokens], None)
        moved, final = False, layer == n
        out = None if final else buffers.states[layer % 2][: bucket.tokens]
        for i, block in enumerate(weights.layers[layer - 1], start=1):
            ends = i == len(weights.layers[layer - 1])
            x = run_block(
                x, here.bounds, block, final and ends, bucket.longest, (rows, tokens), places, out if ends else None
            )
            places = None
        if forked and layer == first:
            _join(side)  # what follows writes where that exit reads, and reads what it writes
        if weights.exits[layer - 1] is None or (plan.late and layer == last and not final):
            continue
        leave = _run_exit(weights, buffers, plan, layer, x, here)
        if leave is not None and not final:
            left = buffers.batch(exits_before + 1, bucket)
            survivors(here.bounds, here.row_ids, leave, bucket.longest, rows, left)


def _fork(side: torch.cuda.Stream | None, launches: Callable[[], None]) -> None:
    """On a stream that goes on from here by itself, until `_join`."""
    if side is None:
        launches()
        return
    side.wait_stream(torch.cuda.current_stream(side.device))
    with torch.cuda.stream(side):
        launches()


def _join(side: torch.cuda.Stream | None) -> None:
    if side is not None:
        torch.cuda.current_stream(side.device).wait_stream(side)


def _embed(weights: PreparedModel, buffers: Buffers, bucket: Bucket, tokens: Tensor) -> None:
    ids, out = buffers.ids(buffers.inbox, bucket), buffers.states[0][: bucket.tokens]
    if weights.widen is None:
        run_embed(ids[0], ids[1], ids[2], weights.embedding, tokens, out)
    else:
        run_linear(run_embed(ids[0], ids[1], ids[2], weights.embedding, tokens), weights.widen, "none", tokens, out=out)


def _run_exit(
    weights: PreparedModel, buffers: Buffers, plan: Plan, layer: int, x: Tensor, here: Survivors
) -> Tensor | None:
    """Who leaves behind `layer`, bool [R], their answers written; None where the exit is not tested."""
    parts, adds_from = weights.exit(layer)
    final, kept, before = layer == len(plan.tested), weights.is_kept(layer), weights.exit_before(layer)
    answer = final or bool(plan.tested[layer - 1])
    if not answer and not kept:
        return None
    count, labels = here.counts[:1], parts.labels
    _, threshold, layers, _ = buffers.inputs(buffers.inbox, buffers.rows)
    to = Answers(
        here.row_ids,
        buffers.logits,
        buffers.exit_layers,
        layer,
        layers if plan.replays else None,
        final,
        once=plan.late,
    )
    state, places = x, None if final else here.bounds[:-1]
    if parts.pooler is not None:
        state = run_linear(x, parts.pooler, "tanh", count, places=places, out_dtype=torch.float32)
        places = None
    add: dict[str, Any] = {}
    if adds_from >= 0 and before:
        width = len(weights.exit(before)[0].past.weight)
        earlier = buffers.past(weights.exit_number(before), width, len(here.row_ids))
        add = {
            "add": earlier,
            "add_from": adds_from,
            "add_places": here.rows if plan.tested[before - 1] and not plan.late else None,
        }
    has_future = parts.folded is not None or parts.imitation is not None
    if not (kept or add or has_future) and parts.gate_kind == "none":
        weight, bias = parts.past
        return exit_head(state, weight, bias, "entropy", threshold, count, places=places, to=to)[2]
    out = buffers.past(weights.exit_number(layer), len(parts.past.weight), len(here.row_ids))
    past = _project(state, parts.past, count, places=places, out=out, **add)
    if not answer:
        return None
    future: tuple[Tensor, Tensor | None] | None = None
    if parts.folded is not None:
        future = _project(state, parts.folded, count, places=places).unsqueeze(0), None
    if parts.imitation is not None:
        learned, i = parts.imitation
        learners, bias = learned.after(i)
        projection = learned.projections[i - 1]
        shares = imitation(state, learners, bias, projection.weight, learned.activation, count, places=places)
        future = shares, projection.bias
    gate = (parts.gate.weight, parts.gate.bias) if parts.gate_kind == "authors" and parts.gate is not None else None
    return gate_merge(
        past, labels, parts.width, parts.gate_kind, "entropy", threshold, count, future=future, gate=gate,
        states=parts.states, to=to,
    )[2]  # fmt: skip


def _project(x: Tensor, weights: Linear, count: Tensor, **options: Any) -> Tensor:
    """fp32: few columns, or many."""
    if len(weights.weight) <= MAX_COLUMNS:
        return thin_linear(x, weights.weight, weights.bias, count, **options)
    return run_linear(x, weights, "none", count, out_dtype=torch.float32, **options)
