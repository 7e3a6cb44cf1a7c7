"""Heads whose exits are data for every carrier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..ops import OpSet, Reads
from .base import ExitHead, HeadState, Scores
from .reading import FIRST, Reading


class PreparedHead(ExitHead):
    """A head whose exits are one op `exit` each. It runs in every carrier.

    A subclass sets `ops` and `exits` in `__init__`: one that `OpSet.prepare_exit` made per layer, None where it has
    none. They read what `reading` says, by default first tokens, or what the subclass's `reads` does.

    adds_from: per layer, the column of the past of the exit before it from which on that is added to the past of this
    one; -1 for nothing. Left out, exits leave each other nothing.
    """

    ops: OpSet
    exits: Sequence[Any]
    adds_from: Sequence[int] = ()
    reading: Reading = FIRST

    def reads(self, layer: int) -> Reads:
        return self.reading.kind

    def queries(self, layer: int) -> Any:
        return self.reading.queries[layer - 1]

    def prepared_exits(self) -> list[tuple[Any, int] | None] | None:
        columns = self.adds_from or [-1] * len(self.exits)
        return [None if exit is None else (exit, column) for exit, column in zip(self.exits, columns, strict=True)]

    def step(
        self, layer: int, x: Tensor, cu_seqlens: Tensor, state: HeadState | None, answer: bool
    ) -> tuple[Scores | None, HeadState]:
        exit = self.exits[layer - 1]
        if exit is None and answer:
            raise ValueError(f"{type(self).__name__} has no exit after layer {layer}")
        column = self._read_from(layer)
        if exit is None or not (answer or column >= 0):
            return None, (state or ()) if column >= 0 else ()
        logits, past, learned = self.ops.exit(x, exit, state[0] if state else None, answer)
        return None if logits is None else Scores(logits, learned), (past[:, column:],) if column >= 0 else ()

    def _read_from(self, layer: int) -> int:
        """The column from which on the next exit after `layer` reads the past of the one before it, or -1."""
        later = zip(self.exits[layer:], self.adds_from[layer:], strict=False)
        return next((column for exit, column in later if exit is not None), -1)
