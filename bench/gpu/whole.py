"""Whole passes: at full depth beside transformers, as it is and compiled, with exits replayed, with exits tested."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from pfengine import merging
from pfengine.ops.cuda_model import CudaModel

from ..engines import FP32_TOLERANCE, TOLERANCE, first_line
from ..rows import Row, fixed_batches, layer_speedup, padded
from .costs import cost
from .counted import Pass, tested
from .results import Record, Results
from .timing import Measure, interleaved, on_device, queued, synchronize, wall
from .work import (
    COMPILED,
    DRY,
    INT8,
    OFF,
    OURS,
    RAGGED,
    SIZES,
    WHOLE,
    Cell,
    How,
    Prediction,
    engine,
    exit_layers,
    fixed_rows,
    int8_engine,
    path,
    ragged_torch,
)

Forward = Callable[[dict[str, Tensor]], Tensor]  # input_ids and so on, int64 [R, longest] -> logits [R, C]


@functools.cache
def transformers_model(hidden: int, dtype: torch.dtype, device: torch.device) -> Any:
    from transformers import BertForSequenceClassification

    model = BertForSequenceClassification.from_pretrained(
        path(hidden, "classifier"),
        dtype=dtype,
        attn_implementation="sdpa",
        local_files_only=True,
        trust_remote_code=False,
    )
    return model.eval().to(device)


def eager(hidden: int, device: torch.device, dtype: torch.dtype = SIZES.dtype) -> Forward:
    model = transformers_model(hidden, dtype, device)
    return lambda inputs: model(**inputs).logits


def compiled(name: str, hidden: int, device: torch.device, shapes: int) -> Forward:
    """shapes: how many sizes of batches it will see; for more than one it is compiled for any. Slow at the first call.

    A dry run traces and compiles nothing.
    """
    torch._dynamo.reset()
    model = torch.compile(
        transformers_model(hidden, SIZES.dtype, device),
        mode=name.split()[-1],
        dynamic=shapes > 1,
        backend="eager" if DRY else "inductor",
    )

    def forward(inputs: dict[str, Tensor]) -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        return model(**inputs).logits

    return forward


class Padded:
    """All rows in padded batches, each cut by length: padding, copies both ways and a wait for each batch included."""

    def __init__(self, forward: Forward, rows: Sequence[Row], batch: int, device: torch.device) -> None:
        self.forward, self.rows, self.device = forward, rows, device
        self.batches = list(fixed_batches(rows, batch))

    def inputs(self, batch: Sequence[int]) -> dict[str, Tensor]:
        arrays = padded([self.rows[i] for i in batch])
        return {name: torch.from_numpy(array).to(self.device) for name, array in arrays.items()}

    @torch.no_grad()
    def __call__(self) -> np.ndarray:
        """Logits in the rows' order."""
        parts = [self.forward(self.inputs(batch)).float().numpy(force=True) for batch in self.batches]
        logits = np.concatenate(parts)
        out = np.empty_like(logits)
        out[np.concatenate(self.batches)] = logits
        return out

    def on_device(self) -> Callable[[], None]:
        """The same, inputs on the device and logits left there."""
        ready = [self.inputs(batch) for batch in self.batches]

        @torch.no_grad()
        def run() -> None:
            for inputs in ready:
                self.forward(inputs)

        return run


class Yardstick(NamedTuple):
    """What logits of a model are held against: its own on rows of SST-2 lengths, by transformers."""

    span: float  # from the least to the largest logit in fp32
    error: float  # how far those in the dtype of the run are off at most

    @classmethod
    @functools.cache
    def of(cls, hidden: int, device: torch.device) -> Yardstick:
        rows = Cell(hidden, "SST-2", SIZES.yardstick).rows()
        wanted, found = (Padded(eager(hidden, device, dtype), rows, len(rows), device)() for dtype in DTYPES)
        return cls(float(np.ptp(wanted)), float(np.abs(found - wanted).max()))


DTYPES = (torch.float32, SIZES.dtype)
TIMES = 2  # transformers' own error: the rule for fast ops


class Expected:
    """Logits of transformers in fp32, and how far those in the dtype of the run are off.

    The error that is allowed does not follow from the rows alone: one row has few logits, whose range, and whose error
    in transformers, may be next to nothing by chance. Both are those of many rows of the same model, or more.
    """

    def __init__(self, hidden: int, rows: Sequence[Row], batch: int, device: torch.device) -> None:
        self.wanted, found = (Padded(eager(hidden, device, dtype), rows, batch, device)() for dtype in DTYPES)
        self.yardstick = Yardstick.of(hidden, device)
        self.transformers = float(np.abs(found - self.wanted).max())

    def check(self, name: str, logits: np.ndarray) -> Record:
        """How far logits are off, as shares of a range. AssertionError where that is too far."""
        span, error = self.yardstick.span, float(np.abs(logits - self.wanted).max())
        allowed = FP32_TOLERANCE
        if name == INT8:
            allowed = TOLERANCE["int8"] * span
        elif SIZES.dtype == torch.bfloat16:
            allowed = min(TOLERANCE["bf16"] * span, TIMES * max(self.yardstick.error, self.transformers))
        if not error <= allowed:  # nan too
            raise AssertionError(
                f"logits of {name} differ from transformers fp32 by {error:.2g}, more than {allowed:.2g}; transformers "
                f"in the same dtype by {self.transformers:.2g}"
            )
        return {"error_share_of_range": error / span, "transformers_error_share_of_range": self.transformers / span}


def full_depth(cell: Cell, peer: str, device: torch.device, results: Results) -> None:
    """pfengine and a peer interleaved, once both have given the logits of transformers fp32. The peer may fail."""
    rows = cell.rows()
    expected = Expected(cell.hidden, rows, cell.batch, device)
    ours = Prediction(engine(cell.hidden, "classifier", device), rows, cell.batch)
    errors = {OURS: expected.check(OURS, ours().logits)}
    walls: dict[str, Measure] = {OURS: wall(ours, device)}
    devices: dict[str, Measure] = {OURS: on_device(ours.batches(), device)}
    try:
        call = _peer(peer, cell, rows, device)
        answer = call()
        errors[peer] = expected.check(peer, answer if isinstance(answer, np.ndarray) else answer.logits)
        walls[peer] = wall(call, device)
        if isinstance(call, Padded) and len(call.batches) == 1:
            devices[peer] = queued(call.on_device(), device)
        elif peer == INT8:
            devices[peer] = on_device(call.batches(), device)
    except Exception as error:
        results.miss(f"{cell}: {peer}", first_line(error))
        return
    rounds, on_gpu = interleaved(walls), interleaved(devices)
    for name in walls:
        seconds = rounds.median(name)
        results.add("full_depth", {
            **_described(cell, rows),
            "contestant": name,
            "beside": peer,
            "seconds": seconds,
            "rows_per_second": len(rows) / seconds,
            "device_seconds": on_gpu.median(name) if name in devices else None,
            "pfengine_is_faster": rounds.speedup(OURS, name),
            "pfengine_is_faster_on_device": on_gpu.speedup(OURS, name),
            **errors[name],
        })  # fmt: skip


def _peer(name: str, cell: Cell, rows: Sequence[Row], device: torch.device) -> Any:
    if name == INT8:
        return Prediction(int8_engine(cell.hidden, device), rows, cell.batch)
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
    batch, tokens = SIZES.gemm_share
    ours, record = _pass("gemm share", SIZES.gemm_batches * batch, tokens, batch, device)
    carrier = ours.engine.model.carrier
    assert isinstance(carrier, CudaModel)
    once = Pass(carrier.weights, [tokens] * batch, tested(carrier.weights, False))
    flops = SIZES.gemm_batches * sum(cost(launch, once.use).flops for launch in once.noted())
    rates = {f"{clock}_flops_per_second": flops / record[f"{clock}_seconds"] for clock in ("wall", "device")}
    results.add("single", {**record, "batch": batch, "flops": flops, **rates})


def latency(device: torch.device, results: Results) -> None:
    """One row, one call."""
    results.add("single", _pass("latency", 1, SIZES.latency_tokens, 1, device)[1])


def _pass(what: str, n: int, tokens: int, batch: int, device: torch.device) -> tuple[Prediction, Record]:
    """All rows of one length at full depth, timed once their logits are those of transformers."""
    hidden, rows = SIZES.hidden[0], fixed_rows(n, tokens)
    ours = Prediction(engine(hidden, "classifier", device), rows, batch)
    errors = Expected(hidden, rows, batch, device).check(OURS, ours().logits)
    rounds = interleaved({"wall": wall(ours, device), "device": on_device(ours.batches(), device)})
    seconds = {f"{clock}_seconds": rounds.median(clock) for clock in rounds.seconds}
    return ours, {"what": what, "hidden": hidden, "tokens_of_a_row": tokens, **errors, **seconds}


HEAD_ROUNDS = 3  # times as many: a small difference of large numbers


def replay(cell: Cell, device: torch.device, results: Results) -> None:
    rows = cell.rows()
    runs = {OFF: Prediction(engine(cell.hidden, "authors", device), rows, cell.batch)}
    hows: dict[str, How] = {"": "as it is", **({WHOLE: "one graph"} if cell.stays_together() else {})}
    for speedup, (said, how) in itertools.product(SIZES.speedups, hows.items()):
        layered = engine(cell.hidden, "authors", device, how)
        runs[f"{speedup:g}x{said}"] = Prediction(layered, rows, cell.batch, exit_layers(rows, speedup))
    with mock.patch.multiple(merging, MOST_TOKENS=SIZES.joined_tokens, ROUNDS=min(SIZES.rounds, merging.ROUNDS)):
        for model in {id(run.engine): run.engine for run in runs.values()}.values():
            model.warmup(rows=(cell.batch,), tokens=(max(map(len, rows)),))  # measures when joining batches is worth it
    layers = {}
    for name, run in runs.items():
        found = run().exit_layers
        np.testing.assert_array_equal(found, SIZES.layers if run.layers is None else run.layers, name)
        layers[name] = layer_speedup(found, SIZES.layers)
    rounds = interleaved({name: wall(run, device) for name, run in runs.items()})
    on_gpu = interleaved({name: on_device(run.batches(), device) for name, run in runs.items()})
    for name in runs:
        faster, faster_on_device = rounds.speedup(name, OFF), on_gpu.speedup(name, OFF)
        assert faster is not None
        assert faster_on_device is not None
        results.add("replay", {
            **cell._asdict(), "rows": len(rows), "contestant": name, "layer_speedup": layers[name],
            "seconds": rounds.median(name), "rows_per_second": len(rows) / rounds.median(name),
            "wall_clock_speedup": faster, "wall_clock_over_layer_speedup": faster / layers[name],
            "device_seconds": on_gpu.median(name), "device_over_layer_speedup": faster_on_device / layers[name],
        })  # fmt: skip


def head_share(cell: Cell, device: torch.device, results: Results) -> None:
    """Every exit tested and nobody leaving, beside no exit tested, and beside an encoder without exits."""
    rows = cell.rows()
    runs = {
        "every exit tested": Prediction(engine(cell.hidden, "authors", device), rows, cell.batch, None, "entropy:0"),
        "no exit tested": Prediction(engine(cell.hidden, "authors", device), rows, cell.batch),
        "no exits": Prediction(engine(cell.hidden, "classifier", device), rows, cell.batch),
    }
    for name, run in runs.items():
        np.testing.assert_array_equal(run().exit_layers, SIZES.layers, name)
    walls = interleaved({name: wall(run, device) for name, run in runs.items()}, HEAD_ROUNDS * SIZES.rounds)
    on_gpu = interleaved(
        {name: on_device(run.batches(), device) for name, run in runs.items()}, HEAD_ROUNDS * SIZES.rounds
    )
    every, *bases = runs
    for base in bases:
        record = {"what": "exit head", **cell._asdict(), "base": base}
        for clock, rounds in (("wall", walls), ("device", on_gpu)):
            slowdown = rounds.speedup(base, every)
            assert slowdown is not None
            record[f"{clock}_seconds"], record[f"{clock}_base_seconds"] = rounds.median(every), rounds.median(base)
            # a tested exit after each layer but the last, over a layer
            record[f"{clock}_share_of_a_layer"] = (slowdown - 1) * SIZES.layers / (SIZES.layers - 1)
        results.add("single", record)
