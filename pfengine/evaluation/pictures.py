"""Curves and exit distributions as PNG and SVG, by matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError

if TYPE_CHECKING:
    from .report import Report, Setting


def _figure(width: float = 6.4, height: float = 4.2) -> tuple[Any, Any]:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("pictures need matplotlib: pip install 'pfengine[train]'") from None
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def _save(figure: Any, path: Path) -> None:
    for kind in ("png", "svg"):
        figure.savefig(path.with_suffix(f".{kind}"), dpi=140, metadata={"Date": None} if kind == "svg" else None)


def draw_curves(report: Report, path: Path) -> None:
    """Quality against layer speed-up over all thresholds (the paper's Fig. 3), static models and oracles as points."""
    figure, axes = _figure()
    for i, curve in enumerate(report.curves):
        name, color = Path(curve.checkpoint).name, f"C{i}"
        if len(curve.points) > 1:
            speedups = [point["layer_speedup"] for point in curve.points]
            scores = [100 * point["metrics"][report.metric] for point in curve.points]
            axes.plot(speedups, scores, color=color, label=f"{name} ({curve.criterion})")
        if curve.oracle is not None:
            score = 100 * curve.oracle.metrics[report.metric]
            axes.plot(curve.oracle.layer_speedup, score, "*", color=color, markersize=11, label=f"{name}, oracle")
    lines = {curve.checkpoint for curve in report.curves if len(curve.points) > 1}
    static = [s for s in report.settings if s.checkpoint not in lines]
    for i, setting in enumerate(static):
        axes.errorbar(
            setting.layer_speedup, 100 * setting.score, 100 * setting.standard_error, fmt="s",
            color=f"C{len(report.curves) + i}", capsize=3, label=Path(setting.checkpoint).name,
        )  # fmt: skip
    axes.set(xlabel="layer speed-up", ylabel=f"{report.metric}, %", title=f"{report.data}, {report.rows} rows")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    _save(figure, path)


def draw_exits(report: Report, path: Path) -> None:
    """Share of rows that leave at each layer, a group of bars a setting (the paper's Fig. 4)."""
    shown: list[Setting] = [s for s in report.settings if len(s.exit_layers) > 1]
    layers = range(1, 1 + max(max(s.exit_layers) for s in shown))
    figure, axes = _figure(7.2)
    width = 0.85 / len(shown)
    several = len({s.checkpoint for s in shown}) > 1
    for i, setting in enumerate(shown):
        shares = [100 * setting.exit_layers.get(layer, 0) / report.rows for layer in layers]
        name = f"{Path(setting.checkpoint).name}, " if several else ""
        label = f"{name}{setting.name}: {setting.layer_speedup:.2f}x"
        axes.bar([layer + (i + 0.5) * width - 0.425 for layer in layers], shares, width, label=label)
    axes.set(xlabel="exit layer", ylabel="rows, %", xticks=list(layers), title=f"{report.data}, {report.rows} rows")
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize="small")
    _save(figure, path)
