"""Buffers for a batch on the GPU, and what their sizes follow from: model, bucket and rule."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..kernels.decide import NUMBERS, Form
from ..kernels.launch import power_of_two
from ..kernels.past_future import arrivals_of
from ..kernels.quantise import Quantised, quantise_rows
from ..kernels.scratch import Scratch
from ..kernels.survivors import Report, Survivors
from ..kernels.token_list import TokenList
from . import Exit, Norm, Reads
from .cuda_linear import Int8Linear, Linear
from .cuda_ops import Embedding, full, norm
from .reference import PreparedBlock
from .rule import TokenRule

LEAST_TOKENS, LEAST_LONGEST = 16, 64  # of a bucket; with smaller ones no kernel of 16-bit numbers is faster


class PreparedModel(NamedTuple):
    embedding: Embedding
    projection: Linear | None  # from the embedding's size to the hidden size
    layers: list[list[PreparedBlock]]
    exits: list[tuple[Exit, int] | None]  # as in `OpSet.prepare_model`
    renormalises: bool = False  # likewise
    final_norm: Norm | None = None  # likewise

    def exit(self, layer: int) -> tuple[Exit, int]:
        after = self.exits[layer - 1]
        assert after is not None
        return after

    def seen(self, x: Tensor) -> Tensor:
        """What exits see of states: [T, H] -> the same."""
        return x if self.final_norm is None else norm(x, self.final_norm)

    def reads(self, layer: int) -> Reads:
        """What the first exit at or after `layer` reads."""
        return next(after[0].reads for after in self.exits[layer - 1 :] if after is not None)

    def exit_before(self, layer: int) -> int:
        """The last layer before this one that has an exit; 0: there is none."""
        return max((i for i in range(1, layer) if self.exits[i - 1] is not None), default=0)

    def exit_number(self, layer: int) -> int:
        """The number of the exit after `layer`, counted from 1."""
        return sum(after is not None for after in self.exits[:layer])

    def is_kept(self, layer: int) -> bool:
        """Does the next exit add to the past of this one?"""
        later = (after for after in self.exits[layer:] if after is not None)
        return next(later, (None, -1))[1] >= 0

    @property
    def labels(self) -> int:
        return self.exit(len(self.layers))[0].labels

    @property
    def tags(self) -> bool:
        """Does the head score tokens?"""
        return self.exit(len(self.layers))[0].scores_tokens

    @property
    def learned(self) -> bool:
        """Does the head add a score of its own?"""
        return any(after is not None and after[0].learned is not None for after in self.exits)

    @property
    def quantises_states(self) -> bool:
        """Does a layer leave its output in int8, too, for the next one's first product?"""
        block = self.layers[0][0]
        return isinstance(block.qkv, Int8Linear) and not block.norm_first

    @property
    def hidden(self) -> int:
        return len(self.layers[0][0].output_norm.weight)


class Bucket(NamedTuple):
    """Sizes that launches are made for: powers of two, so that few buckets serve all batches."""

    rows: int
    tokens: int
    longest: int  # tokens of the longest row
    queries: int  # tokens that are not frozen

    @classmethod
    @functools.lru_cache(4096)
    def of(cls, rows: int, tokens: int, longest: int, queries: int | None = None) -> Bucket:
        """queries: all tokens where it is None."""
        asked = tokens if queries is None else queries
        return cls(
            power_of_two(rows), power_of_two(tokens, LEAST_TOKENS), power_of_two(longest, LEAST_LONGEST),
            power_of_two(asked, LEAST_TOKENS),
        )  # fmt: skip


class RuleForm(NamedTuple):
    """The part of an exit rule that decides a segment's launches. Its numbers are in the inbox."""

    forms: tuple[Form, ...] = ()
    by_slot: tuple[int, int] = (1, 0)  # as `cuda_rule.by_slot_shape`
    tokens: TokenRule | None = None

    def widths(self, labels: int) -> tuple[int, ...]:
        """How many numbers a row or token carries, for each kernel that decides.

        One for rows. For tokens one reads signals, and one pools and remembers them.
        """
        if self.tokens is None:
            return (sum(form.width(labels) for form in self.forms),)
        return sum(form.own(labels) for form in self.forms), sum(form.kept(labels) for form in self.forms)

    @property
    def carries(self) -> bool:
        """Does a row or token carry any number from exit to exit?"""
        return any(self.widths(1))


class Sizes(NamedTuple):
    """The sizes of buffers."""

    rows: int
    tokens: int
    numbers: int  # fp32 numbers of an exit rule
    width: int  # numbers that a row or token carries from exit to exit

    def largest(self, other: Sizes) -> Sizes:
        return Sizes(*map(max, self, other))


class Inbox(NamedTuple):
    """The memory that a batch comes in, on the device or on the host, in the numbers that its parts are read as."""

    words: Any  # int64 [N], a tensor or an array; the others are views of it
    ints: Any  # int32 [2 N]
    floats: Any  # fp32 [2 N]

    @classmethod
    def of(cls, words: Tensor) -> Inbox:
        return cls(words, words.view(torch.int32), words.view(torch.float32))

    def as_arrays(self) -> Inbox:
        """The same memory of the host, which numpy reads and writes in less time than torch."""
        return Inbox(*(part.numpy() for part in self))


class TokenBuffers:
    """What else outlives a segment where the head scores tokens."""

    def __init__(self, weights: PreparedModel, sizes: Sizes) -> None:
        device, rows, tokens = weights.embedding.tables[0].device, sizes.rows, sizes.tokens
        self.frozen = torch.empty(tokens, dtype=torch.uint8, device=device)  # by slot
        # by slot: the places of a row's words among its tokens, then -1; and how many pieces the word has that begins
        self.places, self.pieces = (torch.empty(tokens, dtype=torch.int32, device=device) for _ in range(2))
        self.asking = torch.empty(rows, dtype=torch.int32, device=device)  # of each row: tokens that are not frozen
        self.leave = torch.empty(rows, dtype=torch.bool, device=device)  # have all words of the row left?
        self.slots = torch.arange(tokens, dtype=torch.int64, device=device)  # of tokens in the inbox
        self.lists = [TokenList.empty(rows, tokens, device) for _ in range(2)]  # of the two `Survivors`
        dtype, hidden = weights.embedding.tables[0].dtype, weights.hidden
        count = 2 if weights.renormalises else 0  # sums before the last output norm, as `states` are numbered
        self.sums = [torch.empty(tokens, hidden, dtype=dtype, device=device) for _ in range(count)]

    def listed(self, number: int, bucket: Bucket) -> TokenList:
        """The tokens of `Buffers.batch(number)`. For the inbox only their slots are there."""
        found = self.lists[max(number, 0)].first(bucket.rows, bucket.tokens, bucket.queries)
        return found if number >= 0 else found._replace(slots=self.slots[: bucket.tokens])


class Buffers:
    """What outlives a segment, at fixed addresses, for batches of up to these sizes.

    `inbox`, int64, holds all that a batch brings, so that one copy sends it: the counts, the ticket of the batch, the
    bounds of rows, the numbers of the exit rule, then ids, positions and types of the bucket's tokens.
    """

    def __init__(self, weights: PreparedModel, sizes: Sizes, words: Tensor, scratch: tuple[Scratch, Scratch]) -> None:
        """words: int64 [n + 1, 4], in memory of the host, for the `Report` after each of n layers. scratch: for
        launches on the main stream and beside it.
        """
        device = weights.embedding.tables[0].device
        dtype = weights.embedding.tables[0].dtype
        exits = [after[0] for after in weights.exits if after is not None]
        rows, tokens = sizes.rows, sizes.tokens
        self.units = units = tokens if weights.tags else rows  # what is scored and has a slot

        def room(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.empty(*shape, dtype=dtype, device=device)

        self.sizes, self.labels, self.layers = sizes, weights.labels, len(weights.layers)
        self.words, self.scratch = words, scratch
        self.numbers_from = 2 + rows // 2 + 1
        self.tokens = TokenBuffers(weights, sizes) if weights.tags else None
        self.ids_from = -(-(self.numbers_from + -(-sizes.numbers // 2)) // 16) * 16
        self.inbox = Inbox.of(torch.zeros(self.ids_from + 3 * tokens, dtype=torch.int64, device=device))
        self.lane_slots = torch.arange(rows, dtype=torch.int64, device=device)
        self.turned_counts = room(2, dtype=torch.int32)  # in the place of the inbox's, see `cuda_segment.run_segment`
        self.states = [room(tokens, weights.hidden, dtype=dtype) for _ in range(2)]
        in_int8 = 2 if weights.quantises_states else 0  # `states` after the first layer and later ones, not the last
        self.quantised = [Quantised.empty(tokens, weights.hidden, device) for _ in range(in_int8)]
        width = max(len(parts.past.weight) for parts in exits)
        self.pasts = [room(units * width) for _ in range(2)]
        self.memories = [room(units * sizes.width) for _ in range(2)]
        self.survivors = [Survivors.empty(rows, tokens, device) for _ in range(2)]
        self.logits, self.exit_layers = room(units, self.labels), room(units, dtype=torch.int64)
        self.scores, self.leave = room(units, self.labels), room(units, dtype=torch.bool)
        self.learned = room(units)
        self.arrived = torch.zeros(arrivals_of(units), dtype=torch.int32, device=device)  # as exits leave them

    def begin(self, rows: int, units: int) -> None:
        """So many rows of the inbox begin: none has an answer, and the slot of each is that of its first unit."""
        self.exit_layers[:units].zero_()
        if self.tokens is not None:
            self.tokens.frozen[:units].zero_()
            self.lane_slots[:rows].copy_(self.counts_and_bounds(self.inbox)[1][:rows])

    def put_states(self, layer: int, states: Tensor) -> None:
        """These are the states after `layer`, [T, H], in any order of rows."""
        to, count = self.states[layer % 2][: len(states)], len(states)
        to.copy_(states)
        if self.quantised:
            quantise_rows(to, full(count, to.device), out=self.quantised[layer % 2].first(count))

    def counts_and_bounds(self, inbox: Inbox) -> tuple[Any, Any]:
        """Counts int32 [2] and bounds int32 [R + 1] of an inbox."""
        return inbox.ints[:2], inbox.ints[4 : 5 + self.sizes.rows]

    def report(self, layer: int) -> Report:
        """Where the host reads how many are left after this layer."""
        return Report(self.inbox.words[1:2], self.words[layer, :3])

    def numbers(self, inbox: Inbox, rule: RuleForm) -> tuple[Any, Any]:
        """fp32 [n, K, 3]: threshold, times and temperature; and fp32 [L, V, R]: numbers by slot."""
        found = inbox.floats[2 * self.numbers_from : 2 * self.ids_from]
        shared, (layers, each) = self.layers * len(rule.forms) * NUMBERS, rule.by_slot
        by_slot = found[shared : shared + layers * each * self.units]
        return found[:shared].reshape(self.layers, len(rule.forms), NUMBERS), by_slot.reshape(layers, each, self.units)

    def sizes_for(self, rule: RuleForm, bucket: Bucket) -> Sizes:
        """What a rule needs with so many rows, or with as many as there is room for."""
        units = max(self.units, bucket.rows if self.tokens is None else bucket.tokens)
        numbers = self.layers * len(rule.forms) * NUMBERS + rule.by_slot[0] * rule.by_slot[1] * units
        return Sizes(bucket.rows, bucket.tokens, numbers, sum(rule.widths(self.labels)))

    def ids(self, inbox: Inbox, tokens: int) -> Any:
        """Ids, positions and types, int64 [3, T]."""
        return inbox.words[self.ids_from : self.ids_from + 3 * tokens].reshape(3, tokens)

    def batch(self, number: int, bucket: Bucket, turned: bool = False) -> Survivors:
        """The rows that are there, by `Position.batch` and `.turned`. For the inbox the sources are uninitialised."""
        here = self.survivors[max(number, 0)]
        if number < 0:
            counts, bounds = self.counts_and_bounds(self.inbox)
            counts = self.turned_counts if turned else counts
            here = here._replace(bounds=bounds, slots=self.lane_slots, counts=counts)
        rows, tokens = bucket.rows, bucket.tokens
        return Survivors(
            here.bounds[: rows + 1], here.slots[:rows], here.source_rows[:rows], here.source_firsts[:rows],
            here.source_tokens[:tokens], here.counts,
        )  # fmt: skip

    def past(self, exit_number: int, width: int, rows: int) -> Tensor:
        """fp32 [R, W]: what this exit leaves to the next one; of tokens [T, W] where those are scored."""
        return self.pasts[exit_number % 2][: rows * width].view(rows, width)

    def memory(self, number: int, rule: RuleForm) -> list[Tensor | None]:
        """For each of the rule's `widths` W fp32 [P, W], by `Position.memory`; None where there is no memory."""
        parts, at = [], 0
        for width in rule.widths(self.labels):
            size = self.units * width
            part = self.memories[number - 1][at : at + size].view(self.units, width) if number and width else None
            parts.append(part)
            at += size
        return parts
