"""Small models made for an op set, and one row of a flight at a time: what flights are held to."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pfengine import extension
from pfengine.batch import Packed
from pfengine.ops import Attentive, Block, Exit, Norm, decide, reference
from pfengine.ops.flight import Answers
from pfengine.ops.rule import ExitRule

LAYERS, LABELS, HIDDEN, VOCABULARY = 5, 3, 24, 50
WIDTH = 10  # of attentive exits


class Model(NamedTuple):
    """What an op set prepared."""

    ops: Any
    embedding: Any
    projection: Any
    layers: list[list[Any]]
    exits: list[tuple[Any, int] | None]
    reads: str  # as in `Exit`; "first of all" and "max of all" where attentive exits pool all tokens
    renormalises: bool

    def carrier(self) -> Any:
        return self.ops.prepare_model(self.embedding, self.projection, self.layers, self.exits, self.renormalises)


def make(
    ops: Any,
    reads: str = "first",
    *,
    dtype: torch.dtype = torch.float32,
    adds_from: int = -1,
    without: tuple[int, ...] = (),
    learned: bool = True,
    blocks: int = 1,
    renormalises: bool = False,
    layers: int = LAYERS,
    hidden: int = HIDDEN,
) -> Model:
    """Random weights, the same for every op set. adds_from: of every exit; without: layers that have none."""
    generator = torch.Generator().manual_seed(5)

    def linear(outputs: int, inputs: int) -> tuple[Tensor, Tensor]:
        weight = torch.randn(outputs, inputs, generator=generator) * 1.5 / inputs**0.5
        return weight, torch.randn(outputs, generator=generator) * 0.1

    def norm(size: int) -> Norm:
        numbers = torch.randn(2, size, generator=generator) * 0.1
        return Norm(1 + numbers[0], numbers[1], 1e-5)

    def block() -> Any:
        parts = Block(
            linear(3 * hidden, hidden), linear(hidden, hidden), norm(hidden), linear(40, hidden), linear(hidden, 40),
            norm(hidden), num_heads=3, scale=(hidden // 3) ** -0.5, activation="gelu",
        )  # fmt: skip
        return ops.prepare_block(parts, dtype)

    tables = tuple(torch.randn(rows, hidden - 4, generator=generator) for rows in (VOCABULARY, 99, 2))
    embedding = ops.prepare_embedding(tables, norm(hidden - 4), dtype)
    projection = ops.prepare_linear(*linear(hidden, hidden - 4), dtype)
    exits: list[tuple[Any, int] | None] = []
    for layer in range(1, layers + 1):
        size = WIDTH if reads.endswith("of all") else hidden
        past, pooler, score = linear(LABELS, size), linear(size, size), linear(1, size)
        attentive = None
        if size == WIDTH:
            parts = (linear(size, hidden), linear(3 * 2 * 4, size), linear(size, 2 * 4))
            attentive = ops.prepare_attentive(Attentive(*parts, 2, 0.5, pooling=reads.split()[0]), dtype)  # type: ignore[arg-type]
        parts = Exit(
            LABELS,
            past=ops.prepare_linear(*past, torch.float32),
            pooler=ops.prepare_linear(*pooler, dtype),
            learned=ops.prepare_linear(*score, torch.float32) if learned else None,
            reads=reads if attentive is None else "all",  # type: ignore[arg-type]
            queries=ops.prepare_queries(linear(4, hidden)[0]) if reads == "query" else None,
            attentive=attentive,
        )
        exits.append(None if layer in without else (ops.prepare_exit(parts), adds_from))
    return Model(
        ops, embedding, projection, [[block() for _ in range(blocks)] for _ in range(layers)], exits, reads,
        renormalises,
    )  # fmt: skip


def pack(rows: list[np.ndarray], first: int = 0) -> Packed:
    """Rows of ids; `first` is the first one's number in the input."""
    lengths = [len(row) for row in rows]
    ids = np.concatenate([*rows, np.empty(0, np.int64)]).astype(np.int64)
    positions = np.concatenate([*(np.arange(length) for length in lengths), np.empty(0, np.int64)]).astype(np.int64)
    cu_seqlens = np.array([0, *np.cumsum(lengths)], np.int32)
    return Packed(ids, positions, ids % 2, cu_seqlens, np.arange(first, first + len(rows)))


def random_rows(lengths: list[int], seed: int = 0) -> list[np.ndarray]:
    draw = np.random.default_rng(seed)
    return [draw.integers(0, VOCABULARY, length) for length in lengths]


def sums_of(ops: Any, x: Tensor, bounds: Tensor, block: Any) -> tuple[Tensor, Tensor]:
    """`block_sums` of all tokens; of the reference in plain torch, as the definition of a post-norm block has it."""
    if ops is not reference:
        return ops.block_sums(x, bounds, block)
    attended = reference.attention(ops.linear(x, block.qkv, "none"), bounds, block.num_heads, block.scale)
    y = reference.norm(ops.linear(attended, block.attention_output, "none") + x, block.attention_norm)
    sums = ops.linear(ops.linear(y, block.intermediate, block.activation), block.output, "none") + y
    return normed(ops, sums, block), sums


def normed(ops: Any, sums: Tensor, block: Any) -> Tensor:
    if ops is not reference:
        return ops.output_norm(sums, block)
    return F.layer_norm(sums, sums.shape[-1:], *block.output_norm)


class Alone:
    """One row, layer by layer, op by op; every token is computed in every layer."""

    def __init__(self, model: Model, row: np.ndarray, slot: int) -> None:
        ops, packed = model.ops, pack([row])
        ids, positions, types, self.bounds, _ = (torch.from_numpy(array) for array in packed[:5])
        x = ops.embed(ids, positions, types, model.embedding)
        self.x = x if model.projection is None else ops.linear(x, model.projection, "none")
        self.sums = self.x
        self.model, self.layer, self.past, self.state = model, 0, None, None
        self.logits = self.learned = None
        self.by_token = model.reads == "all"
        self.slots = torch.arange(slot, slot + (len(row) if self.by_token else 1))
        self.gone, self.frozen = (torch.zeros(len(self.slots), dtype=torch.bool) for _ in range(2))

    def states(self, reads: str = "") -> Tensor:
        """What exits read, by default those of the model."""
        match reads or self.model.reads:
            case "first":
                return self.x[:1]
            case "query":
                return self.x
            case "mean":
                total = self.x[0]
                for token in self.x[1:]:
                    total = total + token
                return (total / len(self.x))[None]
            case _:
                return self.x

    def step(self) -> None:
        ops, frozen = self.model.ops, self.frozen[:, None]
        self.layer += 1
        for block in self.model.layers[self.layer - 1]:
            x, sums = sums_of(ops, self.x, self.bounds, block)
            if self.by_token:
                kept = normed(ops, self.sums, block) if self.model.renormalises else self.x
                x, sums = torch.where(frozen, kept, x), torch.where(frozen, self.sums, sums)
            self.x, self.sums = x, sums
        self.logits = self.learned = None
        if (after := self.model.exits[self.layer - 1]) is not None:
            exit, adds_from = after
            width = len(exit.past.bias) if ops is reference else exit.width
            add = None if self.past is None or adds_from < 0 else self.past[:, adds_from : adds_from + width]
            parts = exit if isinstance(exit, Exit) else exit.parts[0]
            read = self.states(parts.reads)
            if parts.queries is not None:
                read = ops.query_mean(read, self.bounds, parts.queries)
            if parts.attentive is not None:
                read = ops.attentive(read, self.bounds, parts.attentive)
            self.logits, self.past, self.learned = ops.exit(read, exit, add, True)

    def decide(self, rule: ExitRule, answers: Answers) -> None:
        """Leave where the rule says so."""
        by_row = rule.tokens is not None and rule.tokens.unit == "row"
        signal = extension.signal if self.model.ops is not reference else decide.signal
        bounds = self.bounds if rule.tokens is not None else None
        slots = self.slots[:1] if by_row else self.slots
        assert self.logits is not None
        leave, self.state = decide.decide(
            rule, self.layer, self.logits, self.learned, self.state, slots, signal, bounds
        )
        self.leave(leave.expand(len(self.slots)), answers, rule.tokens is not None and rule.tokens.freezes)

    def leave(self, gone: Tensor, answers: Answers | None, freezes: bool = True) -> None:
        for i in (gone & ~self.gone).nonzero().flatten().tolist():
            self.gone[i], self.frozen[i] = True, freezes
            if answers is not None:
                assert self.logits is not None
                answers.logits[self.slots[i]] = self.logits[i].numpy()
                answers.exit_layers[self.slots[i]] = self.layer

    def advance(self, rule: ExitRule, until: int, answers: Answers) -> None:
        """As a flight does."""
        last = len(self.model.layers)
        while self.layer < min(until, last) and not self.done:
            self.step()
            if self.layer == last:
                self.leave(torch.ones_like(self.gone), answers)
            elif rule.tested[self.layer - 1] and self.logits is not None:
                self.decide(rule, answers)

    @property
    def done(self) -> bool:
        return bool(self.gone.all())


class AllAlone:
    """A flight of rows that know nothing of each other."""

    def __init__(self, model: Model, rows: list[np.ndarray], slots: np.ndarray, answers: Answers) -> None:
        self.rows = [Alone(model, row, int(slot)) for row, slot in zip(rows, slots, strict=True)]
        self.answers = answers

    def advance(self, rule: ExitRule, until: int) -> None:
        for row in self.rows:
            row.advance(rule, until, self.answers)
        self.rows = [row for row in self.rows if not row.done]

    def leave(self, gone: np.ndarray, answered: bool) -> None:
        start = 0
        for row in self.rows:
            stop = start + len(row.slots)
            row.leave(torch.from_numpy(gone[start:stop]), self.answers if answered else None)
            start = stop
        self.rows = [row for row in self.rows if not row.done]

    def join(self, other: AllAlone) -> None:
        self.rows, other.rows = self.rows + other.rows, []
