"""Flights on the CPU, inside `_C`: one call of `advance` crosses to C++ once, however many layers it takes."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .. import extension
from ..batch import Packed
from .cpu_rule import native_rule
from .flight import Answers, Carrier, Exit, Flight, Joining, check_mask
from .packing import Embedding, Linear, PreparedBlock, PreparedExit, PreparedNorm, kernels
from .rule import ExitRule

if TYPE_CHECKING:
    from .. import _C


class CpuModel(Carrier):
    """The carrier of a model that `ops.cpu` prepared."""

    worker_threads = 1  # a flight has all threads
    max_flights = sys.maxsize
    may_join = False  # a layer takes as long as it has tokens
    joining: Joining | None = None
    max_rows = sys.maxsize

    def __init__(self, native: _C.Model, parts: Any) -> None:
        """native: holds addresses of `parts`."""
        self.native, self.parts = native, parts
        self._rule: tuple[ExitRule, _C.ExitRule] | None = None  # the last rule, and the same in _C

    def start(self, packed: Packed, slots: np.ndarray, answers: Answers) -> CpuFlight:
        """As `Carrier.start`. Raises TypeError for arrays of other dtypes, or that are not contiguous."""
        threads = extension.threads()
        native = extension._C.Flight(
            kernels(),
            self.native,
            packed.ids,
            packed.positions,
            packed.types,
            packed.cu_seqlens,
            packed.pieces if self.native.scores_tokens else None,
            slots,
            answers.logits,
            answers.exit_layers,
            threads,
        )
        return CpuFlight(self, native, threads)

    def warmup(self, packed: Packed, rule: ExitRule) -> None:
        """As `Carrier.warmup`."""
        by_token = self.native.scores_tokens
        bounds = packed.words().bounds if by_token else np.arange(len(packed.row_ids) + 1)
        answers, slots = Answers(0, int(bounds[-1]), self.native.labels), bounds[:-1].astype(np.int64)
        self.start(packed, slots, answers).advance(ExitRule(rule.tested), self.native.num_layers)

    def native_rule(self, rule: ExitRule) -> _C.ExitRule:
        """The rule as a _C.ExitRule. The last one is kept, because most batches have the rule of the batch before."""
        last = self._rule
        if last is None or last[0] is not rule:
            self._rule = last = (rule, native_rule(rule))
        return last[1]


class CpuFlight(Flight):
    """A `_C.Flight`, with as many threads as it was started with."""

    __slots__ = ("carrier", "native", "threads")

    def __init__(self, carrier: CpuModel, native: _C.Flight, threads: int) -> None:
        self.carrier, self.native, self.threads = carrier, native, threads

    @property
    def layer(self) -> int:
        """As `Flight.layer`."""
        return self.native.layer

    def __len__(self) -> int:
        return len(self.native)

    def slots(self) -> np.ndarray:
        """As `Flight.slots`."""
        return self.native.slots()

    def advance(self, rule: ExitRule, until: int, scores: bool = True) -> Exit | None:
        """As `Flight.advance`. Raises ValueError where `until` is not a later layer, or the rule does not fit.

        It does not fit where it has numbers for other layers or slots, reads tokens that the head does not score or a
        learned score that the head does not give, or carries other numbers from exit to exit than the rule before.
        """
        if not self.native.advance(self.carrier.native_rule(rule), until, scores, self.threads):
            return None
        layer, logits, slots, learned = self.native.exit()
        return Exit(layer, _tensor(logits), torch.from_numpy(slots), _tensor(learned))

    def leave(self, gone: Tensor | np.ndarray, answered: bool = True) -> None:
        """As `Flight.leave`."""
        check_mask(gone, None)  # its size is checked in C++
        gone = gone.numpy(force=True) if isinstance(gone, Tensor) else gone
        self.native.leave(np.ascontiguousarray(gone), answered, self.threads)

    def join(self, other: Flight) -> None:
        """As `Flight.join`."""
        if not isinstance(other, CpuFlight):
            raise ValueError(f"a flight of {type(other).__name__} cannot join one of {type(self).__name__}")
        self.native.join(other.native, self.threads)

    def states(self) -> Tensor:
        """As `Flight.states`."""
        return torch.from_numpy(self.native.states())


def _tensor(numbers: np.ndarray | None) -> Tensor | None:
    return None if numbers is None else torch.from_numpy(numbers)


def prepare_model(
    embedding: Embedding,
    projection: Linear | None,
    layers: list[list[PreparedBlock]],
    exits: list[tuple[PreparedExit, int] | None],
    renormalises: bool = False,
    final_norm: PreparedNorm | None = None,
) -> CpuModel:
    """As `OpSet.prepare_model`."""
    C, native_layers = extension._C, []
    for blocks, after in zip(layers, exits, strict=True):
        exit, adds_from = after or (None, -1)
        blocks_native, exit_native = [block.native for block in blocks], None if exit is None else exit.native
        native_layers.append(C.Layer(blocks=blocks_native, exit=exit_native, adds_from=adds_from))
    native = C.Model(
        embedding=embedding.native,
        projection=None if projection is None else projection.native,
        precision=C.Precision.fp32 if projection is None else projection.precision,
        layers=native_layers,
        renormalises=renormalises,
        final_norm=None if final_norm is None else final_norm.native,
    )
    return CpuModel(native, (embedding, projection, layers, exits, final_norm))
