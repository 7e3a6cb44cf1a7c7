"""Rows in, results out: what the command line reads and prints."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rich.console import Console
from rich.table import Table

from . import data
from .errors import ConfigError

if TYPE_CHECKING:
    from .demo import Outcome
    from .evaluation import Calibration, Report

T = TypeVar("T")


def open_rows(
    file: Path | None, kind: str, text: str | None = None, pair: str | None = None, label: str | None = None
) -> contextlib.AbstractContextManager[Iterable[Any]]:
    """Rows of a file, or of standard input, as they are asked for; see `data.stream`."""
    rows = data.stream(data.STDIN if file is None else file, kind, text=text, pair=pair, label=label)
    return contextlib.closing(rows)


def read_names(text: str) -> tuple[str, ...]:
    """Names with commas between; without a comma, which is no set of labels, a file with one name a line."""
    if "," in text:
        return tuple(name.strip() for name in text.split(","))
    if not Path(text).exists() or Path(text).is_dir():
        raise ConfigError(f"--labels is {text!r}; give names with commas between, or a file with one name a line")
    return tuple(example.text.strip() for example in data.read(text, kind="text"))


def progress(items: Iterable[T], total: int | None, what: str, quiet: bool = False) -> Iterator[T]:
    """Pass items on, with a bar on a terminal and a plain line every ten seconds elsewhere, both on stderr."""
    if quiet:
        yield from items
        return
    if sys.stderr.isatty():
        from rich.progress import track

        yield from track(items, description=what, total=total, console=Console(stderr=True), transient=True)
        return
    last = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        if time.monotonic() - last > 10:
            last = time.monotonic()
            print(f"{what}: {done}" + (f" of {total}" if total else ""), file=sys.stderr)


def print_result(row: Any, result: Any, as_json: bool) -> None:
    """One row's answer as a JSON line, or as a line of a table: label, score, exit layer, text."""
    if as_json:
        print(json.dumps(result))
        return
    if isinstance(result, dict) and "error" in result:
        print(f"row {result['row']}: {result['error']}")
        return
    best = result if isinstance(result, list) else [result]
    labels = "  ".join(f"{answer['label']} {answer['score']:.4f}" for answer in best)
    text = row if isinstance(row, str) else " | ".join(row) if isinstance(row, tuple) else json.dumps(row)
    line = f"{labels}  layer {best[0]['exit_layer']:>2}  {text}"
    print(line.encode("utf-8", "replace").decode())


def _console() -> Console:
    """As wide as the terminal; elsewhere wide enough that no cell is broken."""
    return Console() if sys.stdout.isatty() else Console(width=200)


def print_report(report: Report) -> None:
    from .evaluation.machine import name_machine

    console = _console()
    console.print(
        f"{report.checkpoint} on {report.data}: {report.rows} rows of {report.mean_tokens:.1f} tokens on average, "
        f"{report.precision}, {name_machine(report.machine)}; "
        f"medians of {report.repeats} interleaved runs",
        highlight=False,
    )
    several = len({s.checkpoint for s in report.settings}) > 1
    metrics = report.settings[0].metrics
    table = Table("setting", "threshold", *(f"{name} %" for name in metrics), "+-", "layer speed-up",
                  "wall-clock speed-up", "rows/s")  # fmt: skip
    for s in report.settings:
        table.add_row(
            f"{Path(s.checkpoint).name}, {s.name}" if several else s.name,
            "" if s.threshold is None else f"{s.threshold:.4f}", *(f"{100 * v:.1f}" for v in s.metrics.values()),
            f"{100 * s.standard_error:.1f}", f"{s.layer_speedup:.2f}", f"{s.wall_clock_speedup:.2f}",
            f"{report.rows / s.seconds:.0f}",
        )  # fmt: skip
    console.print(table)
    early = [s for s in report.settings if s.checkpoint == report.checkpoint][1:]
    histogram = Table("exit layer", *(s.name for s in early))
    for layer in sorted({layer for s in early for layer in s.exit_layers}):
        shares = [s.exit_layers.get(layer, 0) / report.rows for s in early]
        histogram.add_row(str(layer), *(f"{100 * share:4.1f}% {'█' * round(20 * share)}" for share in shares))
    if early:
        console.print(histogram)


def print_calibration(outcome: Calibration) -> None:
    console = _console()
    table = Table("layer speed-up", "threshold", "agreement %", "accuracy %")
    for point in outcome.table:
        table.add_row(
            f"{point['layer_speedup']:.2f}", f"{point['threshold']:.4f}", f"{100 * point['agreement']:.1f}",
            f"{100 * point['accuracy']:.1f}" if "accuracy" in point else "",
        )  # fmt: skip
    console.print(
        f"{outcome.checkpoint}: {outcome.criterion} on {outcome.rows} rows of {outcome.data}", highlight=False
    )
    console.print(table)
    if outcome.layers is not None:
        chosen, every = outcome.layers.chosen, outcome.layers.every
        choice = Table("exits tested", "agreement %", "layer speed-up", "predicted us/row", "measured us/row")
        for name, part, measured in (
            (", ".join(map(str, every.exit_layers)), every, outcome.layers.measured_every),
            (", ".join(map(str, chosen.exit_layers)), chosen, outcome.layers.measured_seconds),
        ):
            choice.add_row(
                name, f"{100 * part.agreement:.1f}", f"{part.layer_speedup:.2f}", f"{1e6 * part.seconds:.0f}",
                f"{1e6 * measured:.0f}",
            )  # fmt: skip
        console.print(choice)
        console.print(f"full depth: {1e6 * outcome.layers.measured_full_depth:.0f} us/row measured", highlight=False)
    if (promise := outcome.guarantee) is not None:
        what = "answered as at full depth" if promise.promise == "agreement" else "not made wrong by an early exit"
        console.print(
            f"with confidence {promise.confidence:g} at least {1 - promise.limit:.4g} of rows are {what}: threshold "
            f"{promise.threshold:.4f}, layer speed-up {promise.layer_speedup:.2f} on these rows "
            f"({promise.faults} of {promise.rows} at fault, p = {promise.p_value:.3g})",
            highlight=False,
        )
    console.print(f"threshold now: {outcome.threshold}", highlight=False)


def print_facts(facts: dict[str, Any]) -> None:
    for key, value in facts.items():
        if key == "calibration" and value:
            print("calibration:")
            for point in value:
                print("  " + ", ".join(f"{name} {number:.4g}" for name, number in point.items()))
        elif isinstance(value, dict):
            print(f"{key}: " + ", ".join(f"{name} {item}" for name, item in value.items()))
        else:
            print(f"{key}: {', '.join(map(str, value)) if isinstance(value, list) else value}")


def print_demo(outcome: Outcome) -> None:
    console = _console()
    table = Table("label", "score", "exit layer", "sentence")
    for answer in outcome.answers:
        table.add_row(
            answer["label"], f"{answer['score']:.3f}", f"{answer['exit_layer']}/{outcome.num_layers}", answer["text"]
        )
    console.print(table)
    console.print(
        f"layer speed-up {outcome.layer_speedup:.2f}, wall-clock speed-up {outcome.wall_clock_speedup:.2f} against "
        f"full depth ({1000 * outcome.seconds_full:.1f} ms -> {1000 * outcome.seconds:.1f} ms for "
        f"{len(outcome.answers)} sentences in one batch; medians of {outcome.repeats} interleaved runs, "
        f"{outcome.precision}, {outcome.threads} threads)",
        highlight=False,
    )
