"""Criteria whose exit layers are known beforehand: the last for all rows, or one given per row."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from ..errors import ConfigError, shown
from ..ops.rule import Clause, ExitRule
from .base import MULTI, REGRESSION, SINGLE, Criterion, register
from .data import Binding, DataCriterion

_LAST = 1 << 20  # more layers than any model has, and exact in float32


class _Fixed(DataCriterion):
    """Criteria without a knob, for any model."""

    problem_types = (SINGLE, MULTI, REGRESSION)
    min_labels = 1
    tags: bool | None = None
    with_threshold = Criterion.with_threshold  # type: ignore[assignment]
    candidates = Criterion.candidates
    grid = Criterion.grid

    @property
    def form(self) -> str:
        return repr(self)

    @property
    def counts(self) -> bool:
        return False

    def for_exits(self, exit_layers: Sequence[int], chosen: Sequence[int]) -> DataCriterion:
        return self


@register
@dataclass(frozen=True)
class Never(_Fixed):
    """No row leaves early: the full model."""

    name = "never"

    def tests(self, layer: int) -> bool:
        return False

    def clauses(self, at: Binding) -> tuple[Clause, ...]:
        return ()

    @classmethod
    def from_text(cls, argument: str, threshold: float | None) -> Never:
        if argument or threshold is not None:
            raise ConfigError("criterion 'never' takes no threshold")
        return cls()

    def __repr__(self) -> str:
        return "never"


@register
class Replay(_Fixed):
    """Leave after a layer given beforehand: row r after layers[r]. Every tested exit is still computed in full."""

    name = "replay"
    tags = False  # a layer per row says nothing of its tokens

    def __init__(self, layers: Sequence[int] | np.ndarray | Tensor) -> None:
        """layers: exit layer of each row of the input, 1-based, [rows]."""
        try:
            given = layers.numpy(force=True) if isinstance(layers, Tensor) else np.asarray(layers)
        except (TypeError, ValueError, RuntimeError):
            given = np.empty((0, 0))
        whole = not given.size or given.dtype.kind in "iu"
        if given.ndim != 1 or not whole or (given < 1).any() or (given > np.iinfo(np.int64).max).any():
            raise ConfigError("replay takes one exit layer >= 1 per row, as a flat list of integers")
        self.layers = given.astype(np.int64)
        self.rows = len(self.layers)
        self._leave_after = np.minimum(self.layers, _LAST).astype(np.float32)[None]

    def clauses(self, at: Binding) -> tuple[Clause, ...]:
        return (Clause("layer", ">=", self._leave_after),)

    def exit_rule(
        self,
        num_layers: int,
        exit_layers: Sequence[int],
        first_row: int = 0,
        slots: int = 1,
        thresholds: np.ndarray | None = None,
    ) -> ExitRule:
        if first_row + slots > self.rows:
            raise ConfigError(f"replay has exit layers for {self.rows} rows, and the input has more; give one per row")
        clause = Clause("layer", ">=", self._leave_after[:, first_row : first_row + slots])
        return ExitRule(_tested(num_layers, tuple(exit_layers)), (clause,))

    def bind(self, num_layers: int, exit_layers: Sequence[int]) -> Any:
        return self

    @classmethod
    def from_text(cls, argument: str, threshold: float | None) -> Replay:
        if threshold is not None:
            raise ConfigError("criterion 'replay' takes no threshold; give one layer per row, 'replay:3,5,2'")
        try:
            return cls([int(layer) for layer in argument.split(",")])
        except ValueError:
            text = f"replay:{argument}"
            raise ConfigError(f"criterion {shown(text)}: give one layer per row, 'replay:3,5,2'") from None

    def __repr__(self) -> str:
        return "replay:" + ",".join(map(str, self.layers.tolist()))


@functools.cache
def _tested(num_layers: int, exit_layers: tuple[int, ...]) -> bytes:
    return bytes(layer in exit_layers for layer in range(1, num_layers + 1))
