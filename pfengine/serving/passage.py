"""A batch of rows of many requests on its way through a model.

It stops after every exit: answers go out as rows leave, rows of cancelled requests are dropped, and rows whose
deadline would pass before the next exit leave with the scores of this one.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from .. import engine
from ..answers import has_answer
from ..api import Engine
from ..batch import Packed
from ..batching import pack
from ..cascade_runner import CascadeRunner
from ..errors import InputError
from ..inference import RowAnswers
from ..ops.flight import Exit, Flight
from ..torch_state import isolated
from .failures import Failure
from .queue import Place
from .totals import Totals


def run(model: Engine, places: Sequence[Place], totals: Totals, stops: bool = True) -> None:
    """Answer rows whose jobs run the same criterion. Raises what the engine raises.

    stops: after each exit, for deadlines, for jobs that are cancelled, and for answers that go out before the others'.
    """
    passage, start = _Passage(model, places, totals), time.monotonic()
    if model.cascade is not None:
        passage.cascade()
    else:
        passage.fly(stops)
    totals.add_batch(passage.rows, time.monotonic() - start)


class _Passage:
    def __init__(self, model: Engine, places: Sequence[Place], totals: Totals) -> None:
        self.engine, self.places, self.totals = model, places, totals
        self.rows = [place.job.rows[place.row]._replace(row_id=i) for i, place in enumerate(places)]
        self.under_way = np.ones(len(places), bool)
        self.usual = places[0].job.usual
        self.top_k = places[0].job.top_k

    def fly(self, stops: bool) -> None:
        model = self.engine.model
        answers = RowAnswers(0, len(self.rows), model.config.num_labels)
        packed = pack(self.rows, model.config)
        rule: Any = model.full_depth
        if self.top_k is None:
            rule = self.places[0].job.selection.rule(model.num_layers, model.exit_layers, 0, self.rows)
        if stops or self.top_k is not None:
            self.fly_and_stop(packed, rule, answers)
        else:
            with isolated():
                engine.run(model, packed, rule, answers)
        self.deliver(np.flatnonzero(self.under_way), answers.logits, answers.exit_layers)

    def fly_and_stop(self, packed: Packed, rule: Any, answers: RowAnswers) -> None:
        """Up to the last layer, whose answers are left to be delivered."""
        model, jobs = self.engine.model, [place.job for place in self.places]
        flight = model.carrier.start(packed, answers.slots(packed), answers)
        deadlines = np.array([np.inf if job.deadline is None else job.deadline for job in jobs])
        tested = {} if self.top_k is None else self.top_k.tested(model.exit_layers)
        where = tested if self.top_k is not None and np.isinf(deadlines).all() else None
        before = time.monotonic()
        with contextlib.closing(engine.exits(model, flight, rule, answers.base, where)) as exits:
            for exit in exits:
                if exit.layer in tested:
                    exit = self.leave_out(flight, exit, tested[exit.layer])
                left = np.flatnonzero(self.under_way & (answers.exit_layers > 0))
                self.deliver(left, answers.logits, answers.exit_layers)
                now = time.monotonic()
                slots = exit.slots.numpy(force=True)
                given_up = np.array([jobs[slot].over for slot in slots], bool)
                due = ~given_up & (
                    deadlines[slots] < 2 * now - before
                )  # the next layers take about as long as the last
                before = now
                if due.any():
                    assert exit.logits is not None
                    self.deliver_now(slots[due], exit.logits.numpy(force=True)[due], exit.layer)
                if (gone := due | given_up).any():
                    self.under_way[slots[gone]] = False
                    flight.leave(gone, answered=False)

    def leave_out(self, flight: Flight, exit: Exit, number: int) -> Exit:
        """Let documents leave that are surely not among a query's best; gives the exit of those that stay."""
        assert self.top_k is not None
        assert exit.logits is not None
        leave = self.top_k.leave(number, exit.logits[:, 0].numpy(force=True))
        flight.leave(leave)
        return engine.of_rows(exit, torch.from_numpy(np.flatnonzero(~leave)).to(exit.slots.device))

    def cascade(self) -> None:
        """All models of a cascade, without a stop."""
        assert self.engine.cascade is not None
        runner = CascadeRunner(self.engine.cascade, self.engine.precision, sum(len(row.ids) for row in self.rows))
        (found,) = runner.answer([self.rows], self.places[0].job.selection, None)
        fine = np.array([not isinstance(row, InputError) for row in found.window])
        self.deliver(np.arange(len(self.rows)), found.logits, found.exit_layers, fine, found.models)

    def deliver_now(self, slots: np.ndarray, logits: np.ndarray, layer: int) -> None:
        """Hand the scores of an exit, float32 [k, labels], to rows that would stay."""
        whole = np.full((len(self.rows), logits.shape[1]), np.nan, np.float32)
        whole[slots] = logits
        self.deliver(slots, whole, np.full(len(self.rows), layer), hurried=True)

    def deliver(
        self,
        slots: np.ndarray,
        logits: np.ndarray,
        layers: np.ndarray,
        fine: np.ndarray | None = None,
        models: np.ndarray | None = None,
        hurried: bool = False,
    ) -> None:
        """Hand their answers to the jobs of some rows; arrays are by slot. A row whose numbers overflow has none."""
        if not len(slots):
            return
        self.under_way[slots] = False
        fine = has_answer(logits) if fine is None else fine
        lengths = [len(self.rows[slot].ids) for slot in slots]
        self.totals.add_answers(layers[slots], lengths, usual=self.usual, hurried=hurried)
        by_job: dict[int, list[int]] = {}
        for slot in slots.tolist():
            by_job.setdefault(id(self.places[slot].job), []).append(slot)
        for members in by_job.values():
            job = self.places[members[0]].job
            good = [slot for slot in members if fine[slot]]
            for slot in members:
                if not fine[slot]:
                    row = self.places[slot].row
                    reason = f"the model's numbers overflow in {self.engine.precision}; there is no answer"
                    job.fail_row(row, Failure("backend", reason, row=row))
            if good:
                which = None if models is None else models[good]
                job.answer([self.places[slot].row for slot in good], logits[good], layers[good], which)
