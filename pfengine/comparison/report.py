"""A comparison as Markdown and as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..evaluation.machine import name_machine
from ..evaluation.pictures import new_figure, save_figure
from ..strict_json import dumps
from ..training.system import FALLBACKS
from .results import FULL_DEPTH, Comparison, Point, best, score


def write(found: Comparison, directory: Path) -> None:
    """Write compare.json, compare.md and the picture (PNG and SVG) to a directory, created if need be."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "compare.json").write_text(dumps(found.to_json(), indent=2) + "\n")
    draw(found, directory / "compare")
    (directory / "compare.md").write_text(markdown(found) + "\n![quality against speed-up](compare.png)\n")


def markdown(found: Comparison) -> str:
    """The tables, the conditions under which they were measured, and the commands."""
    conditions, options = found.runs[0]["conditions"], found.options
    early = found.keys[1:]
    seeds = f"One seed, {found.seeds[0]}"
    if len(found.seeds) > 1:
        seeds = f"Means over the seeds {', '.join(map(str, found.seeds))}, ± their standard deviation"
    lines = [
        f"# Systems on {conditions['data']}",
        "",
        f"{found.metric} in % on {conditions['rows']} rows. {seeds}; "
        "in brackets layer speed-up / wall-clock speed-up.",
        f"Standard error of one run, from its number of rows: at most {100 * _error(found):.1f}.",
        f"All start from {options['model']}, with {options.get('max_rows') or 'all'} training rows and {_told(options)}"
        ", unless their name says otherwise. Thresholds are chosen on held-out rows. Where a criterion does not reach "
        "a speed, the nearest that it reaches is shown.",
        "",
        f"Measured in {conditions['precision']} on {name_machine(conditions['machine'])}, "
        f"{conditions['batch_size']} rows of {conditions['mean_tokens']:.1f} tokens on average per batch; medians of "
        f"{conditions['repeats']} interleaved rounds. Wall-clock speed-ups are beside the full model at full depth.",
        "",
        *_table(
            ["contestant", "criterion", "full depth", *early, "oracle"],
            [_row(found, name) for name in found.contestants],
        ),
        "",
        "## At equal time",
        f"{found.metric} in % at a wall-clock speed-up beside the full model, between measured speeds interpolated. "
        "Empty: it is not that fast. Bold: the best.",
        "",
        *_at_equal_time(found),
        "",
        *_differences(found),
        "## Commands",
        *dict.fromkeys(f"    {run['command']}" for run in found.runs if run["command"]),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _told(options: dict[str, Any]) -> str:
    """What all contestants were trained with, of what systems have defaults of their own for."""
    names = [name for name in FALLBACKS if name in options]
    told = ", ".join(f"{name.replace('_', ' ')} {options[name]:g}" for name in names)
    return f"{told}{' and else ' if told and len(names) < len(FALLBACKS) else ''}" + (
        "the defaults of their systems" if len(names) < len(FALLBACKS) else ""
    )


def _error(found: Comparison) -> float:
    return max(float(run["settings"][FULL_DEPTH]["standard_error"] or 0) for run in found.runs)


def _row(found: Comparison, name: str) -> list[str]:
    points, run, best_possible = found.points(name), found.of(name)[0], _oracle(found, name)
    bound = "" if best_possible is None else f"{100 * best_possible[1]:.1f} at {best_possible[0]:.2f}"
    return [name, run["criterion"] or "never", *(_cell(points.get(key), key) for key in found.keys), bound]


def _oracle(found: Comparison, name: str) -> tuple[float, float] | None:
    """Layer speed-up and leading metric of leaving at the first exit that is right, means over seeds."""
    oracle = [run["curve"]["oracle"] for run in found.of(name)]
    if not all(oracle):
        return None
    deepest = found.of(name)[0]["curve"]["exits"][-1]["layer"]  # whose layers the oracle's speed-up counts
    speed = float(np.mean([each["layer_speedup"] for each in oracle])) * found.layers / deepest
    return speed, float(np.mean([score(each) for each in oracle]))


def _cell(point: Point | None, key: str) -> str:
    if point is None:
        return ""
    spread = "" if point.deviation is None else f" ± {100 * point.deviation:.1f}"
    same = key == FULL_DEPTH and point.layer_speedup == 1
    speed = "" if same else f" ({point.layer_speedup:.2f} / {point.wall_clock_speedup:.2f})"
    return f"{100 * point.score:.1f}{spread}{speed}"


def _at_equal_time(found: Comparison) -> list[str]:
    values = {name: [found.at_time(name, speed) for speed in found.speedups] for name in found.contestants}
    top = [best([each[i] for each in values.values()]) for i in range(len(found.speedups))]

    def cell(value: float | None, highest: float | None) -> str:
        bold = "**" if value == highest else ""
        return "" if value is None else f"{bold}{100 * value:.1f}{bold}"

    rows = [[name, *map(cell, each, top)] for name, each in values.items()]
    return _table(["contestant", *(f"{speed:g}x" for speed in found.speedups)], rows)


def _differences(found: Comparison) -> list[str]:
    """Each contestant beside those that are always fast, at their time."""
    static, rows = found.static, []
    for name in found.contestants:
        cells = [found.difference(name, other) if other != name else None for other in static]
        if any(cells):
            rows.append([name, *("" if d is None else f"{100 * d.value:+.1f} ± {100 * d.standard_error:.1f}"
                                 for d in cells)])  # fmt: skip
    if not rows:
        return []
    return [
        "## Beside models that are always fast",
        f"How much more {found.metric} in points a contestant has at the wall-clock time of a model without exits, "
        "± one standard error of the difference over rows. Empty: it is not that fast.",
        "",
        *_table(["contestant", *static], rows),
        "",
    ]


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)]


def draw(found: Comparison, path: Path) -> None:
    """Quality against layer and wall-clock speed-up. Models without exits are squares, oracles stars."""
    figure, panels = new_figure(11, 4.6, 2)
    labels = ("layer speed-up", "wall-clock speed-up beside the full model")
    fields = ("layer_speedup", "wall_clock_speedup")
    for number, name in enumerate(found.contestants):
        points = list(found.points(name).values())
        for axes, field in zip(panels, fields, strict=True):
            look: dict[str, Any] = {"color": f"C{number % 10}", "label": name, "capsize": 3}
            look |= {"fmt": "s"} if len(points) == 1 else {"fmt": ".", "linestyle": "-" if number < 10 else "--"}
            errors = [100 * (point.standard_error if point.deviation is None else point.deviation) for point in points]
            axes.errorbar([getattr(p, field) for p in points], [100 * p.score for p in points], errors, **look)
        if (bound := _oracle(found, name)) is not None:
            speed, best_score = bound
            panels[0].plot(speed, 100 * best_score, marker="*", color=f"C{number % 10}", linestyle="")
    for axes, label in zip(panels, labels, strict=True):
        axes.set(xlabel=label, ylabel=f"{found.metric}, %")
        axes.grid(alpha=0.3)
    panels[1].legend(fontsize="x-small", ncols=2)
    data = found.runs[0]["conditions"]["data"]
    figure.suptitle(f"{data}, {found.runs[0]['conditions']['rows']} rows", fontsize="medium")
    save_figure(figure, path)
