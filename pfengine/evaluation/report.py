"""The report of an evaluation: as JSON, as Markdown, and with pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..strict_json import dumps, finite
from .judges import ExitQuality
from .machine import name_machine
from .pictures import draw_curves, draw_exits, draw_layers
from .results import Curve, Setting

EXIT_COLUMNS = {  # of the table of exits: the field of ExitQuality, and what its value is multiplied by
    "agreement %": ("agreement", 100), "deviation": ("deviation", 1),
    "difficulty inversion": ("difficulty_inversion", 1), "of learned score": ("learned_inversion", 1),
    "calibration error %": ("calibration_error", 100), "tempered %": ("calibration_error_tempered", 100),
    "temperature": ("temperature", 1),
}  # fmt: skip
NOT_OF_SCORES = (
    "Scores of regression have no confidence and are neither right nor wrong: oracle, difficulty inversion and "
    "calibration error are not defined for them."
)


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
    unit: str = "row"  # what leaves early and is counted: "word" for a tagger
    truth: list[float] | None = None  # where answers were asked for, what they should be

    @property
    def speedup_columns(self) -> list[str]:
        """Names of the columns of `speedups`."""
        return ["layer speed-up"] if self.unit == "row" else ["layer speed-up of words", "of tokens"]

    def speedups(self, setting: Setting) -> list[str]:
        """The layer speed-up of a setting; of a tagger counted over words, and over tokens."""
        values = [setting.layer_speedup, setting.token_speedup]
        return [f"{value:.2f}" for value in values if value is not None]

    @property
    def metric(self) -> str:
        """The leading metric's name."""
        return next(iter(self.settings[0].metrics))

    def to_json(self) -> dict[str, Any]:
        """For JSON: a metric without a value, such as the correlation of equal answers, is null."""
        found: dict[str, Any] = finite(asdict(self))
        return found

    def write(self, directory: Path) -> None:
        """Write report.json, report.md and the pictures (PNG and SVG) to a directory, created if need be."""
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "report.json").write_text(dumps(self.to_json(), indent=2) + "\n")
        pictures = []
        if any(curve.points for curve in self.curves):
            draw_curves(self.curves, self.settings, self.metric, f"{self.data}, {self.rows} rows", directory / "curve")
            pictures.append("![quality against layer speed-up](curve.png)")
        if any(len(setting.exit_layers) > 1 for setting in self.settings):
            draw_exits(self.settings, self.rows, self.unit, self.data, directory / "exits")
            pictures.append(f"![share of {self.unit}s that leave at each layer](exits.png)")
        if any(len(curve.exits) > 1 for curve in self.curves):
            draw_layers(self.curves, self.metric, f"{self.data}, {self.rows} rows", directory / "layers")
            pictures.append("![each exit judged by itself](layers.png)")
        (directory / "report.md").write_text(self.markdown() + "".join(f"\n{line}\n" for line in pictures))

    def markdown(self) -> str:
        """The table, and the conditions under which it was measured."""
        several = len({setting.checkpoint for setting in self.settings}) > 1
        metrics = list(self.settings[0].metrics)
        head = [*(["checkpoint"] if several else []), "setting", "threshold", *metrics,
                *self.speedup_columns,
                "wall-clock speed-up", "rows/s"]  # fmt: skip
        lines = [
            f"# {Path(self.checkpoint).name} on {self.data}",
            "",
            f"{self.rows} rows of {self.mean_tokens:.1f} tokens on average; {self.precision}, "
            f"{name_machine(self.machine)}, "
            f"at most {self.batch_tokens} tokens" + (f" and {self.batch_size} rows" if self.batch_size else "")
            + f" per batch; medians of {self.repeats} interleaved runs; ± one standard error.",
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
                *self.speedups(s), f"{s.wall_clock_speedup:.2f}", f"{self.rows / s.seconds:.0f}",
            ]  # fmt: skip
            lines.append("| " + " | ".join(cells) + " |")
        for curve in self.curves:
            name = Path(curve.checkpoint).name
            columns, rows = exit_table(curve.exits)
            lines += ["", f"Each exit of {name} judged by itself, on all rows:", ""]
            lines += ["| " + " | ".join(row) + " |" for row in (columns, ["---"] * len(columns), *rows)]
            lines += [part for sentence in remarks(curve) for part in ("", sentence)]
        return "\n".join(lines) + "\n"


def exit_table(exits: Sequence[ExitQuality]) -> tuple[list[str], list[list[str]]]:
    """Each exit as a row of cells, and the columns' names; what is not defined for the model has no column."""
    shown = {
        name: field for name, field in EXIT_COLUMNS.items() if any(getattr(e, field[0]) is not None for e in exits)
    }
    cells = []
    for exit in exits:
        row = [str(exit.layer), *(f"{100 * value:.1f}" for value in exit.metrics.values())]
        for attribute, scale in shown.values():
            value = getattr(exit, attribute)
            row.append("" if value is None or math.isnan(value) else f"{scale * value:.{1 if scale == 100 else 3}f}")
        cells.append(row)
    return ["exit", *(f"{name} %" for name in exits[0].metrics), *shown], cells


def remarks(curve: Curve) -> list[str]:
    """What is said below the table of exits."""
    if curve.exits[0].deviation is not None:
        return [NOT_OF_SCORES]
    if curve.oracle is None:
        return []
    score = next(iter(curve.oracle.metrics.values()))
    return [
        f"The oracle, which leaves at the first exit that is right, would reach {100 * score:.1f} at "
        f"{curve.oracle.layer_speedup:.2f}x."
    ]
