"""Batches that rows have left are joined, so that the last layers are as full as the first.

It pays where a layer takes as long with fewer tokens, as on a GPU: there three batches with a third of their rows left
take three times as long as one that holds the rows of all three. `Joining` says how long layers and joining take on
this machine, and `is_worth_it` decides by that.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np

from .batch import Packed
from .ops.flight import Answers, Carrier, Flight, Joining
from .ops.rule import ExitRule

STOPS = 2  # layers at which flights wait for others
ROUNDS = 5
MOST_TOKENS = 1 << 13  # that a layer is timed with


def is_worth_it(tokens: Sequence[float], layers: int, joining: Joining) -> bool:
    """Is it quicker to join flights of so many tokens each and take them through `layers` layers, than each by itself?

    No row is expected to leave in these layers. That makes both ways look longer than they are, by about the
    same share.
    """

    def layer_seconds(count: float) -> float:
        return joining.layer * max(1.0, count / joining.flat_tokens)

    saved = sum(map(layer_seconds, tokens)) - layer_seconds(sum(tokens))
    return layers * saved > joining.join * (len(tokens) - 1)


def stops_of(rule: ExitRule, layers: int, joining: Joining) -> list[int]:
    """The layers at which flights wait: tested exits as near as may be to equal parts of the model.

    None where not even flights of a single token could be joined there with a gain.
    """
    tested = [layer for layer in range(1, layers) if rule.tested[layer - 1]]
    wanted = (layers * (i + 1) / (STOPS + 1) for i in range(STOPS))
    found = {min(tested, key=lambda layer: abs(layer - place)) for place in wanted} if tested else set()
    return sorted(layer for layer in found if is_worth_it([1, 1], layers - layer, joining))


class Merger:
    """Takes batches through the layers of one model by one rule, in one thread.

    At every stop at most one flight waits, so that at most `STOPS` + 1 flights are under way.
    """

    def __init__(
        self, carrier: Carrier, layers: int, rule: ExitRule, joining: Joining, most_rows: int, most_tokens: int
    ) -> None:
        """most_rows, most_tokens: of a joined flight."""
        self.carrier, self.layers, self.rule, self.joining = carrier, layers, rule, joining
        self.most_rows, self.most_tokens = most_rows, most_tokens
        self.stops = stops_of(rule, layers, joining)
        self.waiting: dict[int, Flight] = {}
        self.joined = 0  # how often, for tests
        self.rows = self.tokens = 0  # of the batches so far

    def run(self, packed: Sequence[Callable[[], Packed]], answers: Answers) -> None:
        """Take these batches through all layers. Each is made when its turn comes.

        Where other threads have all the turns of the carrier's `mergers`, no flight is held back: those of many threads
        could leave none of them room to start another.
        """
        if not self.carrier.mergers.acquire(blocking=False):
            self.stops = []
            self._run(packed, answers)
            return
        try:
            self._run(packed, answers)
        finally:
            self.carrier.mergers.release()

    def _run(self, packed: Sequence[Callable[[], Packed]], answers: Answers) -> None:
        for i, make in enumerate(packed):
            batch = make()
            self.rows, self.tokens = self.rows + len(batch.row_ids), self.tokens + len(batch.ids)
            self._go_on(self.carrier.start(batch, answers.slots(batch), answers), 0, more=i + 1 < len(packed))
        for i, stop in enumerate(self.stops):
            if stop in self.waiting:
                self._go_on(self.waiting.pop(stop), i + 1, more=False)

    def _go_on(self, flight: Flight, first: int, more: bool) -> None:
        """Take a flight on to the stops from number `first` on, and past the last; it may be left at one of them.

        more: may other flights come to this flight's stops after it?
        """
        for i, stop in enumerate(self.stops[first:], start=first):
            flight.advance(self.rule, until=stop)
            if not len(flight):
                return
            other = self.waiting.pop(stop, None)
            if other is not None and self._fits(other, flight, stop):
                other.join(flight)
                flight, self.joined = other, self.joined + 1
            elif other is not None:  # it has waited long enough
                self._go_on(other, i + 1, more)
            if (more or self._behind(stop)) and self._fits(flight, flight, stop):
                self.waiting[stop] = flight
                return
        flight.advance(self.rule, until=self.layers)

    def _behind(self, stop: int) -> bool:
        """Does a flight wait before this stop?"""
        return any(earlier < stop for earlier in self.waiting)

    def _fits(self, one: Flight, other: Flight, stop: int) -> bool:
        """May flights of as many rows as these be joined, and is it worth it?"""
        rows = len(one), len(other)
        tokens = [count * self.tokens / self.rows for count in rows]
        if sum(rows) > self.most_rows or sum(tokens) > self.most_tokens:
            return False
        return is_worth_it(tokens, self.layers - stop, self.joining)


def measured(carrier: Carrier, layers: int, labels: int) -> Joining:
    """How long layers and joining take here: medians of a few rounds, with rows of padding that nobody sees."""
    nothing = ExitRule(bytes(layers))

    def start(rows: int, tokens: int, answers: Answers, first: int = 0) -> Flight:
        ids, bounds = np.zeros(rows * tokens, np.int64), np.arange(rows + 1, dtype=np.int32) * tokens
        slots = np.arange(rows) + first
        positions = np.tile(np.arange(tokens), rows)
        return carrier.start(Packed(ids, positions, np.zeros_like(ids), bounds, slots), slots, answers)

    def layer_seconds(rows: int, tokens: int) -> float:
        def once() -> float:
            flight = start(rows, tokens, Answers(0, rows, labels))
            began = time.perf_counter()
            flight.advance(nothing, until=layers)
            return (time.perf_counter() - began) / layers

        once(), once()  # compiles, then records
        return statistics.median(once() for _ in range(ROUNDS))

    def join_seconds() -> float:
        answers = Answers(0, 2, labels)
        began = time.perf_counter()
        flights = [start(1, 8, answers, first) for first in range(2)]
        for flight in flights:
            flight.advance(nothing, until=1)
        flights[0].join(flights[1])
        len(flights[0].slots())
        return time.perf_counter() - began

    least, rows = layer_seconds(1, 16), 2
    while rows * 16 <= MOST_TOKENS and layer_seconds(rows, 16) < 1.25 * least:
        rows *= 2
    join_seconds(), join_seconds()
    whole = statistics.median(join_seconds() for _ in range(ROUNDS))
    return Joining(least, rows * 8, max(whole - 2 * least, 0.0))
