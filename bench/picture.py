"""Pictures of a report: `python -m bench.picture report.json directory`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from pfengine.evaluation.pictures import new_figure, save_figure

from .engines import NAMES

Report = dict[str, Any]
STYLES = {"authors": "-", "authors, every second layer": ":", "folded": "--"}  # of the lines of heads


def draw(report: Report, directory: Path) -> list[Path]:
    """Draw all that the report has records for, as PNG and SVG. Returns the paths without suffix."""
    directory.mkdir(parents=True, exist_ok=True)
    drawn = []
    for hidden in _values(report["full_depth"] + report["latency"], "hidden"):
        drawn.append(directory / f"throughput-{hidden}")
        _draw_throughput(report, hidden, drawn[-1])
    for hidden in _values(report["replay"], "hidden"):
        replayed = [r for r in report["replay"] if r["hidden"] == hidden and r["head"] in STYLES]
        for precision in _values(replayed, "precision"):
            drawn.append(directory / f"replay-{hidden}-{precision}")
            _draw_replay([r for r in replayed if r["precision"] == precision], drawn[-1])
    return drawn


def _draw_throughput(report: Report, hidden: int, path: Path) -> None:
    """Rows per second of every contestant: one bar for a large batch, one for single rows."""
    bars: dict[str, dict[str, float]] = {}
    full_depth = [r for r in report["full_depth"] if r["hidden"] == hidden]
    if batch := _large_batch(full_depth):
        bars[f"batch {batch}" if batch.isdigit() else batch] = {
            r["contestant"]: r["rows_per_second"] for r in full_depth if r["batch_size"] == batch
        }
    if singles := {r["contestant"]: r["rows_per_second"] for r in report["latency"] if r["hidden"] == hidden}:
        bars["batch 1"] = singles
    names = [name for name in NAMES if any(name in values for values in bars.values())]
    figure, axes = new_figure(7.2, 1.2 + 0.4 * len(names))
    height = 0.8 / len(bars)
    for i, (label, values) in enumerate(bars.items()):
        shown = [(y, values[name]) for y, name in enumerate(names) if name in values]
        container = axes.barh([y + (i - (len(bars) - 1) / 2) * height for y, _ in shown], [v for _, v in shown], height)
        container.set_label(label)
        axes.bar_label(container, fmt="{:.0f}", padding=2, fontsize="x-small")
    axes.set_yticks(range(len(names)), names)
    for tick in axes.get_yticklabels():
        tick.set_fontweight("bold" if tick.get_text().startswith("pfengine") else "normal")
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set(xlabel="rows/s", title=f"12 layers, hidden size {hidden}, no exits")
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.legend(fontsize="small", loc="upper right")
    save_figure(figure, path)


def _draw_replay(records: list[dict[str, Any]], path: Path) -> None:
    """Wall-clock speed-up over layer speed-up, one line per head and batch size. On the diagonal both are equal."""
    figure, axes = new_figure()
    most = max(r["layer_speedup"] for r in records)
    axes.plot([1, most], [1, most], color="0.6", linewidth=1, label="layer speed-up")
    for i, batch in enumerate(_values(records, "batch_size")):
        for head in _values(records, "head"):
            points = sorted(
                (r["layer_speedup"], r["wall_clock_speedup"])
                for r in records
                if r["batch_size"] == batch and r["head"] == head
            )
            label = f"{f'batch {batch}' if batch.isdigit() else batch}, {head}"
            axes.plot(*zip(*points, strict=True), marker="o", color=f"C{i}", linestyle=STYLES[head], label=label)
    first = records[0]
    title = f"12 layers, hidden size {first['hidden']}, {first['precision']}"
    axes.set(xlabel="layer speed-up", ylabel="wall-clock speed-up", title=title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    save_figure(figure, path)


def _large_batch(records: list[dict[str, Any]]) -> str | None:
    """32 if it was measured, otherwise the largest, otherwise the stream."""
    sizes = _values(records, "batch_size")
    fixed = [size for size in sizes if size.isdigit()]
    return "32" if "32" in sizes else max(fixed, key=int) if fixed else next(iter(sizes), None)


def _values(records: list[dict[str, Any]], key: str) -> list[Any]:
    """The values that the records have under the key, each once, in order."""
    return list(dict.fromkeys(record[key] for record in records))


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
