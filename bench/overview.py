"""Latency and throughput in under four minutes: a trained and a wide model, exits off and on, all installed peers.

Every contestant of a model and batch size is timed in the same interleaved rounds. The number of rounds and of rows in
a round follow from the seconds that are left.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

import pfengine
from pfengine.exits import Replay

from . import conversions, engines
from .engines import REFERENCE, SKIPPED, contestant, differences, precision
from .interleave import interleave
from .knobs import BUNDLED, HIDDEN, ROUNDS, ROWS, SECONDS, Model
from .models import LAYERS
from .peers import open_checkpoint
from .rows import Row, fixed_batches, layer_speedup, replay_layers

MODELS = (BUNDLED, f"random-{max(HIDDEN)}")
BATCHES = (1, 32)
SPEEDUP = 2.0  # of layers, replayed
REPLAY, OWN = f"replay {SPEEDUP:g}x", f"speedup={SPEEDUP:g}"
PRECISIONS = ("fp32", "bf16", "int8")
COMPILED = "torch.compile fp32"
FULL_DEPTH = tuple(name for name in engines.NAMES if name != COMPILED)
NAMES = (
    *(f"pfengine {precision}" for precision in PRECISIONS),
    *(f"pfengine {REPLAY} {precision}" for precision in PRECISIONS),
    f"pfengine {OWN} int8",
    *(name for name in FULL_DEPTH if not name.startswith("pfengine")),
)
LEFT_TO_FULL = "compiling takes a minute per model: pytest bench --full"
NOT_CONVERTED = "no time was left to convert the model; what is converted is kept, so run again"
TOO_LATE = "no time was left to load it: pytest bench --full, or a larger PFENGINE_BENCH_SECONDS"
TOO_SLOW = "too slow for the time left: pytest bench --full, or a larger PFENGINE_BENCH_SECONDS"
CONVERSIONS_SHARE = 0.4  # of all seconds
LONGEST_CASE = 30.0  # seconds of measuring; more would not change the result
PROBED = 4  # rows to estimate the time per row with; in a larger batch it is less
LEAST_ROWS = 8  # in a round

Pass = Callable[..., np.ndarray]  # (laps) -> logits, or exit layers where rows leave; seconds of each call go to laps


class Case(NamedTuple):
    model: str
    batch: int


CASES = tuple(Case(model, batch) for model in MODELS for batch in BATCHES)


class Run(NamedTuple):
    over: Callable[[Sequence[Row]], Pass]
    per_row: float  # seconds, about


class Clock:
    """A budget of seconds, counted from its creation."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self.start, self.seconds = time.perf_counter(), seconds

    def gone(self) -> float:
        return time.perf_counter() - self.start

    def left(self) -> float:
        return self.seconds - self.gone()


class Overview:
    """All cases of a run, each measured when it is first asked for."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.records: list[dict[str, Any]] = []
        self.rounds: dict[Case, dict[str, list[float]]] = {}  # seconds per round of every contestant
        self.missing: dict[tuple[str, Case], str] = {}  # and why
        self.models: dict[str, dict[str, Any]] = {}
        self.phases: dict[str, float] = {}  # seconds that each took
        self._failed: dict[tuple[str, Model], str] = {}  # to convert
        self._engines: dict[tuple[str, str], pfengine.Engine] = {}

    def measured(self, case: Case) -> dict[str, list[float]]:
        """Seconds of every round, per contestant."""
        if not self.rounds:
            self._convert()
        if case not in self.rounds:
            if case.model not in self.models:
                self.models[case.model] = _described(case.model)
                contestant.cache_clear()  # those of another model are not needed any more
                self._engines.clear()
            self.rounds[case] = {}
            self._measure(case)
        return self.rounds[case]

    def record(self, case: Case, name: str) -> dict[str, Any]:
        wanted = (case.model, case.batch, name)
        return next(one for one in self.records if (one["model"], one["batch"], one["contestant"]) == wanted)

    def _convert(self) -> None:
        """Convert what peers need and the cache lacks, the slowest last, for no longer than their share of the time."""
        names = [name for name in conversions.CONVERTED if engines.absent(name) is None]
        with self._phase("conversions"):
            self._failed = conversions.convert_within(CONVERSIONS_SHARE * self.clock.left(), names, MODELS)

    def _measure(self, case: Case) -> None:
        of = f"{case.model}, batch {case.batch}"
        cases = CASES[CASES.index(case) :]
        of_model = sum(one.model == case.model for one in cases)  # which share what is loaded now
        until = self.clock.gone() + 0.95 * self.clock.left() * of_model / len(cases)
        with self._phase(f"{of}: load and probe"):
            runs = self._probed(case, until)
        if not runs:
            return
        left = (until - self.clock.gone()) / of_model
        within(left, case, runs, self.missing)
        left = min(LONGEST_CASE, left)
        per_row = sum(run.per_row for run in runs.values())
        rows = conversions.rows_of(case.model, max(ROWS, case.batch))
        batches = int(left / per_row / (ROUNDS + 1)) // case.batch  # plus one: the warm-up round
        rows = rows[: max(1, batches, LEAST_ROWS // case.batch) * case.batch]
        laps: dict[str, list[float]] = {name: [] for name in runs}
        calls = {name: partial(run.over(rows), laps[name]) for name, run in runs.items()}
        with self._phase(f"{of}: measure"):
            found = interleave(calls, partial(self._refused, case, rows), ROUNDS, left)

        timed = len(next(iter(found.seconds.values())))
        batches = -(-len(rows) // case.batch)
        lengths = [len(row) for row in rows]
        self.rounds[case] = found.seconds
        for name in found.seconds:
            milliseconds = 1e3 * np.array(laps[name][-timed * batches :])
            layers = found.answers[name] if name not in FULL_DEPTH else None
            self.records.append({
                "model": case.model, "batch": case.batch, "contestant": name, "precision": precision(name),
                "rows": len(rows),
                "tokens": {"least": min(lengths), "mean": np.mean(lengths).item(), "most": max(lengths)},
                "rounds": timed,
                "median_seconds": found.median(name), "rows_per_second": len(rows) / found.median(name),
                "p50_ms": float(np.percentile(milliseconds, 50)), "p99_ms": float(np.percentile(milliseconds, 99)),
                "layer_speedup": 1.0 if layers is None else layer_speedup(layers, LAYERS),
                "wall_clock_speedup": found.speedup(name, f"pfengine {precision(name)}"),
            })  # fmt: skip

    def _probed(self, case: Case, until: float) -> dict[str, Run]:
        """Run every contestant once on a few rows. Peers for which no time is left are left out."""
        rows = conversions.rows_of(case.model, PROBED)
        runs: dict[str, Run] = {}
        budget = until - self.clock.gone()
        for name in NAMES:
            if not name.startswith("pfengine") and until - self.clock.gone() < budget / 2:
                self.missing[name, case] = TOO_LATE
                continue
            over = self._contestant(name, case)
            if over is not None:
                probe = over(rows)
                probe()  # so that compiling at the first call is not timed
                start = time.perf_counter()
                probe()
                runs[name] = Run(over, (time.perf_counter() - start) / len(rows))
        return runs

    def _refused(self, case: Case, rows: Sequence[Row], answers: dict[str, np.ndarray]) -> set[str]:
        wanted = replay_layers(rows, SPEEDUP)
        for name, layers in answers.items():
            if REPLAY in name:
                np.testing.assert_array_equal(layers, wanted, name)
        compared = {name: answer for name, answer in answers.items() if name in FULL_DEPTH}
        refused = differences(compared, REFERENCE if REFERENCE in compared else "pfengine fp32")
        self.missing |= {(name, case): why for name, why in refused.items()}
        return set(refused)

    @contextlib.contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        start = self.clock.gone()
        yield
        self.phases[name] = self.clock.gone() - start

    def _contestant(self, name: str, case: Case) -> Callable[[Sequence[Row]], Pass] | None:
        """A function from rows to a pass over them; None, and a line in `missing`, where it cannot run here."""
        if why := engines.absent(f"pfengine {precision(name)}" if name.startswith("pfengine") else name):
            self.missing[name, case] = why
        elif name.startswith("pfengine"):
            return self._pfengine(name, case)
        elif not conversions.converted(name, case.model):
            self.missing[name, case] = self._failed.get((name, case.model), NOT_CONVERTED)
        elif (peer := contestant(name, case.model)) is not None:
            return lambda rows: partial(peer.run, rows, case.batch)
        else:
            self.missing[name, case] = SKIPPED[name]
        return None

    def _pfengine(self, name: str, case: Case) -> Callable[[Sequence[Row]], Pass] | None:
        """The engine, the same one with exits on and off."""
        if OWN in name and case.model != BUNDLED:
            return None  # random weights have no thresholds
        key = case.model, precision(name)
        try:
            if key not in self._engines:
                # a criterion of its own is looked up by speed-up, where there is one
                criterion = None if case.model == BUNDLED else "never"
                self._engines[key] = pfengine.load(conversions.source(key[0]), precision=key[1], criterion=criterion)
        except pfengine.ConfigError as error:  # a precision that needs the compiled kernels
            self.missing[name, case] = engines.first_line(error)
            return None
        return partial(_pass, self._engines[key], case.batch, REPLAY if REPLAY in name else OWN if OWN in name else "")


def _pass(engine: pfengine.Engine, batch_size: int, exits: str, rows: Sequence[Row]) -> Pass:
    """One call per batch. The result is in the rows' order: logits with exits off, otherwise exit layers."""
    order = list(fixed_batches(rows, batch_size))
    layers = replay_layers(rows, SPEEDUP)
    # made beforehand, so that making lists is not timed
    batches = [[{"input_ids": rows[i]} for i in batch] for batch in order]
    options: list[dict[str, Any]] = [{"criterion": "never"} for _ in order]
    if exits == REPLAY:
        options = [{"criterion": Replay(layers[batch].tolist())} for batch in order]
    elif exits == OWN:
        options = [{"speedup": SPEEDUP} for _ in order]

    def run(laps: list[float] | None = None) -> np.ndarray:
        parts = []
        for inputs, option in zip(batches, options, strict=True):
            start = time.perf_counter()
            out = engine.predict(inputs, **option)
            if laps is not None:
                laps.append(time.perf_counter() - start)
            parts.append(out.exit_layers if exits else out.logits)
        found = np.concatenate(parts)
        ordered = np.empty_like(found)
        ordered[np.concatenate(order)] = found
        return ordered

    return run


def within(seconds: float, case: Case, runs: dict[str, Run], missing: dict[tuple[str, Case], str]) -> None:
    """Remove the slowest peers from `runs` until a warm-up and one round of the fewest rows fit into the time."""
    least = 2 * max(LEAST_ROWS, case.batch)
    peers = sorted((run.per_row, name) for name, run in runs.items() if not name.startswith("pfengine"))
    while peers and least * sum(run.per_row for run in runs.values()) > seconds:
        name = peers.pop()[1]
        del runs[name]
        missing[name, case] = TOO_SLOW


def _described(model: str) -> dict[str, Any]:
    if model != BUNDLED:
        hidden = int(model.removeprefix("random-"))
        return {"name": model, "hidden": hidden, "layers": LAYERS, "text": "random ids, as many as SST-2's"}
    ckpt = open_checkpoint()
    text = "sentences of SST-2's development set, as token ids"
    hidden, layers = (ckpt.config[key] for key in ("hidden_size", "num_hidden_layers"))
    return {"name": ckpt.path.name, "hidden": hidden, "layers": layers, "text": text}
