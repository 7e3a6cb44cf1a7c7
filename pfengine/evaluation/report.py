"""What an evaluation found: as JSON, as Markdown, and with its pictures."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..strict_json import dumps, finite
from .curve import Oracle
from .machine import name_machine


@dataclass(frozen=True)
class Setting:
    """One row of the table; the first is the checkpoint at full depth."""

    checkpoint: str
    name: str  # "full depth", "threshold 0.3", "speedup 2"
    threshold: float | None
    metrics: dict[str, float]  # the task's, the leading one first
    standard_error: float  # of the leading metric
    layer_speedup: float  # against the layers of the checkpoint that is evaluated, for those beside it too
    wall_clock_speedup: float  # its median seconds at full depth / median seconds here, runs interleaved
    seconds: float  # median for all rows, tokenisation included
    exit_layers: dict[int, int]  # layer -> rows that left there

    @property
    def score(self) -> float:
        """The leading metric."""
        return next(iter(self.metrics.values()))


@dataclass(frozen=True)
class Curve:
    """Of one checkpoint: points over all thresholds, and the oracle."""

    checkpoint: str
    criterion: str
    points: list[dict[str, Any]]
    oracle: Oracle | None


@dataclass(frozen=True)
class Report:
    checkpoint: str
    data: str
    rows: int
    mean_tokens: float
    precision: str
    batch_tokens: int
    batch_size: int | None
    repeats: int
    machine: dict[str, Any]
    settings: list[Setting]
    curves: list[Curve] = field(default_factory=list)

    @property
    def metric(self) -> str:
        """The leading metric's name."""
        return next(iter(self.settings[0].metrics))

    def to_json(self) -> dict[str, Any]:
        """null in the place of a metric without a value, such as the correlation of answers that are all alike."""
        found: dict[str, Any] = finite(asdict(self))
        return found

    def write(self, directory: Path) -> None:
        """report.json, report.md and the pictures, PNG and SVG, in a directory that is made where it is missing."""
        from .pictures import draw_curves, draw_exits

        directory.mkdir(parents=True, exist_ok=True)
        (directory / "report.json").write_text(dumps(self.to_json(), indent=2) + "\n")
        pictures = []
        if any(curve.points for curve in self.curves):
            draw_curves(self, directory / "curve")
            pictures.append("![quality against layer speed-up](curve.png)")
        if any(len(setting.exit_layers) > 1 for setting in self.settings):
            draw_exits(self, directory / "exits")
            pictures.append("![share of rows that leave at each layer](exits.png)")
        (directory / "report.md").write_text(self.markdown() + "".join(f"\n{line}\n" for line in pictures))

    def markdown(self) -> str:
        """The table, and under which conditions it came about."""
        several = len({setting.checkpoint for setting in self.settings}) > 1
        metrics = list(self.settings[0].metrics)
        head = [*(["checkpoint"] if several else []), "setting", "threshold", *metrics, "layer speed-up",
                "wall-clock speed-up", "rows/s"]  # fmt: skip
        lines = [
            f"# {Path(self.checkpoint).name} on {self.data}",
            "",
            f"{self.rows} rows of {self.mean_tokens:.1f} tokens on average; {self.precision}, "
            f"{name_machine(self.machine)}, "
            f"at most {self.batch_tokens} tokens" + (f" and {self.batch_size} rows" if self.batch_size else "")
            + f" a batch; medians of {self.repeats} interleaved runs; ± one standard error.",
            "",
            "| " + " | ".join(head) + " |",
            "|" + "---|" * len(head),
        ]  # fmt: skip
        for s in self.settings:
            scores = [f"{100 * value:.1f}" for value in s.metrics.values()]
            scores[0] += f" ± {100 * s.standard_error:.1f}"
            cells = [
                *([Path(s.checkpoint).name] if several else []), s.name,
                "" if s.threshold is None else f"{s.threshold:.4f}", *scores,
                f"{s.layer_speedup:.2f}", f"{s.wall_clock_speedup:.2f}", f"{self.rows / s.seconds:.0f}",
            ]  # fmt: skip
            lines.append("| " + " | ".join(cells) + " |")
        for curve in self.curves:
            if curve.oracle is not None:
                name = f"{Path(curve.checkpoint).name}: " if several else ""
                score = next(iter(curve.oracle.metrics.values()))
                lines += ["", f"{name}the oracle, which leaves at the first exit that is right, would reach "
                              f"{100 * score:.1f} at {curve.oracle.layer_speedup:.2f}x."]  # fmt: skip
        return "\n".join(lines) + "\n"
