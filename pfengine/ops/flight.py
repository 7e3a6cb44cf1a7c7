"""Flights, batches under way: rows at one layer with all they carry. This is what every carrier offers.

    while flight:
        exit = flight.advance(rule, until=stop)
        if exit is not None:
            flight.leave(decide(exit))

Three carriers: plain torch over any op set (`torch_flight`), `_C` (`ops.cpu_model`), CUDA (`ops.cuda_model`).
"""

from __future__ import annotations

import sys
import threading
from typing import NamedTuple, Protocol

import numpy as np
from torch import Tensor

from ..batch import Packed
from .rule import ExitRule

MIN_ROWS_TO_HALVE = 3  # with fewer rows, reading a layer's weights twice costs more than a leaving row saves


class Answers:
    """Scores and exit layers by slot, filled in as rows leave.

    base: row `base + s` of the input has slot s.
    """

    def __init__(self, base: int, slots: int, labels: int) -> None:
        self.base = base
        self.logits = np.empty((slots, labels), np.float32)
        self.logits.fill(np.nan)
        self.exit_layers = np.zeros(slots, np.int64)  # 1-based; 0: not answered

    def slots(self, packed: Packed) -> np.ndarray:
        """int64 [R]: the slots of a batch's rows."""
        return packed.row_ids - self.base


class Exit(NamedTuple):
    """The rows of a flight after a layer, for a caller who decides which of them leave.

    R rows; of tag heads their W words, as `Packed.words` has them. Tensors are copies, on the flight's device.
    """

    layer: int
    logits: Tensor | None  # float32 [R, C], for a tag head [W, C]; None where the layer has no exit
    slots: Tensor  # int64 [R], for a tag head [W]
    learned: Tensor | None = None  # float32 [R]: the score that some heads add


class Flight(Protocol):
    """Rows of one batch, or of several that were joined, at one layer."""

    @property
    def layer(self) -> int:
        """The layer that the rows have passed, 1-based; 0 before the first."""

    def __len__(self) -> int:
        """How many rows are under way. On a GPU an upper bound: the count before the last segment that was queued."""

    def slots(self) -> np.ndarray:
        """int64 [R]: the slot of each row that is under way, in order. On a GPU this waits for the device."""

    def advance(self, rule: ExitRule, until: int, scores: bool = True) -> Exit | None:
        """Go on to layer `until`, 1-based and later than `layer`. At each tested exit, `until` included, rows leave as
        the rule says.

        Returns the rows that are left after `until`, with their scores even where that exit is not tested. Returns
        None where no row is left, as after the last layer, where all rows leave. scores: False to stop at `until`
        without computing its exit; then rows stay even after the last layer. A carrier may compute the layer `until`
        for first tokens only, and its other tokens at the next call, for the rows that are left by then. Raises
        ValueError where `until` is not later, or the rule does not fit the model.
        """

    def leave(self, gone: Tensor | np.ndarray, answered: bool = True) -> None:
        """Rows where `gone`, bool [R], is true leave, after the layer where the last `advance` stopped.

        answered: with that exit's scores, which must have been computed. Otherwise the rows are dropped, and their
        slots stay as they are. For a tag head gone is bool [W]: the pieces of a word that leaves are frozen, and a row
        leaves with its last word. Raises ValueError where there are no scores to answer with, or gone has another dtype
        or size.
        """

    def join(self, other: Flight) -> None:
        """Take in the rows of another flight of the same carrier, at the same layer and with the same `Answers`.

        `other` is empty afterwards. A flight without rows takes in those of any layer. Where one flight has passed
        a tested exit and the other has not, the rule treats the rows of the other as before their first exit. Raises
        ValueError where the two do not fit together.
        """

    def states(self) -> Tensor:
        """What the head reads of the layer that the rows have passed: float32 [R, H], for a tag head [W, H]; a copy.

        Of a head that reads all tokens, or weighs them by queries, the tokens themselves: [T, H].
        """


def check_mask(gone: Tensor | np.ndarray, units: int | None) -> None:
    """Raise ValueError where the mask for `Flight.leave` is not bool [units], TypeError where it is no array at all.

    units: rows, or words of a tag head; None: of any size.
    """
    if not isinstance(gone, (Tensor, np.ndarray)):
        raise TypeError(f"gone is of type {type(gone).__name__}; expected a tensor or an array of bool")
    kind, shape = str(gone.dtype).removeprefix("torch."), list(gone.shape)
    if kind != "bool" or (units is not None and shape != [units]):
        raise ValueError(f"gone is {kind} {shape}; expected bool [{'rows' if units is None else units}]")


class Joining(NamedTuple):
    """What decides whether flights are worth joining, as `merging.measured` found it."""

    layer: float  # seconds that a layer takes at least, however few tokens there are
    flat_tokens: int  # up to about so many tokens it takes no longer
    join: float  # seconds to stop two flights after the same layer and join them


class Carrier(Protocol):
    """A model prepared for flights. Several may be under way at once."""

    may_join: bool  # can joined flights save time? Only where a layer takes as long with fewer tokens
    joining: Joining | None  # None: not measured, and batches are not joined
    # a turn for each thread that may hold flights back to join them to later ones; any number where flights may be
    mergers: threading.Semaphore = threading.Semaphore(sys.maxsize)

    @property
    def worker_threads(self) -> int:
        """How many threads the engine takes flights through the layers in, for the best throughput."""

    @property
    def max_flights(self) -> int:
        """The most flights that may be under way. Where there are so many, `start` waits until one of them ends."""

    @property
    def max_rows(self) -> int:
        """The most rows that a flight may have."""

    def start(self, packed: Packed, slots: np.ndarray, answers: Answers) -> Flight:
        """A flight of a batch's rows before layer 1. Row r answers to slots[r], int64 [R].

        For a tag head slots[r] is the slot of the row's first word; the slots of its other words follow.
        Raises IndexError for an id outside its table, ValueError for sizes that do not fit.
        """

    def warmup(self, packed: Packed, rule: ExitRule) -> None:
        """Do in advance, through all layers, what the first flight of this size would wait for."""
