"""What a run found, written as it comes, so that a run that is stopped keeps what it has; and the goals."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pfengine.kernels import dependent
from pfengine.ops import cuda_graphs, cuda_whole

from ..engines import first_line
from ..report import installed_version
from .work import COMPILED, DOCS, DRY, EAGER, NESTED, OUT, ROOT, SIZES, STARTED, VARLEN, WHOLE

Record = dict[str, Any]
TABLES = ("full_depth", "replay", "kernels", "timeline", "single")
KEPT = ROOT / "docs" / "results"
NAME = "dry" if DRY else "gpu"  # times of a dry run never get where measured ones are
RUN = datetime.fromtimestamp(STARTED, UTC).strftime("%Y-%m-%d %H:%M:%S")
OUT_OF_TIME = "out of time"
NOT_ASKED = "not asked for"
UNDER_WAY = "begun and not ended"


class Results:
    """Runs, tables of records, and what was not measured: name -> why.

    A record says of which run it is and of which item. An item that is measured anew replaces its records, all of them
    at once; what is not run again keeps the figures of the run before it. So no ratio has figures of two runs in it.
    """

    def __init__(self, directory: Path = OUT, before: Record | None = None) -> None:
        self.directory, self.run = directory, RUN
        self.data: Record = {"dry": DRY, "runs": {}, "not_measured": {}}
        self.data |= {table: [] for table in TABLES}
        self.data |= before or {}
        self.data["runs"][self.run] = {
            "commit": ", ".join((commit(), *switches())), "machine": machine(), "sizes": SIZES._asdict(),
            "ceilings": None,
        }  # fmt: skip
        self._item: str | None = None
        self._pending: list[tuple[str, Record]] = []

    def expect(self, items: Mapping[str, bool]) -> None:
        """items: all that there are, and whether this run is to measure them. What has no figures is not measured."""
        there = {r["item"] for table in TABLES for r in self.data[table]}
        why = self.data["not_measured"]
        kept = {what: said for what, said in why.items() if any(what.startswith(name) for name in items)}
        late = {what: OUT_OF_TIME if asked else kept.get(what, NOT_ASKED) for what, asked in items.items()}
        self.data["not_measured"] = kept | {what: said for what, said in late.items() if what not in there}
        self.write()

    def add(self, table: str, record: Record) -> None:
        """Within `measuring`: kept once that ends well."""
        self._pending.append((table, {"run": self.run, "item": self._item, **record}))

    def ceilings(self, **values: float) -> None:
        self.data["runs"][self.run]["ceilings"] = values
        self.write()

    def miss(self, what: str, why: str) -> None:
        self.data["not_measured"][what] = why
        self.write()

    @contextlib.contextmanager
    def measuring(self, what: str) -> Iterator[None]:
        """Until it ends well, `what` is among what was not measured, and the figures before it stay."""
        why = self.data["not_measured"]
        parts = {each: why.pop(each) for each in list(why) if each.startswith(f"{what}: ")}
        self.miss(what, UNDER_WAY)
        self._item, self._pending = what, []
        try:
            yield
        except BaseException as error:  # a test's time limit, too
            why.update(parts)
            self.miss(what, OUT_OF_TIME if isinstance(error, KeyboardInterrupt) else first_line(error))
            raise
        for table in TABLES if self._pending else ():
            older = [record for record in self.data[table] if record["item"] != what]
            self.data[table] = older + [record for name, record in self._pending if name == table]
        if why[what] == UNDER_WAY:
            del why[what]
        self.write()

    def write(self, markdown: Callable[[Record], str] | None = None) -> list[Path]:
        """The JSON, and the report where its text is given; to docs/results, too, where the environment says so."""
        used = {record["run"] for table in TABLES for record in self.data[table]} | {self.run}
        self.data["runs"] = {name: run for name, run in sorted(self.data["runs"].items()) if name in used}
        measured = self.data["runs"][self.run]["ceilings"]
        places = [self.directory, *([KEPT] if DOCS and markdown and not DRY and measured else [])]
        written = []
        for place in places:
            place.mkdir(parents=True, exist_ok=True)
            files = {f"{NAME}.json": json.dumps(self.data, indent=1) + "\n"}
            if markdown is not None:
                files[f"{NAME}.md"] = markdown(self.data)
            for name, text in files.items():
                temporary = place / f".{name}.half"
                temporary.write_text(text)
                written.append(temporary.replace(place / name))
        return written


def kept(directory: Path = KEPT) -> Record | None:
    """The measurement in docs/results, or elsewhere; None where there is none."""
    path = directory / "gpu.json"
    return json.loads(path.read_text()) if path.is_file() else None


def machine() -> Record:
    found: Record = {
        "python": platform.python_version(),
        **{package: installed_version(package) for package in ("torch", "triton", "transformers")},
    }
    if torch.cuda.is_available():
        chip = torch.cuda.get_device_properties(0)
        found |= {
            "gpu": chip.name,
            "capability": f"{chip.major}.{chip.minor}",
            "multiprocessors": chip.multi_processor_count,
            "memory_bytes": chip.total_memory,
            "l2_bytes": getattr(chip, "L2_cache_size", None),
            "cuda": torch.version.cuda,
        }
    return found


def switches() -> list[str]:
    """What of the engine the environment switches on or off, as it is written there."""
    names = (cuda_graphs.SWITCH, cuda_whole.SWITCH, dependent.SWITCH)
    return [f"{name}={os.environ[name]}" for name in names if os.environ.get(name)]


def commit() -> str:
    """Of what is measured; PFENGINE_GPU_COMMIT says it where the sources are not in a repository."""
    if said := os.environ.get("PFENGINE_GPU_COMMIT"):
        return said
    try:
        return subprocess.run(
            ("git", "describe", "--always", "--dirty"), cwd=ROOT, check=True, capture_output=True, text=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


HIDDEN, BATCH = 768, 128  # of the goals, whatever a run's sizes are
NOT_MEASURED = "not measured"


class Found(NamedTuple):
    value: float
    run: str
    note: str = ""


class Goal(NamedTuple):
    what: str
    goal: str
    value: Callable[[Record], Found | None]
    met: Callable[[float], bool]
    form: str


def find(data: Record | None, table: str, **wanted: Any) -> Record | None:
    """The latest record with these values."""
    records = data[table] if data else []
    return next((r for r in reversed(records) if all(r.get(key) == value for key, value in wanted.items())), None)


def rates(data: Record, run: str) -> dict[str, float] | None:
    """The ceilings measured in that run, which its figures are held against."""
    found: dict[str, float] | None = data["runs"][run]["ceilings"]
    return found


def gemm_share(data: Record, clock: str = "device") -> Found | None:
    record = find(data, "single", what="gemm share", hidden=HIDDEN)
    ceilings = rates(data, record["run"]) if record else None
    if record is None or not ceilings:
        return None
    return Found(record[f"{clock}_flops_per_second"] / ceilings["gemm_flops_per_second"], record["run"])


def _least_faster(data: Record, table: str, names: Sequence[str], **wanted: Any) -> Found | None:
    """How much faster pfengine is than the fastest of the peers that the latest of their runs has."""
    found = [record for name in names if (record := find(data, table, contestant=name, **wanted))]
    run = max((record["run"] for record in found), default="")
    ratios = {record["contestant"]: float(record["pfengine_is_faster"]) for record in found if record["run"] == run}
    if not ratios:
        return None
    return Found(min(ratios.values()), run, "" if len(ratios) == len(names) else f" ({', '.join(ratios)} alone)")


def against(*names: str) -> Callable[[Record], Found | None]:
    cell = {"hidden": HIDDEN, "lengths": "SST-2", "batch": BATCH}
    return lambda data: _least_faster(data, "full_depth", names, **cell)


def attention(data: Record) -> Found | None:
    return _least_faster(data, "single", (VARLEN, NESTED), what="ragged attention", hidden=HIDDEN)


def number(table: str, key: str, times: float = 1.0, **wanted: Any) -> Callable[[Record], Found | None]:
    """A number of the latest record with these values."""

    def value(data: Record) -> Found | None:
        record = find(data, table, hidden=HIDDEN, **wanted)
        return Found(times * record[key], record["run"]) if record else None

    return value


def replayed(speedup: str, batch: int) -> Callable[[Record], Found | None]:
    """Where a flight may be one graph, the better way of the two."""

    def value(data: Record) -> Found | None:
        wanted = {"hidden": HIDDEN, "lengths": "SST-2", "batch": batch}
        usual, whole = (find(data, "replay", contestant=speedup + said, **wanted) for said in ("", WHOLE))
        if usual is None:
            return None
        key, note = "wall_clock_over_layer_speedup", ""
        if whole is not None and whole["run"] == usual["run"] and whole[key] > usual[key]:
            usual, note = whole, " (one graph)"
        return Found(usual[key], usual["run"], note)

    return value


def at_least(limit: float) -> Callable[[float], bool]:
    return lambda value: value >= limit


def at_most(limit: float) -> Callable[[float], bool]:
    return lambda value: value <= limit


GOALS = (
    Goal("full depth, 128 tokens, batch 256: share of the GEMM rate on the device", ">= 0.60", gemm_share,
         at_least(0.6), ".2f"),
    Goal("full depth, SST-2 lengths, batch 128: against transformers sdpa", ">= 3", against(EAGER), at_least(3), ".2f"),
    Goal("the same: against torch.compile, the faster of its two modes", ">= 1.5", against(*COMPILED), at_least(1.5),
         ".2f"),
    Goal("full depth, one row of 32 tokens, ms per call", "<= 0.35",
         number("single", "wall_seconds", 1e3, what="latency"), at_most(0.35), ".3f"),
    *(
        Goal(f"wall-clock over layer speed-up, SST-2 lengths, replay {speedup}, batch {batch}",
             f">= {limit:.2f}", replayed(speedup, batch), at_least(limit), ".2f")
        for batch, limit in ((512, 0.93), (32, 0.88), (1, 0.80))
        for speedup in ("2x", "3x")
    ),
    # against an encoder without exits: against one whose exits are not tested it is less
    Goal("exit head, share of a layer's time on the device, 128 tokens, batch 128", "<= 5%",
         number("single", "device_share_of_a_layer", what="exit head", lengths="fixed", base="no exits"),
         at_most(0.05), ".1%"),
    Goal("ragged attention, SST-2 lengths, batch 512: against the faster of torch's varlen and nested", ">= 1.5",
         attention, at_least(1.5), ".2f"),
)  # fmt: skip


def reached(goal: Goal, data: Record | None) -> tuple[str, str]:
    """As a table says it, bold where it is missed, and of which run it is."""
    found = goal.value(data) if data else None
    if found is None:
        return NOT_MEASURED, ""
    said = format(found.value, goal.form)
    return (said if goal.met(found.value) else f"**{said}**") + found.note, found.run
