"""Ways to batch requests on a CPU, under an open load at shares of the engine's capacity.

    python -m bench.scheduling --checkpoint sst2 --report scheduling.md

Rows arrive one by one at random (a Poisson process, the same for all ways) and wait in one queue, in this process:
there is no HTTP. Ways: small batches one after the other with all threads; one batch a core, each on one thread; and
joining at exits, where new rows catch up with the batch under way and share its later layers. The figure that decides
is the 99th percentile of a row's latency at equal load. Capacity is what batches of 512 tokens reach on a full queue.
"""

from __future__ import annotations

import collections
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

import pfengine
from pfengine import engine as loop
from pfengine import extension
from pfengine.batching import pack
from pfengine.evaluation.machine import describe_machine, name_machine
from pfengine.inference import RowAnswers
from pfengine.rows import Row
from pfengine.torch_state import keep_to_one_thread

from .tables import hand_over, table

SHARES = (0.3, 0.6, 0.9)


class Waiting:
    """Rows that have arrived, in order, and when each was answered."""

    def __init__(self, rows: Sequence[Row], count: int) -> None:
        self.rows, self.done = rows, np.full(count, np.nan)
        self.exit_layers = np.zeros(count, np.int64)
        self._queue: collections.deque[int] = collections.deque()
        self._changed, self._over = threading.Condition(), False

    def arrive(self, numbers: Sequence[int], over: bool = False) -> None:
        with self._changed:
            self._queue.extend(numbers)
            self._over = self._over or over
            self._changed.notify_all()

    def take(self, tokens: int, wait: bool = True) -> list[int]:
        """Rows with at most so many tokens, at least one; none where all are answered, or it must not wait."""
        with self._changed:
            while wait and not self._queue and not self._over:
                self._changed.wait()
            found: list[int] = []
            while self._queue:
                length = len(self.row(self._queue[0]).ids)
                if found and length > tokens:
                    break
                tokens -= length
                found.append(self._queue.popleft())
            return found

    def row(self, number: int) -> Row:
        return self.rows[number % len(self.rows)]

    def answered(self, numbers: np.ndarray, layers: np.ndarray) -> None:
        self.done[numbers], self.exit_layers[numbers] = time.perf_counter(), layers


Way = Callable[[pfengine.Engine, Waiting], None]


def small_batches(tokens: int) -> Way:
    """One after the other; answers go out after every exit."""

    def run(engine: pfengine.Engine, waiting: Waiting) -> None:
        model, rule = engine.model, _rule(engine)
        while numbers := waiting.take(tokens):
            flight, answers = _start(engine, waiting, numbers)
            places, open_ = np.array(numbers), np.ones(len(numbers), bool)
            for _ in loop.exits(model, flight, rule, 0):
                _deliver(waiting, places, open_, answers)
            _deliver(waiting, places, open_, answers)

    return run


def one_a_core(tokens: int, cores: int) -> Way:
    """As many batches at once as there are cores, each on one thread."""

    def on_one(engine: pfengine.Engine, waiting: Waiting) -> None:
        keep_to_one_thread()
        small_batches(tokens)(engine, waiting)

    def run(engine: pfengine.Engine, waiting: Waiting) -> None:
        threads = [threading.Thread(target=on_one, args=(engine, waiting)) for _ in range(cores)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    return run


def joining(tokens: int, every: int) -> Way:
    """New rows catch up with the batch under way after every `every` layers, and join it."""

    def run(engine: pfengine.Engine, waiting: Waiting) -> None:
        model, rule = engine.model, _rule(engine)
        answers = RowAnswers(0, len(waiting.done), model.config.num_labels)
        open_, lengths = np.zeros(len(waiting.done), bool), np.array([len(row.ids) for row in waiting.rows])

        def start(numbers: list[int]) -> Any:
            rows = [waiting.row(number)._replace(row_id=number) for number in numbers]
            packed = pack(rows, model.config)
            open_[numbers] = True
            return model.carrier.start(packed, answers.slots(packed), answers)

        def deliver() -> None:
            under_way = np.flatnonzero(open_)
            gone = under_way[answers.exit_layers[under_way] > 0]
            open_[gone] = False
            waiting.answered(gone, answers.exit_layers[gone])

        flight = None
        while True:
            if flight is None:
                if not (numbers := waiting.take(tokens)):
                    return
                flight = start(numbers)
            until = min(model.num_layers, flight.layer + every)
            stays = flight.advance(rule, until=until)
            deliver()
            if stays is None or until == model.num_layers or not len(flight):
                flight = None
                continue
            room = tokens - int(lengths[flight.slots() % len(lengths)].sum())
            if room > 0 and (numbers := waiting.take(room, wait=False)):
                late = start(numbers)
                if late.advance(rule, until=until) is not None and len(late):
                    flight.join(late)
                deliver()

    return run


def _rule(engine: pfengine.Engine) -> Any:
    criterion: Any = engine.criterion
    return criterion.exit_rule(engine.num_layers, engine.exit_layers)


def _start(engine: pfengine.Engine, waiting: Waiting, numbers: list[int]) -> tuple[Any, RowAnswers]:
    rows = [waiting.row(number)._replace(row_id=i) for i, number in enumerate(numbers)]
    answers, packed = RowAnswers(0, len(rows), engine.model.config.num_labels), pack(rows, engine.model.config)
    return engine.model.carrier.start(packed, answers.slots(packed), answers), answers


def _deliver(waiting: Waiting, places: np.ndarray, open_: np.ndarray, answers: RowAnswers) -> None:
    if (left := np.flatnonzero(open_ & (answers.exit_layers > 0))).size:
        open_[left] = False
        waiting.answered(places[left], answers.exit_layers[left])


@dataclass(frozen=True)
class Result:
    """Latencies in milliseconds; throughput in rows per second."""

    way: str
    share: float
    rate: float
    throughput: float
    p50: float
    p99: float


def measure(engine: pfengine.Engine, way: Way, rows: Sequence[Row], rate: float, seconds: float) -> tuple[Any, Waiting]:
    """Rows at a rate for so many seconds; when each was due, and what came of it. rate inf: all are there at once."""
    count = int(seconds * min(rate, 1e9)) if np.isfinite(rate) else int(seconds)
    gaps = np.random.default_rng(7).exponential(1 / rate, count) if np.isfinite(rate) else np.zeros(count)
    waiting, due = Waiting(rows, count), np.cumsum(gaps)
    worker = threading.Thread(target=way, args=(engine, waiting))
    start = time.perf_counter()
    worker.start()
    sent = 0
    while sent < count:
        now = time.perf_counter() - start
        ready = int(np.searchsorted(due, now, "right"))
        if ready > sent:
            waiting.arrive(range(sent, ready))
            sent = ready
        else:
            time.sleep(max(0.0, due[sent] - now))
    waiting.arrive([], over=True)
    worker.join()
    return due + start, waiting


def main(
    checkpoint: str = "sst2",
    precision: str = "auto",
    seconds: Annotated[float, typer.Option(help="Of each run.")] = 6.0,
    rounds: Annotated[int, typer.Option(help="Interleaved; medians are reported.")] = 3,
    report: Path | None = None,
    json_to: Annotated[Path | None, typer.Option("--json")] = None,
) -> None:
    engine = pfengine.load(checkpoint, precision=precision)
    texts = (Path(__file__).parent / "sst2_dev_96.txt").read_text().splitlines()
    rows = [row for row in engine.tokenizer.encode(enumerate(texts)) if isinstance(row, Row)]
    cores = extension.threads()
    ways: dict[str, Way] = {f"batches of {n} tokens": small_batches(n) for n in (128, 256, 512, 1024, 4096)}
    ways |= {f"one a core, {n} tokens": one_a_core(n, cores) for n in (128, 512)}
    ways |= {f"joining after {k} layers, {n} tokens": joining(n, k) for n, k in ((512, 1), (512, 3), (1024, 3))}
    expected = engine.predict(texts).exit_layers
    small_batches(512)(engine, _full(rows, 500))
    speeds = []
    for _ in range(3):
        start, full = time.perf_counter(), _full(rows, 2000)
        small_batches(512)(engine, full)
        speeds.append(2000 / (time.perf_counter() - start))
    capacity = float(np.median(speeds))
    found: dict[tuple[str, float], list[tuple[float, float, float]]] = {}
    for _ in range(rounds):
        for share in SHARES:
            for name, way in ways.items():
                due, waiting = measure(engine, way, rows, share * capacity, seconds)
                if not np.array_equal(waiting.exit_layers, np.resize(expected, len(due))):
                    raise SystemExit(f"{name}: exit layers differ from those of predict")
                took = 1000 * (waiting.done - due)
                through = len(due) / (waiting.done.max() - due[0])
                found.setdefault((name, share), []).append((through, *np.percentile(took, [50, 99])))
    results = [
        Result(name, share, share * capacity, *map(float, np.median(each, axis=0)))
        for (name, share), each in found.items()
    ]
    lines = [
        f"Capacity {capacity:.0f} rows/s; {engine.precision}, {cores} threads of "
        f"{name_machine(describe_machine())}; {np.mean([len(row.ids) for row in rows]):.1f} tokens per row; layer "
        f"speed-up {engine.num_layers / expected.mean():.2f}; medians of {rounds} interleaved runs of {seconds:g} s.",
        "",
        *table(
            ["way", *(f"p50 / p99 in ms at {share:.0%}" for share in SHARES)],
            [
                [name, *(_cell(next(r for r in results if (r.way, r.share) == (name, share))) for share in SHARES)]
                for name in ways
            ],
        ),
    ]
    hand_over("\n".join([*lines, ""]), [asdict(result) for result in results], report, json_to)


def _full(rows: Sequence[Row], count: int) -> Waiting:
    waiting = Waiting(rows, count)
    waiting.arrive(range(count), over=True)
    return waiting


def _cell(result: Result) -> str:
    return f"{result.p50:.1f} / {result.p99:.1f}"


if __name__ == "__main__":
    typer.run(main)
