"""Taking windows of rows through a model, in batches."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from . import engine
from .answers import has_answer, mark_unanswered
from .batch import Packed
from .errors import InputError
from .exits.data import is_data
from .exits.selection import Selection
from .merging import Merger, measured
from .model import Model
from .ops.flight import Answers
from .ops.rule import ExitRule
from .prefetch import run_ahead
from .rows import Row
from .tokenization import batches, pack

Window = Sequence[Row | InputError]


class Answered(NamedTuple):
    """A window of rows, with an error in the place of each row without an answer, and the answers.

    For a tag head logits are [rows, tokens of the longest row, labels] and exit layers [rows, tokens of the longest
    row]; beyond a row's own tokens they are nan and 0.
    """

    window: Window
    logits: np.ndarray  # float32 [rows, labels]
    exit_layers: np.ndarray  # int64 [rows]
    models: np.ndarray | None = None  # int64 [rows], 1-based: which model of a cascade answered


class RowAnswers(Answers):
    """Answers of a head that scores rows: one slot per row."""

    def to_rows(self, values: np.ndarray, fill: float) -> np.ndarray:
        return values


class WordAnswers(Answers):
    """Answers of a tag head: the words of each row have slots one after the other."""

    def __init__(self, base: int, lengths: Sequence[int], labels: int) -> None:
        """lengths: words of each row; 0 for a bad row."""
        self.lengths = np.array(lengths, np.int64)
        self.starts = np.cumsum([0, *lengths])
        super().__init__(base, int(self.starts[-1]), labels)

    def slots(self, packed: Packed) -> np.ndarray:
        return self.starts[packed.row_ids - self.base]

    def to_rows(self, values: np.ndarray, fill: float) -> np.ndarray:
        """[words of all rows, ...] -> [rows, words of the longest row, ...], with `fill` beyond a row's words."""
        rows, most = len(self.lengths), int(self.lengths.max(initial=0))
        out = np.full((rows, most, *values.shape[1:]), fill, values.dtype)
        out[np.arange(most) < self.lengths[:, None]] = values
        return out

    def spread(self, rule: ExitRule) -> ExitRule:
        """The rule with its numbers per word, from one whose numbers are per row."""

        def by_word(numbers: np.ndarray) -> np.ndarray:
            return numbers if numbers.shape[1] == 1 else np.repeat(numbers, self.lengths, axis=1)

        clauses = [c._replace(threshold=by_word(c.threshold), times=by_word(c.times)) for c in rule.clauses]
        return rule._replace(clauses=tuple(clauses))


@dataclass(frozen=True)
class Runner:
    """Takes windows of rows through a model, in batches of at most `batch_tokens` tokens and `batch_size` rows."""

    model: Model
    precision: str
    batch_tokens: int
    batch_size: int | None = None

    def answer(self, windows: Iterable[Window], selection: Selection, workers: Executor | None) -> Iterator[Answered]:
        """The answers of each window. With workers the next window is read while one is computed."""
        work = (self._work(window, selection) for window in windows)
        for window, answers in run_ahead(work, workers):
            logits, exit_layers = answers.to_rows(answers.logits, np.nan), answers.to_rows(answers.exit_layers, 0)
            yield Answered(self._marked(window, answers, has_answer(answers.logits)), logits, exit_layers)

    def layer_scores(self, window: Sequence[Row]) -> tuple[Window, engine.LayerScores]:
        """The window, with errors for rows without an answer, and the scores of every exit, no exits taken.

        Logits are float32 [exits, rows, labels]; for a tag head [exits, rows, words of the longest row, labels].
        """
        answers, exits = self._room(window), len(self.model.exit_layers)
        out = np.empty((exits, *answers.logits.shape), np.float32)
        learned = np.empty((exits, len(window)), np.float32) if self.model.learned else None
        for batch in batches(self._to_run(window), self.batch_tokens):
            packed = self._packed(batch)
            slots = answers.slots(packed)
            if self.model.head.tags:
                bounds = packed.words().bounds
                slots = np.repeat(slots - bounds[:-1], np.diff(bounds)) + np.arange(bounds[-1])
            scores = engine.layer_scores(self.model, packed)
            out[:, slots] = scores.logits
            if learned is not None:
                learned[:, slots] = scores.learned
        answered = np.logical_and.reduce(has_answer(out))
        logits = np.stack([answers.to_rows(each, np.nan) for each in out])
        return self._marked(window, answers, answered), engine.LayerScores(logits, learned)

    def join(self, parts: Sequence[np.ndarray], fill: float, axis: int = 0) -> np.ndarray:
        """Results of several windows joined along the axis of rows, those of a tag head padded with `fill`."""
        if len(parts) == 1:
            return parts[0]
        if self.model.head.tags:
            most = max(part.shape[axis + 1] for part in parts)
            lacks = [[(0, 0)] * (axis + 1) + [(0, most - part.shape[axis + 1])] for part in parts]
            lacks = [lack + [(0, 0)] * (part.ndim - axis - 2) for lack, part in zip(lacks, parts, strict=True)]
            parts = [np.pad(part, lack, constant_values=fill) for part, lack in zip(parts, lacks, strict=True)]
        return np.concatenate(parts, axis=axis)

    def join_answers(self, parts: Sequence[Answered]) -> Answered:
        """The answers of several windows joined; those of no rows where there is none."""
        if not parts:
            none = self._room([])
            return Answered([], none.to_rows(none.logits, np.nan), none.to_rows(none.exit_layers, 0))
        logits = self.join([part.logits for part in parts], np.nan)
        exit_layers = self.join([part.exit_layers for part in parts], 0)
        return Answered([row for part in parts for row in part.window], logits, exit_layers)

    def _marked(self, window: Window, answers: RowAnswers | WordAnswers, answered: np.ndarray) -> Window:
        """answered: bool by slot. A row has an answer where all its slots have one."""
        if np.logical_and.reduce(answered):
            return window
        rows = answers.to_rows(answered, True)
        rows = rows if rows.ndim == 1 else np.logical_and.reduce(rows, 1)
        return mark_unanswered(window, rows, self.precision)

    def _room(self, window: Window) -> RowAnswers | WordAnswers:
        first = 0 if not window else window[0].row_id if isinstance(window[0], Row) else window[0].row
        labels = self.model.config.num_labels
        if self.model.head.tags:
            return WordAnswers(first, [row.word_count if isinstance(row, Row) else 0 for row in window], labels)
        return RowAnswers(first, len(window), labels)

    def _to_run(self, window: Window) -> list[Row]:
        """The rows that go through the layers: not bad rows, nor those without words where words are scored."""
        tags = self.model.head.tags
        return [row for row in window if isinstance(row, Row) and not (tags and row.word_count == 0)]

    def _packed(self, batch: Sequence[Row]) -> Packed:
        packed = pack(batch, self.model.config)
        if self.model.head.freezes_first_pieces and packed.pieces is not None:
            packed = packed._replace(pieces=np.minimum(packed.pieces, 1))
        return packed

    def _work(
        self, window: Window, selection: Selection
    ) -> tuple[tuple[Window, RowAnswers | WordAnswers], list[Callable[[], None]]]:
        """A window with room for its answers, and one task per batch that fills it in."""
        answers = self._room(window)
        if not window:
            return (window, answers), []
        rule: Any = selection.rule(self.model.num_layers, self.model.exit_layers, answers.base, window)
        if isinstance(answers, WordAnswers) and isinstance(rule, ExitRule):
            rule = answers.spread(rule)

        def run(batch: list[Row]) -> None:
            engine.run(self.model, self._packed(batch), rule, answers)

        carrier = self.model.carrier
        most = min(carrier.max_rows, self.batch_size or carrier.max_rows)
        made = list(batches(self._to_run(window), self.batch_tokens, most))
        joining = carrier.joining if isinstance(rule, ExitRule) and not self.model.head.tags else None
        if joining is None or len(made) <= carrier.worker_threads:
            return (window, answers), [functools.partial(run, batch) for batch in made]

        def run_joined(part: list[list[Row]]) -> None:
            merger = Merger(carrier, self.model.num_layers, rule, joining, most, self.batch_tokens)
            merger.run([functools.partial(self._packed, batch) for batch in part], answers)

        parts = [made[i :: carrier.worker_threads] for i in range(carrier.worker_threads)]
        return (window, answers), [functools.partial(run_joined, part) for part in parts]


def warm_up(model: Model, criterion: Any, counts: Sequence[int], lengths: Sequence[int]) -> None:
    """Do in advance what the first batches of so many rows of such lengths would wait for."""
    rule = criterion.exit_rule(model.num_layers, model.exit_layers) if is_data(criterion) else criterion
    for count in counts:
        for length in lengths:
            batch = [Row(i, np.zeros(length, np.int64), None, False) for i in range(count)]
            engine.warmup(model, pack(batch, model.config), rule)
    if model.carrier.may_join and model.carrier.joining is None and not model.head.tags:
        model.carrier.joining = measured(model.carrier, model.num_layers, model.config.num_labels)
