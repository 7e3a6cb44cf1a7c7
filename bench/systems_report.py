"""The Markdown report of `bench.systems`."""

from __future__ import annotations

from typing import Any

from pfengine.evaluation.machine import name_machine

from .tables import table

SPEEDS = (2.0, 3.0)  # beside full depth
FAR = 0.05  # a system this far below its own full depth at 2x is named below the table
FULL = "full-model"


def markdown(results: list[dict[str, Any]]) -> str:
    """The table of all systems there are, the conditions, and what is to be looked into."""
    first = results[0]
    speeds = [f"{speed:g}x" for speed in SPEEDS]
    lines = [
        f"# Systems on {first['data']}",
        "",
        f"{first['metric']} in % on {first['rows']} rows, ± one standard error; in brackets layer speed-up / "
        "wall-clock speed-up on these rows.",
        f"Trained on {first['trained_rows']} rows, {first['epochs']:g} epoch(s) per phase, seed 0; thresholds by layer "
        f"speed-up on {first['held_out_rows']} other rows.",
        "A criterion that counts exits reaches only some speeds, of which the nearest is shown.",
        "",
        f"Measured: {first['precision']}, {name_machine(first['machine'])}, {first['batch_size']} rows per batch.",
        "Wall-clock speed-up is that of the same engine with exits off and on, medians of",
        f"{first['rounds']} interleaved rounds; for models of fewer layers it is that beside {FULL}.",
        "",
        *table(["system", "criterion", "minutes of training", "full depth", *speeds, "oracle"], map(cells, results)),
        "",
    ]
    if differing := [result["system"] for result in results if conditions(result) != conditions(first)]:
        lines += [f"Measured under other conditions than the first: {', '.join(differing)} (see the JSON files).", ""]
    far = [result for result in results if lost(result) > FAR]
    lines += [
        f"{result['system']} falls {100 * lost(result):.1f} points below its own full depth at "
        f"{result['2x']['layer_speedup']:.2f}x: to be looked into."
        for result in far
    ] or [f"No system falls more than {100 * FAR:.0f} points below its own full depth at 2x."]
    lines += ["", "Commands, after the split that `bench.systems` writes:", ""]
    return "\n".join([*lines, *(f"    {result['command']}" for result in results), ""])


def lost(result: dict[str, Any]) -> float:
    """How far the system falls below its own full depth at 2x; 0 where it has no such speed."""
    return float(result["full depth"]["score"] - result["2x"]["score"]) if "2x" in result else 0.0


def cells(result: dict[str, Any]) -> list[str]:
    """Its row of the table."""
    full, seconds, best = result["full depth"], result["training_seconds"], result.get("oracle")
    whole = f"{100 * full['score']:.1f} ± {100 * full['standard_error']:.1f}"
    if full["layer_speedup"] > 1:
        whole += f" ({full['layer_speedup']:.2f} / {full['wall_clock_speedup']:.2f})"
    early = []
    for speed in SPEEDS:
        at = result.get(f"{speed:g}x")
        told = "" if at is None else f"({at['layer_speedup']:.2f} / {at['wall_clock_speedup']:.2f})"
        early.append("" if at is None else f"{100 * at['score']:.1f} {told}")
    bound = "" if best is None else f"{100 * best['metrics'][result['metric']]:.1f} at {best['layer_speedup']:.2f}"
    minutes = "" if seconds is None else f"{seconds / 60:.0f}"
    return [result["system"], result["criterion"] or "never", minutes, whole, *early, bound]


def conditions(result: dict[str, Any]) -> list[Any]:
    return [result[key] for key in ("machine", "precision", "batch_size", "rounds", "trained_rows", "rows")]
