"""Curves and exit distributions as PNG and SVG, drawn with matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .results import Curve, Setting

MAX_SPEEDUP = 7.0  # beyond it a curve only tells how often the first layer guesses right


def new_figure(width: float = 6.4, height: float = 4.2, columns: int = 1) -> tuple[Any, Any]:
    """A figure (width, height in inches) and its axes, of more than one column a list of them.

    Raises ConfigError where matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("pictures need matplotlib: pip install 'pfengine[train]'") from None
    figure = Figure(figsize=(width, height), layout="constrained")
    if columns > 1:
        return figure, list(figure.subplots(1, columns))
    return figure, figure.add_subplot()


def save_figure(figure: Any, path: Path) -> None:
    """Write the figure as PNG and SVG; the same figure gives the same bytes."""
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "pfengine"}):
        figure.savefig(path.with_suffix(".png"), dpi=140)
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})


def draw_curves(curves: Sequence[Curve], settings: Sequence[Setting], metric: str, title: str, path: Path) -> None:
    """Quality against layer speed-up over all thresholds (the paper's Fig. 3), static models and oracles as points."""
    figure, axes = new_figure()
    for i, curve in enumerate(curves):
        name, color = Path(curve.checkpoint).name, f"C{i}"
        if len(curve.points) > 1:
            speedups = [point["layer_speedup"] for point in curve.points]
            scores = [100 * point["metrics"][metric] for point in curve.points]
            axes.plot(speedups, scores, color=color, label=f"{name} ({curve.criterion})")
        if curve.oracle is not None:
            score, speedup = 100 * curve.oracle.metrics[metric], curve.oracle.layer_speedup
            outside = f": {score:.1f} at {speedup:.1f}x, right of the picture" if speedup > MAX_SPEEDUP else ""
            axes.plot(speedup, score, "*", color=color, markersize=11, label=f"{name}, oracle{outside}")
    lines = {curve.checkpoint for curve in curves if len(curve.points) > 1}
    static = [s for s in settings if s.checkpoint not in lines]
    for i, setting in enumerate(static):
        axes.errorbar(
            setting.layer_speedup, 100 * setting.score, 100 * setting.standard_error, fmt="s",
            color=f"C{len(curves) + i}", capsize=3, label=Path(setting.checkpoint).name,
        )  # fmt: skip
    axes.set_xlim(0.8, min(axes.get_xlim()[1], MAX_SPEEDUP))
    axes.set(xlabel="layer speed-up", ylabel=f"{metric}, %", title=title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    save_figure(figure, path)


def draw_exits(settings: Sequence[Setting], rows: int, unit: str, data: str, path: Path) -> None:
    """Share of rows, or of words, that leave at each layer, one line of the map per setting (the paper's Fig. 4)."""
    shown = [s for s in settings if len(s.exit_layers) > 1]
    layers = range(1, 1 + max(max(s.exit_layers) for s in shown))
    shares = [[100 * s.exit_layers.get(layer, 0) / sum(s.exit_layers.values()) for layer in layers] for s in shown]
    several = len({s.checkpoint for s in shown}) > 1
    names = [f"{Path(s.checkpoint).name}, " * several + f"{s.name}: {s.layer_speedup:.2f}x" for s in shown]
    figure, axes = new_figure(2.8 + 0.45 * len(layers), 1.3 + 0.3 * len(shown))
    most = max(map(max, shares))
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=most, aspect="auto")
    for y, line in enumerate(shares):
        for x, share in enumerate(line):
            if share > 0:
                text = f"{share:.0f}" if share >= 0.5 else "<1"
                axes.text(
                    x, y, text, ha="center", va="center", fontsize="small", color="w" if share > most / 2 else "k"
                )
    axes.set(xlabel="exit layer", title=f"{unit}s that leave there, %; {rows} rows of {data}")
    axes.set_xticks(range(len(layers)), [str(layer) for layer in layers])
    axes.set_yticks(range(len(names)), names)
    save_figure(figure, path)


PANELS = {  # of the picture of layers: the field of ExitQuality, what it is multiplied by, and how it is drawn
    "agreement with full depth, %": [("agreement", 100, "-", "")],
    "mean deviation from full depth": [("deviation", 1, "-", "")],
    "difficulty inversion score": [("difficulty_inversion", 1, "-", ""), ("learned_inversion", 1, ":", ", learned")],
    "expected calibration error, %": [
        ("calibration_error", 100, "-", ""), ("calibration_error_tempered", 100, "--", ", tempered"),
    ],
}  # fmt: skip


def draw_layers(curves: Sequence[Curve], metric: str, title: str, path: Path) -> None:
    """Each exit judged by itself: quality, agreement, order and calibration against its layer."""

    def known(attribute: str) -> bool:
        return any(getattr(exit, attribute) is not None for curve in curves for exit in curve.exits)

    panels = {name: lines for name, lines in PANELS.items() if known(lines[0][0])}
    figure, axes = new_figure(3.2 * (1 + len(panels)), 3.4, 1 + len(panels))
    for i, curve in enumerate(curves):
        layers, name = [exit.layer for exit in curve.exits], Path(curve.checkpoint).name
        look: dict[str, Any] = {"color": f"C{i}", "marker": "."}
        axes[0].plot(layers, [100 * exit.metrics[metric] for exit in curve.exits], label=name, **look)
        for panel, lines in zip(axes[1:], panels.values(), strict=True):
            for attribute, scale, style, suffix in lines:
                if known(attribute):
                    found = [getattr(exit, attribute) for exit in curve.exits]
                    values = [float("nan") if value is None else scale * value for value in found]
                    panel.plot(layers, values, style, label=name + suffix, **look)
    for panel, label in zip(axes, (f"{metric}, %", *panels), strict=True):
        panel.set(xlabel="exit after layer", ylabel=label)
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.grid(alpha=0.3)
        panel.legend(fontsize="x-small")
    figure.suptitle(title, fontsize="medium")
    save_figure(figure, path)
