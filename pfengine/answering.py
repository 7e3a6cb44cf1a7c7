"""The way of rows from a caller to logits, which `api.Engine.stream`, `ranking` and `pipeline` share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

from .cascade_reader import CascadeCheckpoint
from .cascade_runner import CascadeRunner
from .checkpoint import Checkpoint
from .errors import InputError
from .exits.selection import Selection
from .inference import Answered, Runner
from .model import Model
from .per_row import Number
from .rows import Row

Window = Sequence[Row | InputError]


class Host(Protocol):
    """What answering, ranking and tagging need of an engine."""

    model: Model
    precision: str
    checkpoint: Checkpoint | CascadeCheckpoint
    criterion: Any
    own_criterion: Any

    @property
    def labels(self) -> tuple[str, ...]: ...

    def _selected(self, inputs: Any, criterion: Any, threshold: Number, speedup: Number) -> tuple[Selection, Any]: ...

    def _runner(self, batch_tokens: int, batch_size: int | None, truncation: Any) -> Runner | CascadeRunner: ...

    def _windows(
        self, inputs: Any, truncation: str, batch_tokens: int, selection: Any = None, **how: Any
    ) -> Iterator[list[Row | InputError]]: ...

    def _answered(
        self, inputs: Any, windows: Iterable[Window], selection: Selection, runner: Any
    ) -> Iterator[Answered]: ...


def answered(
    engine: Host,
    inputs: Any,
    criterion: Any,
    threshold: Number,
    speedup: Number,
    truncation: str,
    batch_tokens: int,
    batch_size: int | None,
    window_rows: int | None = None,
) -> Iterator[Answered]:
    """The answers to rows as logits, window by window, lazily and in order. Options are those of `Engine.stream`.

    window_rows: read so many rows, answer them, and only then read on; None: read about four token budgets ahead.
    Raises ConfigError at once where the options do not fit the model or each other.
    """
    selection, rows = engine._selected(inputs, criterion, threshold, speedup)
    runner = engine._runner(batch_tokens, batch_size, truncation)
    how = {"flush_when_slow": window_rows is None, "window_rows": window_rows}
    windows = map(selection.resolved, engine._windows(rows, truncation, runner.batch_tokens, selection, **how))
    if window_rows is not None:
        return runner.answer(windows, selection, None)  # with workers the next window would be read before the answers
    return engine._answered(inputs, windows, selection, runner)
