"""The core beside an earlier version of itself, and its criteria beside each other; ratios within one run.

    python -m bench.core FOLDER

FOLDER holds a `pfengine` package, its extension built: an installation or a checkout of another version. Both versions
run in a process each, which this one asks in turn for one pass; ratios are medians over rounds, round by round.
Writes OUT.json and OUT.md, docs/results/core by default. Takes about a quarter of an hour, on a machine that does
nothing else.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .models import (
    LAYERS,
    PAST_FUTURE,
    encoder_shapes,
    kept,
    past_future_shapes,
    random_checkpoint,
    random_tagger,
    random_tensors,
    write,
)
from .rows import Row, fixed_batches, make_rows, replay_layers

PRECISION = "int8"
ROWS = {"one row": 96, "batch 32": 96, "stream": 384}
BATCH_SIZES: dict[str, int | None] = {"one row": 1, "batch 32": 32, "stream": None}
SPEEDUP = 2.0
PAUSE = 0.01  # seconds between passes: a process that has just computed keeps its threads awake for 2 ms

LEAVES_AT = 6  # every row of the checkpoint of `forced`, by each criterion below


class Case(NamedTuple):
    """A criterion at two thresholds: every row leaves after layer LEAVES_AT, or none, though every exit is tested."""

    name: str
    leaves: Any
    stays: Any


# Of the answers of `forced`: after layer i their logits are 0.2 i and -0.2 i, so that the label is always the first.
# Their entropy is 0.45 (i = 4), 0.37 (5), 0.29 (6), over ln 2 0.53 (5), 0.41 (6); their largest probability, that of
# label 0, 0.60 (1), 0.88 (5), 0.92 (6), 0.99 (11), its sum up to there 3.8 (5), 4.7 (6); the two probabilities are 0.76
# (5), 0.83 (6) apart; the energy is -1.13 (5), -1.29 (6), -2.21 (11). A new criterion that is data gets a line here.
ENTROPY = Case("entropy", "entropy:0.32", "entropy:0")
RULES = (
    Case("normalised-entropy", "normalised-entropy:0.47", "normalised-entropy:0"),
    Case("fastbert", "fastbert:0.47", "fastbert:0"),
    Case("confidence", "confidence:0.9", "confidence:1"),
    Case("cascadebert", "cascadebert:0.9", "cascadebert:1"),
    Case("margin", "margin:0.8", "margin:1"),
    Case("energy", "energy:-1.2", "energy:-3"),
    Case("patience", f"patience:{LEAVES_AT - 1}", f"patience:{LAYERS}"),
    # by their windows, which are full after layer LEAVES_AT and hold 0.60 to 0.92; no entropy is below 0
    Case("elbert", f"elbert:0,{LEAVES_AT},0", f"elbert:0,{LEAVES_AT},0.5"),
    Case("elbert-trend", f"elbert-trend:0,{LEAVES_AT},0", f"elbert-trend:0,{LEAVES_AT},0.5"),
    Case("elbert-range", f"elbert-range:0,{LEAVES_AT},0.4", f"elbert-range:0,{LEAVES_AT},0"),
    # after layer i there are i votes for the first label: over i^0.5 2.24 (5), 2.45 (6), 3.32 (11)
    Case("voting", "voting:2.3", "voting:4"),
    Case("pcee", "pcee:0.4", "pcee:0"),
    Case("beem", "beem:4.2", f"beem:{LAYERS}"),
)
CALLABLE = Case("Python callable", {"callable": 0.9}, {"callable": 1.0})

TOKEN_ROWS, TOKENS_PER_ROW, TOKENS_LEAVE_AT = 8, 64, 4

RATE_GOAL = 0.98
TOKENS_GOALS = {768: 1.28}  # by hidden size
RULE_GOALS = {"one row": 1.03, "batch 32": 1.02}
CALLABLE_GOALS = {"one row": 1.20, "batch 32": 1.05}
CALLABLE_GOAL_SMALL = 1.40  # one row, below a hidden size of 768
IMPORT_GOAL = 0.3  # seconds
IMPORTING = """\
import time, torch
start = time.perf_counter()
import pfengine
pfengine.load
print(time.perf_counter() - start)
"""


class Side:
    """A version of pfengine in a process of its own."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        if not (folder / "pfengine" / "__init__.py").is_file():
            raise SystemExit(f"{folder} holds no pfengine; give the folder that the package lies in")
        server = Path(__file__).with_name("core_server.py")
        self.process = subprocess.Popen(
            [sys.executable, "-P", server],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=self.environment(),
            text=True,
        )

    def environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(self.folder), "PYTHONSAFEPATH": "1"}

    def ask(self, do: str, **arguments: Any) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"the process of the {self.name} version ended at {do!r}; its error is above")
        return json.loads(answer)

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


class Pass(NamedTuple):
    """One of those that are interleaved."""

    side: Side
    run: str


class Settings(NamedTuple):
    hidden: tuple[int, ...]
    rounds: int
    seconds: float  # of a pass, at least: shorter ones are timed several in a row
    cache: Path


def interleaved(passes: Sequence[Pass], settings: Settings) -> list[list[float]]:
    """Seconds of every pass, [passes, rounds]; the order turns round from round to round, so that drift meets all."""
    longest = max(one.side.ask("time", run=one.run, times=1) for one in passes)
    times = max(1, math.ceil(settings.seconds / longest))
    found: list[list[float]] = [[] for _ in passes]
    for turn in range(settings.rounds):
        for i, one in list(enumerate(passes))[:: -1 if turn % 2 else 1]:
            time.sleep(PAUSE)
            found[i].append(one.side.ask("time", run=one.run, times=times))
    return found


def ratio(over: Sequence[float], under: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


def batches_of(rows: Sequence[Row], kind: str) -> list[list[int]]:
    size = BATCH_SIZES[kind]
    return [list(range(len(rows)))] if size is None else list(fixed_batches(rows, size))


def forced(directory: Path, hidden: int) -> Path:
    """Random weights but for the head's last step, in which biases decide: all rows have the same logits at an exit.

    The gate is open to the past, 2 sum_{j <= i} b_j with b_j = (0.1, -0.1): margin 0.4 i after layer i.
    """

    def make(stage: Path) -> None:
        tensors = random_tensors(encoder_shapes(hidden), seed=0) | random_tensors(past_future_shapes(hidden), seed=1)
        tensors["exit_head.projections.weight"] *= 1e-3
        tensors["exit_head.projections.bias"][:, :2] = torch.tensor([0.1, -0.1])
        tensors["exit_head.gate.weight"] *= 0
        tensors["exit_head.gate.bias"] += 12
        manifest = {
            "format_version": 1, "system": "past-future", "head": PAST_FUTURE, "criterion": "entropy",
            "exit_layers": list(range(1, LAYERS + 1)),
        }  # fmt: skip
        write(stage, hidden, manifest, tensors)

    return kept(directory / f"forced-{hidden}", make)


def rates(new: Side, old: Side, settings: Settings) -> Iterator[dict[str, Any]]:
    """Full depth and replayed exits: rows per second of the new version over the old one's."""
    for hidden in settings.hidden:
        path = str(random_checkpoint(settings.cache, hidden, "authors"))
        for side in (new, old):
            side.ask("load", name="authors", path=path, precision=PRECISION)
        for kind, count in ROWS.items():
            rows = make_rows(count)
            layers = replay_layers(rows, SPEEDUP).tolist()
            criteria = {"full depth": "never", f"replay {SPEEDUP:g}x": {"replay": layers}}
            for what, criterion in criteria.items():
                arguments = {"rows": rows, "batches": batches_of(rows, kind), "criterion": criterion}
                answers = [side.ask("prepare", run="rate", engine="authors", **arguments) for side in (new, old)]
                if answers[0]["exit_layers"] != answers[1]["exit_layers"]:
                    raise SystemExit(f"{what}, {kind}, hidden size {hidden}: the versions leave at different layers")
                seconds = interleaved([Pass(new, "rate"), Pass(old, "rate")], settings)
                yield {
                    "what": what, "rows": kind, "hidden": hidden, "ratio": ratio(seconds[1], seconds[0]),
                    "goal": RATE_GOAL, "same_bits": answers[0]["logits"] == answers[1]["logits"],
                    **{
                        f"{side.name}_rows_per_second": count / statistics.median(found)
                        for side, found in zip((new, old), seconds, strict=True)
                    },
                }  # fmt: skip


def beside(base: Pass, others: Sequence[Pass]) -> list[Pass]:
    """All of them in an order in which each of the others is next to a pass of the base."""
    return [one for i in range(0, len(others), 2) for one in (others[i], base, *others[i + 1 : i + 2])]


def over_base(base: Pass, passes: Sequence[Pass], seconds: Sequence[Sequence[float]]) -> dict[Pass, float]:
    """Of all others the time over that of the base, of the pass next to them."""
    at = [i for i, one in enumerate(passes) if one == base]
    return {
        one: ratio(seconds[i], seconds[min(at, key=lambda j: abs(j - i))])
        for i, one in enumerate(passes)
        if one != base
    }


def rules(new: Side, old: Side, settings: Settings) -> Iterator[dict[str, Any]]:
    """Time with each criterion over that with entropy, every row leaving after the same layer, in both versions."""
    for hidden in settings.hidden:
        path = str(forced(settings.cache, hidden))
        for side in (new, old):
            side.ask("load", name="forced", path=path, precision=PRECISION)
        for kind in ("one row", "batch 32"):
            rows = make_rows(ROWS[kind])
            for form, layer in (("leaves", LEAVES_AT), ("stays", LAYERS)):
                known: dict[str, list[Pass]] = {new.name: [], old.name: []}
                for rule in (ENTROPY, *RULES, CALLABLE):
                    for side in (new, old):
                        answer = side.ask(
                            "prepare", run=rule.name, engine="forced", rows=rows, batches=batches_of(rows, kind),
                            criterion=getattr(rule, form),
                        )  # fmt: skip
                        if "error" in answer and side is old:
                            continue  # it came later
                        if set(answer.get("exit_layers", ())) != {layer}:
                            said = answer.get("error", "rows leave after other layers")
                            raise SystemExit(f"{rule.name} in the {side.name} version, not all after {layer}: {said}")
                        known[side.name].append(Pass(side, rule.name))
                orders = {name: beside(base, others) for name, (base, *others) in known.items()}
                seconds = iter(interleaved([one for order in orders.values() for one in order], settings))
                ratios: dict[Pass, float] = {}
                for name, order in orders.items():
                    ratios |= over_base(known[name][0], order, [next(seconds) for _ in order])
                for rule in (*RULES, CALLABLE):
                    goal = RULE_GOALS[kind] if rule is not CALLABLE else CALLABLE_GOALS[kind]
                    if rule is CALLABLE and kind == "one row" and hidden < 768:
                        goal = CALLABLE_GOAL_SMALL
                    record = {
                        "what": rule.name, "data": rule is not CALLABLE, "exit": layer, "rows": kind, "hidden": hidden,
                        "goal": goal,
                    }  # fmt: skip
                    for side in (new, old):
                        record[side.name] = ratios.get(Pass(side, rule.name))
                    yield record


def tokens(new: Side, settings: Settings) -> Iterator[dict[str, Any]]:
    """How much faster a batch through a tag head is when half of all tokens leave after layer TOKENS_LEAVE_AT.

    Those tokens stay as keys and values. Both passes compute the scores of that exit.
    """
    for hidden in settings.hidden:
        new.ask("load", name="tagger", path=str(random_tagger(settings.cache, hidden)), precision=PRECISION)
        rows = [[2 + (r * TOKENS_PER_ROW + i) % 7000 for i in range(TOKENS_PER_ROW)] for r in range(TOKEN_ROWS)]
        for name, every in (("nobody", None), ("half", 2)):
            answer = new.ask("prepare_tokens", run=name, engine="tagger", rows=rows, after=TOKENS_LEAVE_AT, every=every)
            if answer["left"] != (0 if every is None else TOKEN_ROWS * TOKENS_PER_ROW // every):
                raise SystemExit(f"{answer['left']} tokens left early; expected {name}")
        nobody, half = interleaved([Pass(new, "nobody"), Pass(new, "half")], settings)
        yield {
            "hidden": hidden, "rows": TOKEN_ROWS, "tokens_per_row": TOKENS_PER_ROW, "after": TOKENS_LEAVE_AT,
            "ms_nobody": 1e3 * statistics.median(nobody), "ms_half": 1e3 * statistics.median(half),
            "speedup": ratio(nobody, half), "goal": TOKENS_GOALS.get(hidden),
        }  # fmt: skip


def imports(new: Side, old: Side, rounds: int) -> dict[str, Any]:
    """Seconds that importing pfengine and what `load` needs takes once torch is there, each in a fresh process."""
    found: dict[str, list[float]] = {new.name: [], old.name: []}
    for turn in range(rounds + 1):
        for side in (new, old):
            command = [sys.executable, "-P", "-c", IMPORTING]
            result = subprocess.run(command, env=side.environment(), check=True, capture_output=True, text=True)
            if turn:  # the first one compiles to bytecode
                found[side.name].append(float(result.stdout))
    return {"goal": IMPORT_GOAL, **{name: statistics.median(seconds) for name, seconds in found.items()}}


def measure(old: Side, new: Side, settings: Settings, parts: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {"precision": PRECISION, "rounds": settings.rounds, "threads": new.ask("threads")}
    sources = {
        "rates": lambda: rates(new, old, settings),
        "rules": lambda: rules(new, old, settings),
        "tokens": lambda: tokens(new, settings),
    }
    for part, records in sources.items():
        if part in parts:
            found[part] = []
            for record in records():
                found[part].append(record)
                print(json.dumps(record), file=sys.stderr, flush=True)
    if "import" in parts:
        found["import"] = imports(new, old, settings.rounds)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    spec = importlib.util.find_spec("pfengine")
    assert spec is not None, "pfengine is not installed"
    assert spec.origin is not None
    parser = argparse.ArgumentParser(prog="python -m bench.core", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("old", type=Path, help="folder that holds the pfengine package of the earlier version")
    parser.add_argument("--old-name", help="what to call it; default: the commit that is checked out there")
    parser.add_argument("--new", type=Path, default=Path(spec.origin).parent.parent, help="default: this version")
    parser.add_argument("--out", type=Path, default=Path("docs/results/core"), help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--hidden", type=int, nargs="+", default=[384, 768], help="hidden sizes")
    parser.add_argument("--seconds", type=float, default=0.25, help="that a pass takes at least; default: %(default)s")
    parser.add_argument("--parts", default="rates,rules,tokens,import", help="of the table; default: %(default)s")
    parser.add_argument("--cache", type=Path, default=Path("~/.cache/pfengine-bench").expanduser())
    given = parser.parse_args(arguments)
    from . import core_report

    settings = Settings(tuple(given.hidden), given.rounds, given.seconds, given.cache)
    new, old = Side("new", given.new.resolve()), Side("old", given.old.resolve())
    try:
        found = measure(old, new, settings, given.parts.split(","))
    finally:
        new.close()
        old.close()
    found["old_version"] = given.old_name or core_report.commit(given.old)
    core_report.write(found, given.out)


if __name__ == "__main__":
    main()
