"""Some layers of a batch on the GPU, at fixed capacity: only the device knows how many rows are left.

Launches depend on sizes and on which exits are tested, never on the contents of a batch. So any run of layers can be
recorded as a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..kernels.decide import Decided, ExitTest, Form
from ..kernels.exit_head import exit_head
from ..kernels.layer_norm import add_layer_norm
from ..kernels.mean import mean
from ..kernels.past_future import Folded, Imitated, past_future
from ..kernels.query_mean import query_mean
from ..kernels.scratch import empty, using
from ..kernels.survivors import Survivors, remaining, survivors
from ..kernels.thin_linear import thin_linear
from . import Exit, Norm
from .cuda_block import run_block
from .cuda_buffers import Bucket, Buffers, PreparedModel, RuleForm
from .cuda_linear import run_linear
from .cuda_ops import run_attentive, run_embed
from .cuda_tokens import frozen_of, let_tokens_go, sums_of, units_of


class Position(NamedTuple):
    """How far the rows of a lane have come, and how its buffers are to be read."""

    layer: int = 0  # passed by all
    batch: int = -1  # which of the two `Survivors` lists the rows; -1: the inbox
    states_moved: bool = False  # are states in the order before `batch`, to be read through its source_tokens?
    past_moved: bool = False  # likewise the last exit's past and scores, through source_rows?
    memory: int = 0  # which of the two memories was written last, 1 or 2; 0: none, as no rule that carries was tested
    frozen: bool = False  # may tokens be frozen?
    turned: bool = False  # are counts read from `Buffers.turned_counts`? See `run_segment`


class Segment(NamedTuple):
    """Layers that run in one piece, and what is done after the last of them. Equal segments launch the same."""

    at: Position
    last: int
    rule: RuleForm
    tested: bool = False  # may rows leave after `last`?
    stops: bool = False  # are the scores after `last` wanted even where no row may leave?
    overlap: bool = False  # do exits run beside the next layer, whose rows stay together? See `run_segment`
    pending: bool = False  # with overlap: is the exit after the layer before these still to run?
    ends: bool = True  # do all rows leave after the model's last layer, if it is among these?

    @property
    def reports(self) -> int:
        """The layer after which the host is told how many rows are left; -1: none, as none can leave."""
        return self.last if self.tested else self.at.layer if self.pending else -1

    def after(self, weights: PreparedModel) -> Position:
        """The position of the rows after this segment."""
        at = self.at
        new_past = any(exit is not None for exit in weights.exits[at.layer : self.last])
        return Position(
            self.last,
            1 - max(at.batch, 0) if self.tested else at.batch,
            self.tested,
            self.tested or (at.past_moved and not new_past),
            _other(at.memory) if (self.tested or self.pending) and self.rule.carries else at.memory,
            at.frozen or (self.tested and self.rule.tokens is not None and self.rule.tokens.freezes),
            at.turned != self.pending,
        )


def _other(memory: int) -> int:
    """The memory that is written next, 1 or 2."""
    return 1 if memory != 1 else 2


def segments(
    weights: PreparedModel, at: Position, rule: RuleForm, tested: bytes, until: int, scores: bool, overlap: bool
) -> list[Segment]:
    """The segments from `at` to layer `until`: one up to each tested exit, and one up to `until`.

    scores: is the exit after `until` computed, where it is not tested?
    """
    found: list[Segment] = []
    n = len(weights.layers)
    ends = [layer for layer in range(at.layer + 1, until) if tested[layer - 1] and weights.exits[layer - 1] is not None]
    for last in [*ends, until]:
        tests = last < n and bool(tested[last - 1]) and weights.exits[last - 1] is not None
        stops = scores and last == until < n
        pending = overlap and bool(found)
        found.append(Segment(at, last, rule, tests and not overlap, stops, overlap, pending, scores or until < n))
        at = found[-1].after(weights)
    return found


def run_segment(
    weights: PreparedModel, buffers: Buffers, segment: Segment, bucket: Bucket, side: torch.cuda.Stream | None = None
) -> None:
    """Launch the layers of a segment and its exits.

    For a large batch the exit after the last of these layers decides which rows go on. A small batch, whose layers cost
    the same however many rows they have, goes on whole (`overlap`). Then the exit after the segment before runs beside
    this one, on the stream `side` if there is one. It writes the counts that later launches read, also those of this
    segment; once no row is left these are zeros, and such launches are empty. Nothing reads what launches of this
    segment wrote before that. The layer beside that exit still reads the counts before it, so that these lie elsewhere:
    in the inbox and in `Buffers.turned_counts`, in turns.
    Exit layers must be 0 beforehand. What launches of a layer hand to each other lies in the scratch of `buffers`.
    """
    with using(buffers.scratch[0]):
        buffers.scratch[0].begin()
        _run_segment(weights, buffers, segment, bucket, side)


def _run_segment(
    weights: PreparedModel, buffers: Buffers, segment: Segment, bucket: Bucket, side: torch.cuda.Stream | None
) -> None:
    at, last = segment.at, segment.last
    first, n, here = at.layer + 1, len(weights.layers), buffers.batch(at.batch, bucket, at.turned)
    units = units_of(buffers, at.batch, bucket, here)
    if first == 1:
        _embed(weights, buffers, bucket, here.counts[1:])
    if segment.pending:
        after = buffers.batch(at.batch, bucket, not at.turned)

        def decide() -> None:
            x = buffers.states[(first - 1) % 2][: bucket.tokens]
            with using(buffers.scratch[1]):
                buffers.scratch[1].begin()
                _run_exit(weights, buffers, segment, first - 1, x, units, bucket.longest, tests=True, past_moved=False)
            exit_layers, report = buffers.exit_layers[: bucket.rows], buffers.report(segment.reports)
            remaining(exit_layers, units.counts, after.counts, report)

        _fork(side, decide)
    past_moved = at.past_moved
    for layer in range(first, last + 1):
        buffers.scratch[0].begin()
        x = _run_layer(weights, buffers, segment, layer, bucket, here)
        if segment.pending and layer == first:
            _join(side)  # what follows writes what that exit reads, and reads what it writes
            here = units = after
        later = segment.overlap and layer == last < n  # the next segment runs its exit
        if weights.exits[layer - 1] is None or later or (layer == n and not segment.ends):
            continue
        tests = segment.tested and layer == last
        decided = _run_exit(weights, buffers, segment, layer, x, units, bucket.longest, tests, past_moved)
        past_moved = False
        if not tests or decided is None:
            continue
        to = 1 - max(at.batch, 0)
        if buffers.tokens is None:
            out, report = buffers.batch(to, bucket), buffers.report(layer)
            survivors(here.bounds, here.slots, decided.leave, here.counts[:1], out, report=report)
        else:
            test = _test(buffers, segment, layer, here, segment.rule.forms, part=1)
            let_tokens_go(buffers, bucket, here, to, test, segment.rule.tokens, decided, report=buffers.report(layer))


def _run_layer(
    weights: PreparedModel,
    buffers: Buffers,
    segment: Segment,
    layer: int,
    bucket: Bucket,
    here: Survivors,
) -> Tensor:
    """The output of a layer: [T, H], or [R, H] for the last layer where the head reads first tokens."""
    x, sources = buffers.states[(layer - 1) % 2], None
    listed, (before, sums) = None, sums_of(buffers, layer, bucket)
    final, blocks = layer == len(weights.layers), weights.layers[layer - 1]
    quantised, out_quantised = None, None
    if buffers.quantised and layer > 1:
        quantised = buffers.quantised[(layer - 1) % 2]
    if buffers.quantised and not final:
        out_quantised = buffers.quantised[layer % 2].first(bucket.tokens)
    if segment.at.frozen and buffers.tokens is not None:
        listed = buffers.tokens.listed(segment.at.batch, bucket)
    if segment.at.states_moved and layer == segment.at.layer + 1:
        sources = here.source_tokens, here.source_firsts
    else:
        x, before = x[: bucket.tokens], before if before is None else before[: bucket.tokens]
        quantised = quantised if quantised is None else quantised.first(bucket.tokens)
    firsts = final and segment.ends and weights.exit(layer)[0].reads == "first"
    out = None if firsts else buffers.states[layer % 2][: bucket.tokens]
    counts = here.counts[:1], here.counts[1:]
    for i, block in enumerate(blocks, start=1):
        ends = i == len(blocks)
        frozen, queries = frozen_of(listed, x, before, sources)
        x, before = run_block(
            x, here.bounds, block, queries or ("first" if firsts and ends else "all"), bucket.longest, counts, sources,
            out=out if ends else None, frozen=frozen, sums=sums if ends else None, quantised=quantised,
            out_quantised=out_quantised if ends else None,
        )  # fmt: skip
        sources, quantised = None, None
    return x


def _fork(side: torch.cuda.Stream | None, launches: Callable[[], None]) -> None:
    """Launch on a stream of its own, which runs beside the current one from here to `_join`."""
    if side is None:
        launches()
        return
    side.wait_stream(torch.cuda.current_stream(side.device))
    try:
        with torch.cuda.stream(side):
            launches()
    except BaseException:
        _join(side)  # a recording cannot be ended while a stream has not joined again
        raise


def _join(side: torch.cuda.Stream | None) -> None:
    if side is not None:
        torch.cuda.current_stream(side.device).wait_stream(side)


def _embed(weights: PreparedModel, buffers: Buffers, bucket: Bucket, tokens: Tensor) -> None:
    ids, out = buffers.ids(buffers.inbox, bucket.tokens), buffers.states[0][: bucket.tokens]
    if weights.projection is None:
        run_embed(ids[0], ids[1], ids[2], weights.embedding, tokens, out)
    else:
        small = run_embed(ids[0], ids[1], ids[2], weights.embedding, tokens)
        run_linear(small, weights.projection, "none", tokens, out=out)


def _run_exit(
    weights: PreparedModel,
    buffers: Buffers,
    segment: Segment,
    layer: int,
    x: Tensor,
    here: Survivors,
    longest: int,
    tests: bool,
    past_moved: bool,
) -> Decided | None:
    """Run the exit after `layer`: who leaves, their answers written; None where no scores are asked for.

    here: what is scored, as `units_of` gives it. Of tokens only signals are computed, except after the last layer.
    """
    parts, adds_from = weights.exit(layer)
    final, kept, before = layer == len(weights.layers), weights.is_kept(layer), weights.exit_before(layer)
    answer = final or tests or (segment.stops and layer == segment.last)
    if not answer and not kept:
        return None
    rows, count, labels = len(here.slots), here.counts[:1], parts.labels
    state, source_rows = x, None if final or parts.reads == "all" else here.bounds[:-1]
    if weights.final_norm is not None:
        x = _seen(x, weights.final_norm, parts, here, source_rows)
        state, source_rows = x, None if parts.reads == "first" else source_rows
    dtype = (
        torch.float32 if parts.pooler is None else parts.pooler.weight.dtype
    )  # of what is read, where it is made here
    if parts.reads == "mean":
        state, source_rows = mean(x, here.bounds, count, dtype), None
    if parts.queries is not None:
        state, source_rows = query_mean(x, here.bounds, parts.queries, count, dtype), None
    if parts.attentive is not None:
        state = run_attentive(x, here.bounds, parts.attentive, longest, (count, here.counts[1:]), dtype)
    if parts.pooler is not None:
        # guesses are made of states in the learners' dtype, and each chunk of them reads all states: in half the bytes
        out_dtype = torch.float32 if parts.imitation is None else parts.imitation[0].learners.dtype
        state = run_linear(
            state, parts.pooler, parts.pooler_activation, count, source_rows=source_rows, out_dtype=out_dtype
        )
        source_rows = None
    if parts.pooler_norm is not None:
        weight, bias, eps = parts.pooler_norm
        state = add_layer_norm(state, None, weight, bias, eps, count)
    add: dict[str, Any] = {}
    if adds_from >= 0 and before:
        width = len(weights.exit(before)[0].past.weight)
        earlier = buffers.past(weights.exit_number(before), width, rows)
        add = {"add": earlier, "add_from": adds_from, "add_source_rows": here.source_rows if past_moved else None}
    learned = None if final or parts.learned is None else buffers.learned[:rows]
    forms, signals = segment.rule.forms if tests and not final else None, None
    if forms is not None and buffers.tokens is not None:
        forms = tuple(form.signal_alone() for form in forms)
        signals = empty(len(forms), rows, dtype=torch.float32, device=x.device)
    out = Decided(buffers.scores[:rows], signals, buffers.leave[:rows])
    if final:
        once = segment.overlap or buffers.tokens is not None
        test = ExitTest(layer, last=True, once=once, **_answers(buffers, here))
    else:
        test = ExitTest(layer, learned=learned)
        test = test if forms is None else _test(buffers, segment, layer, here, forms, learned=learned)
    alone = parts.folded is None and parts.imitation is None and parts.gate_kind == "none" and learned is None
    weight, bias = parts.past
    if alone and not kept and not add:
        return exit_head(state, weight, bias, test, count, source_rows=source_rows, out=out)
    to = buffers.past(weights.exit_number(layer), len(weight), rows)
    if not answer:
        thin_linear(state, weight, bias, count, source_rows=source_rows, out=to, **add)
        return None
    return past_future(
        state, parts.past, labels, parts.width, parts.gate_kind, test, count, buffers.arrived, source_rows=source_rows,
        **add, to=to, future=_future(parts), gate=parts.gate if parts.gate_kind == "authors" else None,
        states=parts.states, learned=None if learned is None else parts.learned, out=out,
    )  # fmt: skip


def _future(parts: Exit) -> Imitated | Folded | None:
    if parts.imitation is None:
        return None if parts.folded is None else Folded(*parts.folded)
    guessed, layer = parts.imitation
    (learners, bias), projection = guessed.after(layer), guessed.projections[layer - 1]
    return Imitated(learners, bias, guessed.activation, projection.weight, projection.bias)


def _seen(x: Tensor, norm: Norm, parts: Exit, here: Survivors, firsts: Tensor | None) -> Tensor:
    """What an exit sees of states: first tokens [R, H], found by `firsts` where x has all, or all tokens [T, H]."""
    per_unit = parts.reads == "first" or parts.scores_tokens
    count = here.counts[:1] if per_unit else here.counts[1:]
    weight, bias, eps = norm
    return add_layer_norm(x, None, weight, bias, eps, count, source_rows=firsts if parts.reads == "first" else None)


def _answers(buffers: Buffers, here: Survivors) -> dict[str, Any]:
    return {"slots": here.slots, "to_logits": buffers.logits, "to_layers": buffers.exit_layers}


def _test(
    buffers: Buffers,
    segment: Segment,
    layer: int,
    here: Survivors,
    forms: tuple[Form, ...],
    part: int = 0,
    learned: Tensor | None = None,
) -> ExitTest:
    """What is tested after `layer`. part: which of the `RuleForm.widths` the kernel carries.

    Where tokens are scored the first part is of signals alone: it decides nothing.
    """
    rule, memory = segment.rule, segment.at.memory
    shared, by_slot = buffers.numbers(buffers.inbox, rule)
    decides = buffers.tokens is None or part == 1
    return ExitTest(
        layer,
        forms,
        shared[layer - 1] if forms else None,
        by_slot[min(layer, len(by_slot)) - 1] if rule.by_slot[1] and decides else None,
        buffers.memory(memory, rule)[part],
        buffers.memory(_other(memory), rule)[part],
        learned,
        once=segment.overlap,
        **_answers(buffers, here) if decides else {"slots": here.slots},
    )
