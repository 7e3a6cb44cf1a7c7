"""What a run found: a JSON report, one table per suite, and which peers were left out and why."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pfengine.evaluation import describe_machine

from . import engines
from .knobs import JSON, PICTURES, ROUNDS, ROWS
from .roof import gemm_gflops
from .tables import write_columns

Record = dict[str, Any]
PEERS = ("transformers", "openvino", "nncf", "onnx", "onnxruntime")

EXITS: dict[int, list[Record]] = {}  # batch size -> records of test_exits
TITLES = {
    "full_depth": "full depth, no exits: fixed batches by length; in a stream pfengine makes its own, peers 32 rows",
    "latency": "full depth, one row a call",
    "replay": "exits replayed, speed-ups against the same engine with exits off",
    "head": "every exit tested, no row leaves: time beyond that of the encoder with no exits, in thrice the rounds",
    "families": "other encoder families of base size, full depth, rows of 25 tokens",
    "long_rows": "long rows at full depth, one batch a call",
    "quality": "the bundled checkpoint: labels as fp32's of the same weights at full depth, and with its own exits",
}
TABLES: dict[str, list[Record]] = {name: [] for name in TITLES}
# key, heading, format
_PLACE = (("hidden", "hidden", "d"), ("batch_size", "batch", "s"))
COLUMNS: dict[str, tuple[tuple[str, str, str], ...]] = {
    "full_depth": (
        *_PLACE,
        ("contestant", "contestant", "<s"),
        ("rows_per_second", "rows/s", ".1f"),
        ("tokens_per_second", "tokens/s", ".0f"),
        ("share_of_roof", "of GEMM roof", ".1%"),
        ("speedup_over_openvino", "over OpenVINO", ".2f"),
    ),
    "latency": (
        ("hidden", "hidden", "d"),
        ("contestant", "contestant", "<s"),
        ("p50_ms", "p50 ms", ".2f"),
        ("p99_ms", "p99 ms", ".2f"),
        ("rows_per_second", "rows/s", ".1f"),
        ("speedup_over_openvino", "over OpenVINO", ".2f"),
    ),
    "replay": (
        *_PLACE,
        ("precision", "precision", "<s"),
        ("head", "head", "<s"),
        ("contestant", "contestant", "<s"),
        ("rows_per_second", "rows/s", ".1f"),
        ("layer_speedup", "layer speed-up", ".2f"),
        ("wall_clock_speedup", "wall-clock speed-up", ".2f"),
        ("wall_clock_over_layer_speedup", "their ratio", ".3f"),
        ("speedup_over_openvino", "over OpenVINO", ".2f"),
    ),
    "head": (
        *_PLACE,
        ("precision", "precision", "<s"),
        ("head", "head", "<s"),
        ("share_of_encoder", "of the encoder", ".1%"),
        ("share_beyond_bare_exits", "beyond bare exits", ".1%"),
    ),
    "families": (
        ("family", "family", "<s"),
        ("batch_size", "batch", "s"),
        ("contestant", "contestant", "<s"),
        ("rows_per_second", "rows/s", ".1f"),
        ("speedup_over_best_peer", "over the best peer", ".2f"),
        ("speedup_over_openvino", "over OpenVINO", ".2f"),
    ),
    "long_rows": (
        ("model", "model", "<s"),
        ("shape", "tokens a row", "s"),
        ("rows", "rows", "d"),
        ("contestant", "contestant", "<s"),
        ("tokens_per_second", "tokens/s", ".0f"),
        ("speedup_over_best_peer", "over the best peer", ".2f"),
        ("speedup_over_openvino", "over OpenVINO", ".2f"),
    ),
    "quality": (
        ("contestant", "contestant", "<s"),
        ("rows", "rows", "d"),
        ("agreement", "as fp32", ".2%"),
        ("accuracy", "accuracy", ".2%"),
        ("exits_agreement", "with exits: as fp32", ".2%"),
        ("exits_accuracy", "accuracy", ".2%"),
        ("layer_speedup", "layer speed-up", ".3f"),
    ),
    "exits": (
        ("batch_size", "batch", "d"),
        ("contestant", "contestant", "<s"),
        ("rows_per_second", "rows/s", ".1f"),
        ("layer_speedup", "layer speed-up", ".2f"),
        ("wall_clock_speedup", "wall-clock speed-up", ".2f"),
    ),
}


def as_json(texts: int) -> dict[str, Any]:
    """texts: the rows of test_exits, which are its own sentences."""
    return {
        "machine": describe_machine(),
        "versions": versions(),
        "rounds": ROUNDS,
        "rows": texts if EXITS else ROWS,
        "skipped": engines.SKIPPED,
        "refused": engines.REFUSED,
        "gemm_gflops": _roofs(),
        "results": EXITS,
        **TABLES,
    }


def write(texts: int, line: Callable[[str], None]) -> None:
    """Write to the terminal, with one call of `line` per line, and to the files that the environment names."""
    if EXITS:
        title = "fp32 sentences, speed-ups against 'pfengine, exits off' of the same batch size"
        _write_table("exits", title, [record for size in sorted(EXITS) for record in EXITS[size]], line)
    for name, records in TABLES.items():
        if records:
            _write_table(name, TITLES[name], records, line)
    for precision, gflops in _roofs().items():
        line(f"GEMM roof, {precision}: " + ", ".join(f"{name} {value:.0f} GFLOP/s" for name, value in gflops.items()))
    for name, reason in engines.SKIPPED.items():
        line(f"{name}: skipped: {reason}")
    for name, reason in engines.REFUSED.items():
        line(f"{name}: not timed: {reason}")
    report = as_json(texts)
    if JSON and (EXITS or any(TABLES.values())):
        Path(JSON).write_text(json.dumps(report, indent=2) + "\n")
    if PICTURES:
        from .picture import draw

        draw(report, Path(PICTURES))


def _roofs() -> dict[str, dict[str, float]]:
    precisions = {engines.precision(record["contestant"]): None for record in TABLES["full_depth"]}
    return {precision: gemm_gflops(precision) for precision in precisions}


def versions() -> dict[str, str | None]:
    """Versions of the peers; None where one is not installed."""
    return {package: installed_version(package) for package in PEERS}


def installed_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _write_table(name: str, title: str, records: Sequence[Record], line: Callable[[str], None]) -> None:
    columns = COLUMNS[name]
    line("")
    line(f"{title}; medians of {ROUNDS} interleaved rounds" if name != "quality" else title)
    headings = [heading for _, heading, _ in columns]
    cells = [[_cell(record[key], form) for key, _, form in columns] for record in records]
    write_columns(headings, cells, "".join("<" if form[0] == "<" else ">" for _, _, form in columns), line)


def _cell(value: Any, form: str) -> str:
    return "-" if value is None else format(value, form.removeprefix("<"))
