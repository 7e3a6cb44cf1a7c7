"""What a run found, written as it comes, so that a run that is stopped keeps what it has; and the goals."""

from __future__ import annotations

import contextlib
import json
import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..engines import first_line
from ..report import installed_version
from .work import AUTOTUNED, COMPILED, DOCS, DRY, EAGER, NESTED, OUT, OVERHEAD, ROOT, SIZES, VARLEN

Record = dict[str, Any]
TABLES = ("full_depth", "replay", "kernels", "single")
KEPT = ROOT / "docs" / "results"
NAME = "dry" if DRY else "gpu"  # times of a dry run never get where measured ones are
OUT_OF_TIME = "out of time"
UNDER_WAY = "begun and not ended"


class Results:
    """machine, ceilings, tables of records, and what was not measured: name -> why."""

    def __init__(self, directory: Path = OUT) -> None:
        self.directory = directory
        self.data: Record = {
            "dry": DRY, "machine": machine(), "sizes": SIZES._asdict(), "ceilings": None, "not_measured": {},
        }  # fmt: skip
        self.data |= {table: [] for table in TABLES}

    def add(self, table: str, record: Record) -> None:
        self.data[table].append(record)
        self.write()

    def ceilings(self, **values: float) -> None:
        self.data["ceilings"] = values
        self.write()

    def miss(self, what: str, why: str) -> None:
        self.data["not_measured"][what] = why
        self.write()

    @contextlib.contextmanager
    def measuring(self, what: str) -> Iterator[None]:
        """Until it ends well, `what` is among what was not measured."""
        self.miss(what, UNDER_WAY)
        try:
            yield
        except KeyboardInterrupt:
            self.miss(what, OUT_OF_TIME)
            raise
        except BaseException as error:  # a test's time limit, too
            self.miss(what, first_line(error))
            raise
        if self.data["not_measured"][what] == UNDER_WAY:
            del self.data["not_measured"][what]
            self.write()

    def write(self, markdown: Callable[[Record], str] | None = None) -> list[Path]:
        """The JSON, and the report where its text is given; to docs/results, too, where the environment says so."""
        places = [self.directory, *([KEPT] if DOCS and markdown and not DRY and self.data["ceilings"] else [])]
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


HIDDEN, BATCH = 768, 128  # of the goals, whatever a run's sizes are
NOT_MEASURED = "not measured"


class Goal(NamedTuple):
    what: str
    goal: str
    value: Callable[[Record], float | None]
    met: Callable[[float], bool]
    form: str


def find(data: Record | None, table: str, **wanted: Any) -> Record | None:
    """The latest record with these values."""
    records = data[table] if data else []
    return next((r for r in reversed(records) if all(r.get(key) == value for key, value in wanted.items())), None)


def gemm_share(data: Record, clock: str = "wall") -> float | None:
    record, ceilings = find(data, "single", what="gemm share", hidden=HIDDEN), data["ceilings"]
    if record is None or not ceilings:
        return None
    return float(record[f"{clock}_flops_per_second"] / ceilings["gemm_flops_per_second"])


def against(*names: str) -> Callable[[Record], float | None]:
    """How much faster pfengine is than the fastest of these peers."""

    def value(data: Record) -> float | None:
        cell = {"hidden": HIDDEN, "lengths": "SST-2", "batch": BATCH}
        found = [find(data, "full_depth", contestant=name, **cell) for name in names]
        ratios = [float(record["pfengine_is_faster"]) for record in found if record]
        return min(ratios) if ratios else None

    return value


def replayed(speedup: str, batch: int) -> Callable[[Record], float | None]:
    def value(data: Record) -> float | None:
        record = find(data, "replay", hidden=HIDDEN, lengths="SST-2", batch=batch, contestant=speedup)
        return float(record["wall_clock_over_layer_speedup"]) if record else None

    return value


def milliseconds(data: Record) -> float | None:
    record = find(data, "single", what="latency", hidden=HIDDEN)
    return 1e3 * float(record["wall_seconds"]) if record else None


def head(data: Record) -> float | None:
    """Against an encoder without exits: against one whose exits are not tested it is less."""
    record = find(data, "single", what="exit head", hidden=HIDDEN, base="no exits")
    return float(record["device_share_of_a_layer"]) if record else None


def attention(data: Record) -> float | None:
    wanted = {"what": "ragged attention", "hidden": HIDDEN}
    found = [find(data, "single", contestant=name, **wanted) for name in (VARLEN, NESTED)]
    ratios = [float(record["pfengine_is_faster"]) for record in found if record]
    return min(ratios) if ratios else None


def at_least(limit: float) -> Callable[[float], bool]:
    return lambda value: value >= limit


def at_most(limit: float) -> Callable[[float], bool]:
    return lambda value: value <= limit


GOALS = (
    Goal("full depth, hidden 768, 128 tokens, batch 256: share of the GEMM rate", ">= 0.60", gemm_share,
         at_least(0.6), ".2f"),
    Goal("full depth, hidden 768, SST-2 lengths, batch 128: against transformers sdpa", ">= 3", against(EAGER),
         at_least(3), ".2f"),
    Goal("the same: against torch.compile, the faster of its two modes", ">= 1.5", against(*COMPILED), at_least(1.5),
         ".2f"),
    Goal("full depth, hidden 768, one row of 32 tokens, ms a call", "<= 0.35", milliseconds, at_most(0.35), ".3f"),
    *(
        Goal(f"wall-clock over layer speed-up, hidden 768, SST-2 lengths, replay {speedup}, batch {batch}",
             f">= {limit:.2f}", replayed(speedup, batch), at_least(limit), ".2f")
        for batch, limit in ((512, 0.93), (32, 0.88), (1, 0.80))
        for speedup in ("2x", "3x")
    ),
    Goal("exit head, share of a layer's time, hidden 768, batch 128", "<= 5%", head, at_most(0.05), ".1%"),
    Goal("ragged attention, SST-2 lengths, batch 512, against the faster of torch's varlen and nested", ">= 1.5",
         attention, at_least(1.5), ".2f"),
)  # fmt: skip


def reached(goal: Goal, data: Record | None) -> str:
    """As a table says it; bold where it is missed."""
    value = goal.value(data) if data else None
    if value is None:
        return NOT_MEASURED
    said = format(value, goal.form)
    note = _missing_peer(goal, data)
    return (said if goal.met(value) else f"**{said}**") + note


def _missing_peer(goal: Goal, data: Record | None) -> str:
    """One mode of torch.compile is less than two."""
    if "torch.compile" not in goal.what:
        return ""
    there = [name for name in (OVERHEAD, AUTOTUNED) if against(name)(data or {}) is not None]
    return "" if len(there) == 2 else f" ({there[0].split()[-1]} alone)"
