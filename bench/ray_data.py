"""Rows per second of Ray Data over Parquet, with one and with two workers of one core each.

    python -m bench.ray_data --report ray.md --json ray.json

Texts are SST-2's, repeated. A run is timed from the first answers to the last, so that the start of Ray and of its
workers does not count. Beside pfengine stands the example of Ray's own guide, a class with a transformers model, here
in fp32. `classify` is the same rows by one process without Ray. All are measured in interleaved rounds.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from pfengine.evaluation.machine import describe_machine, name_machine

from .peers import read_texts
from .tables import hand_over, table

BATCH = 512
WAYS: dict[str, dict[str, Any]] = {
    "pfengine int8, exits on": {"precision": "int8"},
    "pfengine int8, exits off": {"precision": "int8", "criterion": "never"},
}
PEER = "transformers fp32"


class Transformers:
    """As in Ray's guide for offline inference, at full depth."""

    def __init__(self) -> None:
        import torch

        from .peer_servers import with_transformers

        torch.set_num_threads(1)
        self.call = with_transformers()

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        found: list[str] = []
        texts = sorted(enumerate(batch["text"].tolist()), key=lambda pair: len(pair[1]))  # short ones with short ones
        for start in range(0, len(texts), 32):
            answers = self.call([text for _, text in texts[start : start + 32]])
            found += [answer[0]["label"] for answer in answers]
        order = np.argsort([place for place, _ in texts])
        return batch | {"label": np.array(found, object)[order]}


def through_ray(folder: Path, way: str, workers: int) -> float:
    """Rows per second after the first answers, in this process."""
    import ray

    from pfengine.stacks.ray_data import Classifier

    ray.init(num_cpus=workers + 2, include_dashboard=False, log_to_driver=False, logging_level="error")
    ray.data.DataContext.get_current().enable_progress_bars = False
    size = {"compute": ray.data.ActorPoolStrategy(size=workers), "num_cpus": 1, "batch_size": BATCH}
    texts = ray.data.read_parquet(str(folder)).repartition(target_num_rows_per_block=BATCH)
    if way == PEER:
        found = texts.map_batches(Transformers, **size)
    else:
        found = texts.map_batches(Classifier, fn_constructor_args=["sst2"], fn_constructor_kwargs=WAYS[way], **size)
    began, rows, last = 0.0, 0, 0.0
    for batch in found.iter_batches(batch_size=None):
        last = time.perf_counter()
        if not began:
            began = last
        else:
            rows += len(batch["label"])
    return rows / (last - began)


def alone(folder: Path, way: str, threads: int) -> float:
    """Rows per second of `classify` over the same files, without Ray, in this process."""
    import pyarrow.parquet
    import torch

    import pfengine

    torch.set_num_threads(threads)
    engine = pfengine.load("sst2", **WAYS[way])
    texts = pyarrow.parquet.read_table(folder)["text"].to_pylist()
    engine.classify(texts[:BATCH])
    start = time.perf_counter()
    for first in range(0, len(texts), BATCH):
        engine.classify(texts[first : first + BATCH])
    return len(texts) / (time.perf_counter() - start)


def main(
    report: Path | None = None,
    json_to: Annotated[Path | None, typer.Option("--json")] = None,
    rows: Annotated[int, typer.Option(help="Of each run; transformers gets a quarter.")] = 8_192,
    rounds: int = 3,
    one: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    if one is not None:  # a run of its own: folder, way, with Ray or without, workers
        folder, way, kind, count = json.loads(one)
        print((through_ray if kind == "ray" else alone)(Path(folder), way, count))
        return
    plan = [(way, kind, count) for kind in ("ray", "alone") for way in WAYS for count in (1, 2)]
    plan += [(PEER, "ray", count) for count in (1, 2)]
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        whole, quarter = (_write(Path(scratch) / name, n) for name, n in (("whole", rows), ("quarter", rows // 4)))
        for number in range(rounds):
            for way, kind, count in plan:
                folder = quarter if way == PEER else whole
                rate = _run([str(folder), way, kind, count])
                found.setdefault(f"{kind}, {way}, {count}", []).append(rate)
                print(f"round {number + 1}: {kind}, {way}, {count}: {rate:.0f} rows/s", file=sys.stderr)
    result = {
        "machine": describe_machine(),
        "rows": rows,
        "rates": {name: float(np.median(rates)) for name, rates in found.items()},
        "all": found,
    }
    hand_over(markdown(result), result, report, json_to)


def _write(folder: Path, rows: int) -> Path:
    import pyarrow
    import pyarrow.parquet

    folder.mkdir()
    texts = read_texts()
    found = [texts[i % len(texts)] for i in range(rows)]
    pyarrow.parquet.write_table(pyarrow.table({"text": found}), folder / "0.parquet")
    return folder


def _run(one: Sequence[Any]) -> float:
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")]),
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_WAIT_POLICY": "passive",
    }
    command = [sys.executable, "-m", "bench.ray_data", "--one", json.dumps(one)]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout.split()[-1])


def markdown(found: dict[str, Any]) -> str:
    rates, lines = found["rates"], []
    for kind, title in (("ray", "Ray Data"), ("alone", "`classify` alone")):
        for way in (*WAYS, PEER):
            if f"{kind}, {way}, 1" in rates:
                one, two = (rates[f"{kind}, {way}, {count}"] for count in (1, 2))
                lines.append([f"{title}: {way}", f"{one:.0f}", f"{two:.0f}", f"{two / one:.2f}"])
    head = ["", "rows/s, 1 worker or thread", "2", "2 over 1"]
    return "\n".join([f"{name_machine(found['machine'])}; {found['rows']} rows.", "", *table(head, lines), ""])


if __name__ == "__main__":
    typer.run(main)
