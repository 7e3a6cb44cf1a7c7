"""Output of the command line: JSON, lines and tables."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from . import extension
from .cascade_reader import CascadeCheckpoint
from .checkpoint import Checkpoint
from .console import printable, show, write, writing
from .manifest import Manifest
from .strict_json import dumps

if TYPE_CHECKING:
    from .api import Engine
    from .demo import Outcome
    from .evaluation import Calibration, RankingCalibration, Report
    from .evaluation.tuned import Tuned


def print_result(row: Any, result: Any, as_json: bool) -> None:
    """Print the answer of a row as a line of JSON or text: label, score, exit layer, text."""
    if as_json:
        print_json(result)
        return
    if isinstance(result, dict) and "error" in result:
        show(f"row {result['row']}: {result['error']}")
        return
    best = result if isinstance(result, list) else [result]
    labels = "  ".join(f"{answer['label']} {answer['score']:.4f}" for answer in best)
    text = row if isinstance(row, str) else " | ".join(row) if isinstance(row, tuple) else dumps(row)
    show(f"{labels}  layer {best[0]['exit_layer']:>2}  {text}")


def print_json(value: Any) -> None:
    write(dumps(value))


def _console() -> Console:
    """As wide as the terminal; elsewhere as wide as a table needs. Cells are text, not markup."""
    return Console(width=None if sys.stdout.isatty() else 100_000, markup=False, emoji=False, highlight=False)


def print_table(table: Table) -> None:
    with writing():
        _console().print(table)


def print_report(report: Report) -> None:
    from .evaluation.machine import name_machine
    from .evaluation.report import exit_table, remarks

    show(
        f"{report.checkpoint} on {report.data}: {report.rows} rows of {report.mean_tokens:.1f} tokens on average, "
        f"{report.precision}, {name_machine(report.machine)}; "
        f"medians of {report.repeats} interleaved runs"
    )
    several = len({s.checkpoint for s in report.settings}) > 1
    metrics = report.settings[0].metrics
    table = Table("setting", "threshold", *(f"{name} %" for name in metrics), "+-",
                  *report.speedup_columns, "wall-clock speed-up", "rows/s")  # fmt: skip
    for s in report.settings:
        table.add_row(
            printable(f"{Path(s.checkpoint).name}, {s.name}" if several else s.name),
            "" if s.threshold is None else f"{s.threshold:.4f}", *(f"{100 * v:.1f}" for v in s.metrics.values()),
            f"{100 * s.standard_error:.1f}", *report.speedups(s), f"{s.wall_clock_speedup:.2f}",
            f"{report.rows / s.seconds:.0f}",
        )  # fmt: skip
    print_table(table)
    early = [s for s in report.settings if s.checkpoint == report.checkpoint][1:]
    histogram = Table("exit layer", *(s.name for s in early))
    bar = "#" if _console().options.ascii_only else "█"
    for layer in sorted({layer for s in early for layer in s.exit_layers}):
        shares = [s.exit_layers.get(layer, 0) / sum(s.exit_layers.values()) for s in early]
        histogram.add_row(str(layer), *(f"{100 * share:4.1f}% {bar * round(20 * share)}" for share in shares))
    if early:
        print_table(histogram)
    for curve in report.curves:
        columns, cells = exit_table(curve.exits)
        show(f"each exit of {printable(Path(curve.checkpoint).name)} judged by itself:")
        exits = Table(*columns)
        for row in cells:
            exits.add_row(*row)
        print_table(exits)
        for sentence in remarks(curve):
            show(sentence)


def print_tuned(made: Tuned) -> None:
    promise = made.guarantee
    scored = [name for name in ("accuracy",) if name in made.contestants[0]]
    table = Table("model", "rows/s", "p50 of one row, ms", "agreement %", *(f"{n} %" for n in scored), "layer speed-up")
    for each in made.contestants:
        table.add_row(
            each["name"], f"{each['rows_per_second']:,.0f}", f"{each['p50_ms']:.1f}",
            f"{100 * each['agreement']:.2f}", *(f"{100 * each[n]:.1f}" for n in scored), f"{each['layer_speedup']:.2f}",
        )  # fmt: skip
    deep = next(each for each in made.candidates if each.precision == made.precision)  # exits are a precision's
    share = f"{deep.full_depth_agreement:.2%} of {made.rows} texts"
    show(f"at full depth the tuned model agrees with the original on {share}")
    print_table(table)
    for name, reason in made.skipped.items():
        show(f"{name}: {reason}")
    as_was = "answered as" if promise.tolerance is None else f"scored within {promise.tolerance:g} of what they are"
    kept = f"at least {1 - promise.limit:.4g} of rows are {as_was} by the original in fp32"
    show(
        f"with confidence {promise.confidence:g} {kept}: {made.precision}, threshold {promise.threshold:.4f}, "
        f"{promise.faults} of {promise.rows} held-out texts otherwise"
    )
    show(f"exits are tested after layers {', '.join(map(str, deep.exit_layers))}")
    if made.falls_back:
        show("rows of which no exit is sure fall back to the original")
    show(made.checkpoint)


def print_calibration(outcome: Calibration) -> None:
    shares = [
        name
        for name in ("agreement", "span_f1", "accuracy", "pearson")
        if any(name in point for point in outcome.table)
    ]
    scores = ["deviation"] if any("deviation" in point for point in outcome.table) else []
    table = Table("layer speed-up", "threshold", *scores, *(f"{name} %" for name in shares))
    for point in outcome.table:
        table.add_row(
            f"{point['layer_speedup']:.2f}", f"{point['threshold']:.4f}", *(f"{point[name]:.4f}" for name in scores),
            *(f"{100 * point[name]:.1f}" if name in point else "" for name in shares),
        )  # fmt: skip
    show(f"{outcome.checkpoint}: {outcome.criterion} on {outcome.rows} rows of {outcome.data}")
    print_table(table)
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
        print_table(choice)
        show(f"full depth: {1e6 * outcome.layers.measured_full_depth:.0f} us/row measured")
    if (promise := outcome.guarantee) is not None:
        what = "answered as at full depth" if promise.promise == "agreement" else "not made wrong by an early exit"
        if promise.tolerance is not None:
            what = f"scored within {promise.tolerance:g} of full depth"
        show(
            f"with confidence {promise.confidence:g} at least {1 - promise.limit:.4g} of rows are {what}: threshold "
            f"{promise.threshold:.4f}, layer speed-up {promise.layer_speedup:.2f} on these rows "
            f"({promise.faults} of {promise.rows} at fault, p = {promise.p_value:.3g})"
        )
    show(f"threshold now: {outcome.threshold}")


def print_ranking_calibration(made: RankingCalibration) -> None:
    promised, k = made.guarantee, made.rule.k
    table = Table("exit", "margin", "documents that leave %")
    layers = [*(f"{layer}" for layer in made.exit_layers[:-1]), f"{made.exit_layers[-1]} (last)"]
    margins = [*(f"{margin:.4f}" if margin < float("inf") else "not tested" for margin in made.rule.margins), ""]
    for layer, margin, share in zip(layers, margins, made.exits, strict=True):
        table.add_row(layer, margin, f"{100 * share:.1f}")
    show(f"{made.checkpoint}: the best {k} of {made.queries} queries of {made.data}")
    print_table(table)
    swaps = f", up to {promised.tolerance:g} in the score of rank {k}" if promised.tolerance else ""
    show(
        f"with confidence {promised.confidence:g} the best {k} are those of full depth in at least "
        f"{1 - promised.limit:.4g} of queries{swaps}: layer speed-up {promised.layer_speedup:.2f} "
        f"({promised.faults} of {promised.queries} at fault, p = {promised.p_value:.3g})"
    )
    for name, found in made.precisions.items():
        show(
            f"{name}: the best {k} are those of its own full depth in {found['same_set']:.1%} of these queries "
            f"(p = {found['p_value']:.3g}); at full depth they are those of fp32 in {found['full_depth_same_set']:.1%}"
        )


def facts_of(engine: Engine, seconds: float) -> dict[str, Any]:
    """What `pfengine info` shows. seconds: how long loading took."""
    ckpt, manifest = engine.checkpoint, engine.checkpoint.manifest
    models = ckpt.models if isinstance(ckpt, CascadeCheckpoint) else (ckpt,)
    folders = {ckpt.path, *(each.path for each in models)}
    own: dict[str, Any] = {
        "head": models[0].manifest.head["type"],
        "family": models[0].backbone.family.name,
        "layers": engine.num_layers,
        "hidden_size": models[0].backbone.hidden_size,
    }
    if len(models) > 1:
        own = {"models": [_model_facts(each) for each in models]}
    return {
        "path": str(ckpt.path),
        "system": manifest.system,
        **own,
        "labels": list(engine.labels),
        "problem_type": ckpt.backbone.problem_type,
        "max_length": engine.max_length,
        "tokenizer": models[0].tokenizer is not None,
        "exit_layers": list(engine.exit_layers),
        "criterion": manifest.criterion,
        "threshold": manifest.threshold,
        "calibration": list(manifest.calibration),
        **({"ranking": manifest.ranking} if isinstance(manifest, Manifest) and manifest.ranking else {}),
        "storage": ", ".join(dict.fromkeys(each.manifest.storage for each in models)),
        "megabytes": round(sum(f.stat().st_size for each in folders for f in each.iterdir() if f.is_file()) / 1e6, 1),
        "load_seconds": round(seconds, 2),
        "training": manifest.training,
        "precisions": manifest.precisions,
        "precision": engine.precision,  # the one that "auto" chose
        "extension": extension.status(),
    }


def _model_facts(ckpt: Checkpoint) -> dict[str, Any]:
    """What is shown of one model of a cascade."""
    return {
        "system": ckpt.manifest.system,
        "head": ckpt.manifest.head["type"],
        "family": ckpt.backbone.family.name,
        "layers": ckpt.backbone.num_layers,
        "hidden_size": ckpt.backbone.hidden_size,
        "exit_layers": list(ckpt.manifest.exit_layers),
        "criterion": ckpt.manifest.criterion,
        "threshold": ckpt.manifest.threshold,
    }


def print_facts(facts: dict[str, Any]) -> None:
    for key, value in facts.items():
        if key == "calibration" and value:
            show("calibration:")
            for point in value:
                numbers = {name: value for name, value in point.items() if not isinstance(value, list)}
                show("  " + ", ".join(f"{name} {number:.4g}" for name, number in numbers.items()))
        elif key == "models":
            for number, model in enumerate(value, 1):
                show(f"model {number}: " + ", ".join(f"{name} {item}" for name, item in model.items()))
        elif isinstance(value, dict):
            show(f"{key}: " + ", ".join(f"{name} {item}" for name, item in value.items()))
        else:
            show(f"{key}: {', '.join(map(str, value)) if isinstance(value, list) else value}")


def print_demo(outcome: Outcome) -> None:
    table = Table("label", "score", "exit layer", "sentence")
    for answer in outcome.answers:
        table.add_row(
            printable(answer["label"]), f"{answer['score']:.3f}", f"{answer['exit_layer']}/{outcome.num_layers}",
            printable(answer["text"]),
        )  # fmt: skip
    print_table(table)
    show(
        f"layer speed-up {outcome.layer_speedup:.2f}, wall-clock speed-up {outcome.wall_clock_speedup:.2f} against "
        f"full depth ({1000 * outcome.seconds_full:.1f} ms -> {1000 * outcome.seconds:.1f} ms for "
        f"{len(outcome.answers)} sentences in one batch; medians of {outcome.repeats} interleaved runs, "
        f"{outcome.precision}, {outcome.threads} threads)"
    )
