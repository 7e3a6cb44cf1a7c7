"""Full depth, nobody leaves early: beside the peers on the same rows, and below the ceiling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from pfengine.ops.cuda_lanes import CudaModel

from ..rows import Row, fixed_batches
from .costs import cost
from .counted import tested
from .knobs import SIZES
from .launches import Pass
from .on_device import on_device
from .peers import COMPILED, EAGER, OURS, RAGGED, Padded, check, compiled, eager, expected
from .results import Record, Results, first_line
from .timing import Measure, interleaved, queued, synchronize, wall
from .work import Cell, Prediction, engine, fixed_rows, ragged_torch


def full_depth(cell: Cell, device: torch.device, results: Results, peers: Sequence[str] = (EAGER, RAGGED)) -> None:
    """pfengine and the peers interleaved, once all have given the logits of transformers fp32. A peer may fail."""
    rows = cell.rows()
    wanted = expected(cell.hidden, rows, cell.batch, device)
    ours = Prediction(engine(cell.hidden, "classifier", device), rows, cell.batch)
    errors = {OURS: check(OURS, ours().logits, wanted)}
    walls: dict[str, Measure] = {OURS: wall(ours, device)}
    devices: dict[str, Measure] = {OURS: on_device(ours.batches(), device)}
    for name in peers:
        try:
            call = _peer(name, cell, rows, device)
            answer = call()
            errors[name] = check(name, answer if isinstance(answer, np.ndarray) else answer.logits, wanted)
            walls[name] = wall(call, device)
            if isinstance(call, Padded) and len(call.batches) == 1:
                devices[name] = queued(call.on_device(), device)
        except Exception as error:
            results.miss(f"{cell}: {name}", first_line(error))
            walls.pop(name, None)
    rounds, on_gpu = interleaved(walls), interleaved(devices)
    for name in walls:
        seconds = rounds.median(name)
        results.add("full_depth", {
            **_described(cell, rows),
            "contestant": name,
            "beside": list(walls),
            "seconds": seconds,
            "rows_per_second": len(rows) / seconds,
            "device_seconds": on_gpu.median(name) if name in devices else None,
            "pfengine_is_faster": rounds.speedup(OURS, name),
            "pfengine_is_faster_on_device": on_gpu.speedup(OURS, name),
            "error_share_of_range": errors[name],
        })  # fmt: skip


def _peer(name: str, cell: Cell, rows: Sequence[Row], device: torch.device) -> Any:
    if name == RAGGED:
        return Prediction(ragged_torch(cell.hidden, device), rows, cell.batch)
    plain = Padded(eager(cell.hidden, device), rows, cell.batch, device)
    if name not in COMPILED:
        return plain
    shapes = {(len(batch), max(len(rows[i]) for i in batch)) for batch in plain.batches}
    call = Padded(compiled(name, cell.hidden, device, len(shapes)), rows, cell.batch, device)
    for _ in range(3):  # compiled, recorded, replayed
        call()
    synchronize(device)
    return call


def _described(cell: Cell, rows: Sequence[Row]) -> Record:
    padded = sum(len(batch) * max(len(rows[i]) for i in batch) for batch in fixed_batches(rows, cell.batch))
    return {**cell._asdict(), "rows": len(rows), "tokens": sum(map(len, rows)), "padded_tokens": padded}


def gemm_share(device: torch.device, results: Results) -> None:
    """Rows of one length in large batches, FLOPs as launched: the share of the ceiling that a whole pass reaches."""
    hidden, (batch, tokens) = SIZES.hidden[0], SIZES.gemm_share
    rows = fixed_rows(SIZES.gemm_batches * batch, tokens)
    ours = Prediction(engine(hidden, "classifier", device), rows, batch)
    check(OURS, ours().logits, expected(hidden, rows, batch, device))
    rounds = interleaved({"wall": wall(ours, device), "device": on_device(ours.batches(), device)})
    native = ours.engine.model.native
    assert isinstance(native, CudaModel)
    once = Pass(native.weights, [tokens] * batch, tested(native.weights, False))
    flops = SIZES.gemm_batches * sum(cost(launch, once.use).flops for launch in once.noted())
    record = {"what": "gemm share", "hidden": hidden, "batch": batch, "tokens_of_a_row": tokens, "flops": flops}
    for name in rounds.seconds:
        record[f"{name}_seconds"] = rounds.median(name)
        record[f"{name}_flops_per_second"] = flops / rounds.median(name)
    results.add("single", record)


def latency(device: torch.device, results: Results) -> None:
    """One row, one call."""
    hidden, tokens = SIZES.hidden[0], SIZES.latency_tokens
    rows = fixed_rows(1, tokens)
    ours = Prediction(engine(hidden, "classifier", device), rows, 1)
    check(OURS, ours().logits, expected(hidden, rows, 1, device))
    rounds = interleaved({"wall": wall(ours, device), "device": on_device(ours.batches(), device)})
    results.add("single", {
        "what": "latency", "hidden": hidden, "tokens_of_a_row": tokens,
        "wall_seconds": rounds.median("wall"), "device_seconds": rounds.median("device"),
    })  # fmt: skip
