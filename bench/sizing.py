"""Rows per second of one core at full depth, by the length of rows, while the other cores do the same.

    python -m bench.sizing --report sizing.md --json sizing.json

For `docs/serving/sizing.md`. Models have random weights, 12 layers, and no exits are taken. Each core runs a process of
its own with one thread; the figure is their mean, so that it holds for a machine that is full.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from pfengine.evaluation.machine import describe_machine, name_machine

from .conversions import source
from .models import VOCABULARY
from .tables import hand_over, table

LENGTHS = (16, 32, 64, 128, 256, 512)
MODELS = ((384, "int8"), (768, "int8"), (384, "fp32"), (768, "fp32"))
SECONDS = 2.0  # of each length


def rates(hidden: int, precision: str) -> list[float]:
    """Rows per second at each of LENGTHS, on one thread of this process."""
    import pfengine
    from pfengine.torch_state import keep_to_one_thread

    keep_to_one_thread()
    engine = pfengine.load(source(hidden), precision=precision)
    draw, found = np.random.default_rng(0), []
    for length in LENGTHS:
        rows = [{"input_ids": draw.integers(0, VOCABULARY, length)} for _ in range(max(1, 2048 // length))]
        engine.predict(rows)
        done, start = 0, time.perf_counter()
        while (lasted := time.perf_counter() - start) < SECONDS:
            engine.predict(rows)
            done += len(rows)
        found.append(done / lasted)
    return found


def main(
    report: Path | None = None,
    json_to: Annotated[Path | None, typer.Option("--json")] = None,
    rounds: int = 3,
    one: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    if one is not None:
        print(json.dumps(rates(*json.loads(one))))
        return
    cores = len(os.sched_getaffinity(0))
    for hidden, _ in MODELS:
        source(hidden)  # made here, as two processes at once would
    found: dict[str, list[list[float]]] = {}
    for number in range(rounds):
        for hidden, precision in MODELS:
            command = [sys.executable, "-m", "bench.sizing", "--one", json.dumps([hidden, precision])]
            beside = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(cores)]
            each = [json.loads(process.communicate()[0]) for process in beside]
            found.setdefault(f"{hidden}, {precision}", []).append(np.mean(each, 0).tolist())
            print(f"round {number + 1}: {hidden}, {precision}: {found[f'{hidden}, {precision}'][-1]}", file=sys.stderr)
    medians: dict[str, Any] = {name: np.median(several, 0).tolist() for name, several in found.items()}
    machine = describe_machine()
    lines = [
        [name, *(f"{rate:.0f}" if rate >= 10 else f"{rate:.1f}" for rate in each)] for name, each in medians.items()
    ]
    head = ["hidden size, precision", *(f"{length} tokens" for length in LENGTHS)]
    text = "\n".join([f"{name_machine(machine)}, both full; rows/s of one core.", "", *table(head, lines), ""])
    hand_over(text, {"machine": machine, "lengths": LENGTHS, "rows_per_second": medians}, report, json_to)


if __name__ == "__main__":
    typer.run(main)
