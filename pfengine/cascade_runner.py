"""Taking windows of rows through the models of a cascade. Survivors of all batches of a window are batched anew.

What the criterion between models reads of a row are the scores that the model answers it with: those of the exit where
the row leaves the model by the model's own criterion, or of its last layer. A row that goes on has paid for the layers
that it has gone through: its exit layer is their number in all models.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .answers import raise_first
from .cascade_model import Cascade, Member
from .engine import LayerScores
from .errors import InputError
from .exits import Criterion, Never
from .exits.selection import Selection
from .exits.signals import signal
from .exits.user_criterion import checked
from .inference import Answered, Runner, Window
from .messages import warn
from .ops.decide import decide
from .ops.rule import ExitRule
from .rows import Row, Text
from .torch_flight import select_rows
from .torch_state import isolated


@dataclass(frozen=True)
class CascadeRunner:
    """`inference.Runner`, for a cascade."""

    model: Cascade
    precision: str
    batch_tokens: int
    batch_size: int | None = None
    truncation: str = "truncate"

    def answer(self, windows: Iterable[Window], selection: Selection, workers: Executor | None) -> Iterator[Answered]:
        """The answers of each window. With workers the batches of a model are computed at the same time.

        Rows have been read by the first model's tokenizer; by the last model's where the criterion is `never`.
        """
        members, cut = self.model.members, Counter[int]()
        last, reader = len(members) - 1, self.model.reader(selection.criterion)
        own = members[last].selection
        never = Selection(own.checkpoint, Never(), Never())
        try:
            for window in windows:
                passage = _Passage(self, window, selection, workers, cut)
                rows, read_by = np.flatnonzero(passage.goes_through), reader
                for place, end in enumerate(self.model.ends):
                    rows = passage.enter(place, read_by, rows, members[place].selection)
                    rows, read_by = rows if place == last else passage.stay(rows, end), place
                passage.enter(last, reader, np.flatnonzero(passage.full_depth), never)
                yield Answered(passage.window, passage.logits, passage.exit_layers, passage.models)
        finally:
            self._warn(cut)

    def layer_scores(self, window: Sequence[Row]) -> tuple[Window, LayerScores]:
        """The window, and the scores of every exit of every model. Raises InputError for a row without an answer.

        Logits are float32 [exits, rows, labels], the exits of one model after those of the other.
        """
        rows, parts, cut = [*window], list[LayerScores](), Counter[int]()
        for place, member in enumerate(self.model.members):
            rows = raise_first(self.read(place, max(0, place - 1), rows, cut))
            marked, scores = self.runner(member).layer_scores(rows)
            raise_first(marked)
            parts.append(scores)
        self._warn(cut)
        logits = np.concatenate([part.logits for part in parts])
        if all(part.learned is None for part in parts):
            return window, LayerScores(logits, None)
        none = [np.full(part.logits.shape[:2], np.nan, np.float32) for part in parts]
        learned = [empty if part.learned is None else part.learned for part, empty in zip(parts, none, strict=True)]
        return window, LayerScores(logits, np.concatenate(learned))

    def join(self, parts: Sequence[np.ndarray], fill: float, axis: int = 0) -> np.ndarray:
        """Results of several windows joined along the axis of rows."""
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=axis)

    def join_answers(self, parts: Sequence[Answered]) -> Answered:
        """The answers of several windows joined; those of no rows where there is none."""
        models = [np.empty(0, np.int64), *(part.models for part in parts if part.models is not None)]
        joined = self.runner(self.model.members[-1]).join_answers(parts)
        return joined._replace(models=np.concatenate(models))

    def runner(self, member: Member) -> Runner:
        return Runner(member.model, self.precision, self.batch_tokens, self.batch_size)

    def read(self, place: int, read_by: int, rows: Sequence[Row], cut: Counter[int]) -> list[Row | InputError]:
        """Rows as the model at `place` takes them, from those that the one at `read_by` took; an error for a bad row.

        cut: gets the number of rows that are truncated now, by place.
        """
        member, before = self.model.members[place], self.model.members[read_by]
        found: list[Row | InputError] = [*rows]
        if place != read_by:
            found = member.tokenizer.again(rows, before.tokenizer, member.reads_like(before))
        for i, row in enumerate(found):
            if not self.model.takes_ids and isinstance(row, Row) and not isinstance(row.source, Text):
                reason = "gives input_ids, but the models of this cascade have different tokenizers; give text"
                found[i] = InputError(row.row_id, reason)
            elif isinstance(row, Row) and row is not rows[i] and row.truncated:
                cut[place] += 1
                if self.truncation == "error":
                    reason = (
                        f"has more than {member.tokenizer.max_length} tokens, the most that model {place + 1} takes"
                    )
                    found[i] = InputError(row.row_id, f"{reason}; shorten it, or truncate it")
        return found

    def _warn(self, cut: Counter[int]) -> None:
        for place, rows in cut.items() if self.truncation == "truncate" else ():
            limit = self.model.members[place].tokenizer.max_length
            warn(f"{rows} rows had more than {limit} tokens and were truncated for model {place + 1} of the cascade")


class _Passage:
    """A window on its way through the models, and the answers so far.

    goes_through, full_depth: bool [rows]; a bad row is in neither.
    """

    def __init__(
        self,
        runner: CascadeRunner,
        window: Window,
        selection: Selection,
        workers: Executor | None,
        cut: Counter[int],
    ) -> None:
        self.runner, self.workers, self.cut = runner, workers, cut
        count, cascade = len(window), runner.model
        self.base = 0 if not window else window[0].row_id if isinstance(window[0], Row) else window[0].row
        self.rule: Any = selection.rule(cascade.ends[-1], cascade.ends, self.base, window) if window else None
        never = isinstance(selection.criterion, Never)
        full = [
            isinstance(row, Row) and (never if row.threshold is None else np.isnan(row.threshold)) for row in window
        ]
        self.full_depth = np.array(full, bool)
        self.goes_through = np.array([isinstance(row, Row) for row in window], bool) & ~self.full_depth
        # thresholds are those between models
        self.window = [row._replace(threshold=None) if isinstance(row, Row) else row for row in window]
        self.logits = np.full((count, cascade.last.config.num_labels), np.nan, np.float32)
        self.exit_layers, self.models = np.zeros(count, np.int64), np.zeros(count, np.int64)
        self._state, self._kept = None, np.empty(0, np.int64)  # what rows carry for the criterion, and those rows

    def enter(self, place: int, read_by: int, rows: np.ndarray, selection: Selection) -> np.ndarray:
        """Take rows, by their place in the window, through a model. Returns those that it answers; others are bad."""
        if not len(rows):
            return rows
        member = self.runner.model.members[place]
        # in the place of each row that takes no part is an error, which no model reads
        entering: list[Row | InputError] = [InputError(self.base, "is not in this model")] * len(self.window)
        given = [row for row in map(self.window.__getitem__, rows) if isinstance(row, Row)]
        for i, row in zip(rows, self.runner.read(place, read_by, given, self.cut), strict=True):
            entering[i] = row
        (found,) = self.runner.runner(member).answer([entering], selection, self.workers)
        for i in rows:
            self.window[i] = found.window[i]
        answered = rows[[isinstance(self.window[i], Row) for i in rows]]
        self.logits[answered] = found.logits[answered]
        self.exit_layers[answered] += found.exit_layers[answered]
        self.models[answered] = place + 1
        return answered

    def stay(self, rows: np.ndarray, end: int) -> np.ndarray:
        """Of the rows that the model has answered whose last layer is `end`, those that go on to the next one."""
        rule = self.rule
        tested = (
            rule.tested[end - 1] if isinstance(rule, ExitRule) else not isinstance(rule, Criterion) or rule.tests(end)
        )
        if not len(rows) or not tested:
            return rows
        with isolated():
            logits, slots = torch.from_numpy(self.logits[rows]), torch.from_numpy(rows)
            state = select_rows(self._state, torch.from_numpy(np.searchsorted(self._kept, rows)))
            if isinstance(rule, ExitRule):
                leave, state = decide(rule, end, logits, None, state, slots, signal)
            else:
                leave, state = checked(rule)(end, logits, state, slots + self.base)
            staying = (~leave).nonzero().squeeze(1)
            self._state, self._kept = select_rows(state, staying), rows[staying.numpy()]
        return self._kept
