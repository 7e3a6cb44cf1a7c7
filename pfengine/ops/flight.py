"""A flight is a batch under way: rows at one layer with all they carry. What every carrier of flights offers.

    while flight:
        exit = flight.advance(rule, until=stop)
        if exit is not None:
            flight.leave(decide(exit))

Three carriers: plain torch over any op set (`torch_flight`), `_C` (`ops.cpu_model`), CUDA (`ops.cuda_model`).
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
from torch import Tensor

from ..batch import Packed
from .rule import ExitRule

MIN_ROWS_TO_SPLIT = 3  # fewer, and reading a layer's weights twice costs more than a row that leaves saves


class Answers:
    """Scores and exit layers by slot, filled in as rows leave. Row `base + s` of the input has slot s."""

    def __init__(self, base: int, slots: int, labels: int) -> None:
        self.base = base
        self.logits = np.full((slots, labels), np.nan, np.float32)
        self.exit_layers = np.zeros(slots, np.int64)  # 1-based; 0: not answered

    def slots(self, packed: Packed) -> np.ndarray:
        """int64 [R]: where the rows of a batch answer to."""
        return packed.row_ids - self.base


class Exit(NamedTuple):
    """The rows of a flight after a layer, before a caller decides who leaves. R rows; tag heads score all T tokens.

    Tensors are copies, on the flight's device.
    """

    layer: int
    logits: Tensor | None  # float32 [R, C], of a tag head [T, C]; None where the layer has no exit
    slots: Tensor  # int64 [R]; of a tag head [T]
    learned: Tensor | None = None  # float32 [R]: the score that some heads add


class Flight(Protocol):
    """Rows of one batch, or of several that were joined, at one layer."""

    @property
    def layer(self) -> int:
        """The layer they have passed, 1-based; 0 before the first."""

    def __len__(self) -> int:
        """Rows under way. On a GPU an upper bound, one segment old."""

    def slots(self) -> np.ndarray:
        """int64 [R]: the slot of each row that is under way, in order. On a GPU this waits."""

    def advance(self, rule: ExitRule, until: int, scores: bool = True) -> Exit | None:
        """On to layer `until`, which lies ahead; rows that the rule lets go leave on the way, at `until` too.

        Returns the rows still there at `until`, and their scores there, whether the exit is tested or not; None where
        nobody is left, as after the last layer, where all leave. scores: False to stop at `until` without its exit, so
        that rows stay even after the last layer. A layer may be left half done until the next call: the parts that only
        rows that go on need.
        """

    def leave(self, gone: Tensor | np.ndarray, answered: bool = True) -> None:
        """Rows where `gone`, bool [R], is true leave, at the layer where the last `advance` stopped.

        answered: with that exit's scores, which must be there; else they are dropped, and their slots stay as they
        are. Of a tag head gone is bool [T], by token: a token that has left is frozen, and a row leaves with its last.
        """

    def join(self, other: Flight) -> None:
        """Take in the rows of another flight of the same carrier, at the same layer and with the same `Answers`.

        `other` is empty afterwards. Raises ValueError where they do not fit.
        """

    def states(self) -> Tensor:
        """What the head reads of the layer they have passed: float32 [R, H], or [T, H]; a copy."""


class Carrier(Protocol):
    """A model prepared for flights. Several may be under way at once, in `lanes` threads."""

    @property
    def lanes(self) -> int: ...

    @property
    def max_rows(self) -> int:
        """Of a flight."""

    def start(self, packed: Packed, slots: np.ndarray, answers: Answers) -> Flight:
        """The rows of a batch before layer 1, row r answering to slots[r], int64 [R].

        Of a tag head slots[r] is the slot of the row's first token, and the others follow.
        Raises IndexError for an id outside its table, ValueError for sizes that do not fit.
        """

    def warmup(self, packed: Packed, rule: ExitRule) -> None:
        """What the first flight of this size would wait for, done beforehand, through all layers."""
