"""The Markdown report of `bench.systems`."""

from __future__ import annotations

from typing import Any

from pfengine.evaluation.machine import name_machine

from .tables import table

SPEEDS = (2.0, 3.0)  # beside full depth
FAR = 0.05  # a system this far below its own full depth at 2x is named below the table
FULL = "full-model"


def markdown(results: list[dict[str, Any]]) -> str:
    """The table of all systems there are, the conditions, and which systems lose much by their exits."""
    first, report = results[0], results[0]["report"]
    speeds = [f"{speed:g}x" for speed in SPEEDS]
    metric = next(iter(report["settings"][0]["metrics"]))
    lines = [
        f"# Systems on {report['data']}",
        "",
        f"{metric} in % on {report['rows']} rows, ± one standard error; in brackets layer speed-up / wall-clock "
        "speed-up on these rows.",
        f"Trained on {first['trained_rows']} rows, {first['epochs']:g} epoch(s) per phase, seed 0; thresholds by layer "
        f"speed-up on {first['held_out_rows']} other rows.",
        "A criterion that counts exits reaches only some speeds, of which the nearest is shown.",
        "",
        f"Measured: {report['precision']}, {name_machine(report['machine'])}, {report['batch_size']} rows of "
        f"{report['mean_tokens']:.1f} tokens on average per batch.",
        "Wall-clock speed-up is that of the same engine with exits off and on, medians of",
        f"{report['repeats']} interleaved rounds; for models of fewer layers it is that beside {FULL}.",
        "",
        *table(["system", "criterion", "minutes of training", "full depth", *speeds, "oracle"], map(cells, results)),
        "",
    ]
    if differing := [result["system"] for result in results if conditions(result) != conditions(first)]:
        lines += [f"Measured under other conditions than the first: {', '.join(differing)} (see the JSON files).", ""]
    far = [result for result in results if lost(result) > FAR]
    lines += [
        f"{result['system']} falls {100 * lost(result):.1f} points below its own full depth at "
        f"{at(result, '2x')['layer_speedup']:.2f}x."
        for result in far
    ] or [f"No system falls more than {100 * FAR:.0f} points below its own full depth at 2x."]
    lines += ["", "Commands:", ""]
    return "\n".join([*lines, *(f"    {result['command']}" for result in results), ""])


def at(result: dict[str, Any], key: str) -> dict[str, Any]:
    """The setting of a key of "places": "full depth" or a speed."""
    setting: dict[str, Any] = result["report"]["settings"][result["places"][key]]
    return setting


def score(setting: dict[str, Any]) -> float:
    return float(next(iter(setting["metrics"].values())))


def lost(result: dict[str, Any]) -> float:
    """How far the system falls below its own full depth at 2x; 0 where it has no such speed."""
    return score(at(result, "full depth")) - score(at(result, "2x")) if "2x" in result["places"] else 0.0


def cells(result: dict[str, Any]) -> list[str]:
    """Its row of the table."""

    def speedups(setting: dict[str, Any]) -> str:
        return f"({setting['layer_speedup']:.2f} / {setting['wall_clock_speedup']:.2f})"

    full, seconds = at(result, "full depth"), result["training_seconds"]
    whole = f"{100 * score(full):.1f} ± {100 * full['standard_error']:.1f}"
    whole += f" {speedups(full)}" if full["layer_speedup"] > 1 else ""
    early = [f"{speed:g}x" for speed in SPEEDS]
    shown = [at(result, key) if key in result["places"] else None for key in early]
    curve, bound = result["report"]["curves"][-1], ""
    if (best := curve["oracle"]) is not None:  # its speed is counted from the layers of the model itself
        own = result["layers"] / curve["exits"][-1]["layer"]
        bound = f"{100 * score(best):.1f} at {own * best['layer_speedup']:.2f}"
    return [
        result["system"],
        result["criterion"] or "never",
        "" if seconds is None else f"{seconds / 60:.0f}",
        whole,
        *("" if each is None else f"{100 * score(each):.1f} {speedups(each)}" for each in shown),
        bound,
    ]


def conditions(result: dict[str, Any]) -> list[Any]:
    report = result["report"]
    return [report[key] for key in ("machine", "precision", "batch_size", "repeats", "rows")] + [result["trained_rows"]]
