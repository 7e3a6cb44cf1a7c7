"""What the overview found: one table, one JSON file, one picture."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pfengine.evaluation import describe_machine

from .knobs import JSON
from .overview import BATCHES, COMPILED, LEFT_TO_FULL, MODELS, NAMES, Overview
from .report import versions
from .tables import write_columns

DEFAULT = Path(__file__).parent.parent / "build" / "bench" / "overview.json"
HEADINGS = (
    "model", "contestant", "layer speed-up", "one row: p50 ms", "p99 ms", "rows/s", "speed-up",
    "batch 32: ms", "rows/s", "speed-up",
)  # fmt: skip
EXPLAINED = """\
Rows/s and ms per call are medians of interleaved rounds; p50 and p99 are of single calls. Speed-up: wall clock, over
pfengine in the same precision with exits off, on the same rows in the same round. Layer speed-up: of layers alone."""


def as_json(overview: Overview) -> dict[str, Any]:
    return {
        "machine": describe_machine(),
        "versions": versions(),
        "models": overview.models,
        "records": overview.records,
        "missing": [
            {"contestant": name, "model": case.model, "batch": case.batch, "why": why}
            for (name, case), why in overview.missing.items()
        ],
        "phases": overview.phases,
        "seconds": overview.clock.gone(),
    }


def write(overview: Overview, line: Callable[[str], None]) -> None:
    report = as_json(overview)
    line("")
    for text in _header(report):
        line(text)
    write_columns(HEADINGS, list(_rows(report)), "<<" + (len(HEADINGS) - 2) * ">", line)
    for text in EXPLAINED.splitlines():
        line(text)
    path = Path(JSON) if JSON else DEFAULT
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n")
    line(f"numbers: {path}")
    line(f"picture: {draw(report, path.with_suffix('.png')) or 'none, matplotlib is not installed'}")
    line(f"{report['seconds']:.0f} s in all")


def _header(report: dict[str, Any]) -> Iterator[str]:
    machine = report["machine"]
    yield (
        f"{machine['threads']} threads of {machine['processor']} ({machine['instruction_set']}), torch "
        f"{machine['torch']}, " + ", ".join(f"{name} {found}" for name, found in report["versions"].items() if found)
    )
    for model, found in report["models"].items():
        records = [record for record in report["records"] if record["model"] == model]
        by_batch = {record["batch"]: record for record in records}
        sizes = "; ".join(
            f"{'one row a call' if batch == 1 else f'batch {batch}'}: {record['rows']} rows of "
            f"{record['tokens']['least']} to {record['tokens']['most']} tokens, {record['tokens']['mean']:.0f} on "
            f"average, {record['rounds']} rounds"
            for batch, record in by_batch.items()
        )
        yield f"{found['name']}: {found['layers']} layers, hidden size {found['hidden']}; {found['text']}; {sizes}"


def _rows(report: dict[str, Any]) -> Iterator[list[str]]:
    for model in MODELS:
        name = report["models"].get(model, {}).get("name", model)
        here = [record for record in report["records"] if record["model"] == model]
        for contestant in (*NAMES, COMPILED):
            found = {record["batch"]: record for record in here if record["contestant"] == contestant}
            why = [
                one["why"] for one in report["missing"] if (one["model"], one["contestant"]) == (model, contestant)
            ] or [LEFT_TO_FULL] * (contestant == COMPILED)
            if found:
                # one row and batch 32 may have had different rows
                layers = dict.fromkeys(f"{found[batch]['layer_speedup']:.2f}" for batch in BATCHES if batch in found)
                cells = [name, contestant, " / ".join(layers)]
                for batch in BATCHES:
                    cells += _cells(found.get(batch), batch)
                yield cells
            elif why:
                yield [name, contestant, f"- {why[0]}"]


def _cells(record: dict[str, Any] | None, batch: int) -> list[str]:
    if record is None:
        return ["-"] * (4 if batch == 1 else 3)
    milliseconds = [f"{record['p50_ms']:.2f}", *([f"{record['p99_ms']:.2f}"] if batch == 1 else [])]
    speedup = record["wall_clock_speedup"]
    return [*milliseconds, f"{record['rows_per_second']:.0f}", "-" if speedup is None else f"{speedup:.2f}"]


def _clock(record: dict[str, Any]) -> str:
    speedup = record["wall_clock_speedup"]
    return "clock not measured" if speedup is None else f"clock {speedup:.2f}x"


def draw(report: dict[str, Any], path: Path) -> Path | None:
    """Rows per second of every contestant, one panel per model and batch size; None without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    cases = list(dict.fromkeys((record["model"], record["batch"]) for record in report["records"]))
    if not cases:
        return None
    columns = min(2, len(cases))
    figure = Figure(figsize=(6.5 * columns, 4.5 * -(-len(cases) // columns)), layout="constrained")
    for i, (model, batch) in enumerate(cases):
        axes = figure.add_subplot(-(-len(cases) // columns), columns, i + 1)
        records = [record for record in report["records"] if (record["model"], record["batch"]) == (model, batch)]
        names = [record["contestant"] for record in records]
        colours = ["C0" if name.startswith("pfengine") else "0.6" for name in names]
        bars = axes.barh(range(len(names)), [record["rows_per_second"] for record in records], color=colours)
        labels = [
            f"{record['rows_per_second']:.0f}"
            + (f" (layers {record['layer_speedup']:.2f}x, {_clock(record)})" if record["layer_speedup"] > 1 else "")
            for record in records
        ]
        axes.bar_label(bars, labels, padding=2, fontsize="x-small")
        axes.set_yticks(range(len(names)), names, fontsize="small")
        axes.invert_yaxis()
        axes.margins(x=0.35)
        found = report["models"][model]
        rows = "one row per call" if batch == 1 else f"batch {batch}"
        axes.set(xlabel="rows/s", title=f"{found['name']}, hidden size {found['hidden']}, {rows}")
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
    machine = report["machine"]
    figure.suptitle(f"{machine['threads']} threads of {machine['processor']}", fontsize="medium")
    figure.savefig(path, dpi=110)
    return path
