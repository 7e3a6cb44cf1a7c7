"""What is computed, how much of it, and who does: sizes, checkpoints with random weights, rows of ids, engines."""

from __future__ import annotations

import fcntl
import functools
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple
from unittest import mock

import numpy as np
import torch

import pfengine
from pfengine import merging, reader
from pfengine.exits import Replay
from pfengine.model import build
from pfengine.ops import OpSet, cuda, cuda_linear, reference
from pfengine.ops.cuda_flight import OVERLAP_TOKENS
from pfengine.ops.cuda_model import CudaModel

from .. import models
from ..knobs import CACHE
from ..rows import Row, fixed_batches, make_rows, replay_layers

ROOT = Path(__file__).parent.parent.parent
DRY = os.environ.get("PFENGINE_GPU_DRY") == "1"  # the whole way on a CPU, kernels interpreted; its times mean nothing
if DRY:  # as the tests of kernels interpret them, in processes of their own as well
    sys.path.append(str(ROOT))
    from tests.kernels.quick_interpreter import make_quick

    make_quick()
DOCS = os.environ.get("PFENGINE_GPU_DOCS") == "1"  # the report goes to docs/results, too
OUT = Path(os.environ.get("PFENGINE_GPU_OUT") or ROOT / "build" / "gpu")
STARTED = float(os.environ.get("PFENGINE_GPU_STARTED") or time.time())  # of the whole run, seconds since 1970
DEADLINE = float(os.environ.get("PFENGINE_GPU_DEADLINE") or 510)  # seconds from there

PARTS = ("goals", "timeline", "kernels", "tables", "peers", "soak")  # of a run, in this order
OF_THE_SCRIPT = ("build", "tests")  # parts that bench/gpu.sh runs before them


def asked_for(said: str | None) -> frozenset[str]:
    """The parts that PFENGINE_GPU_PARTS names, such as "goals,timeline"; where it is not set all but the soak."""
    names = frozenset(said.split(",") if said else (part for part in PARTS if part != "soak"))
    if unknown := names - {*PARTS, *OF_THE_SCRIPT}:
        raise ValueError(
            f"PFENGINE_GPU_PARTS names {', '.join(sorted(unknown))}, which is no part; expected some of "
            f"{', '.join(OF_THE_SCRIPT + PARTS)}, with commas between them"
        )
    return names


class Sizes(NamedTuple):
    hidden: tuple[int, ...]  # the first is that of the goals
    layers: int
    attention_heads: int
    vocabulary: int
    precision: str
    batches: tuple[int, ...]
    goal_batch: int  # at SST-2 lengths, against the peers
    large_batch: int
    yardstick: int  # rows of SST-2 lengths whose logits say how far logits may be off
    least_rows: int  # of a cell with small batches, but no more than 16 of them
    fixed: int  # tokens per row
    most_tokens: int  # longer rows are cut
    speedups: tuple[float, ...]  # of layers, replayed
    joined_tokens: int  # that a layer is timed with, to say when joining batches is worth it
    gemm: int  # rows and columns of the matrices of the ceiling
    copy_bytes: int
    gemm_share: tuple[int, int]  # rows and tokens per row
    gemm_batches: int  # of them in a call
    soak_seconds: float
    latency_tokens: int
    rounds: int
    round_seconds: float  # a contestant's part of a round lasts as long at least

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self.precision == "fp32" else torch.bfloat16


REAL = Sizes(
    hidden=(768, 384), layers=12, attention_heads=12, vocabulary=8000, precision="bf16",
    batches=(1, 8, 32, 128, 512), goal_batch=128, large_batch=512, yardstick=64, least_rows=64, fixed=128,
    most_tokens=512, speedups=(1.5, 2.0, 3.0, 4.0), joined_tokens=merging.MOST_TOKENS, gemm=8192,
    copy_bytes=4 << 30, gemm_share=(256, 128), gemm_batches=4, soak_seconds=120.0, latency_tokens=32,
    rounds=7, round_seconds=0.03,
)  # fmt: skip
TINY = Sizes(
    hidden=(32,), layers=2, attention_heads=4, vocabulary=90, precision="fp32",
    batches=(1, 2), goal_batch=2, large_batch=3, yardstick=4, least_rows=2, fixed=3, most_tokens=4, speedups=(1.5, 2.0),
    joined_tokens=32, gemm=64, copy_bytes=1 << 16, gemm_share=(2, 3), gemm_batches=1, soak_seconds=0.1,
    latency_tokens=4, rounds=1, round_seconds=0.0,
)  # fmt: skip
SIZES = TINY if DRY else REAL


def device() -> torch.device | None:
    """Where to measure; None where there is no GPU."""
    if DRY:
        return torch.device("cpu")
    return torch.device("cuda:0") if torch.cuda.is_available() else None


def seconds_left() -> float:
    return STARTED + DEADLINE - time.time()


# contestants
OURS, EAGER, RAGGED = "pfengine", "transformers sdpa", "ragged torch, eager"
AUTOTUNED, OVERHEAD = "torch.compile max-autotune-no-cudagraphs", "torch.compile reduce-overhead"
COMPILED = (OVERHEAD, AUTOTUNED)  # the one that compiles faster first
VARLEN, NESTED, FLASH = "torch varlen_attn", "torch nested SDPA", "FlashAttention varlen"
INT8 = "pfengine int8"
OFF = "exits off"
WHOLE = ", one graph"  # after a speed-up

Lengths = Literal["SST-2", "fixed"]
LENGTHS: tuple[Lengths, ...] = ("SST-2", "fixed")


class Cell(NamedTuple):
    """A line of a table: what is run, whoever runs it."""

    hidden: int
    lengths: Lengths
    batch: int

    def rows(self) -> list[Row]:
        """One batch, or several where it is small."""
        n = max(self.batch, min(16 * self.batch, SIZES.least_rows))
        if self.lengths == "SST-2":
            rows = make_rows(n)
        else:
            rows = fixed_rows(n, SIZES.fixed)
        return [[number % SIZES.vocabulary for number in row[: SIZES.most_tokens]] for row in rows]

    def stays_together(self) -> bool:
        """Are its batches so small that rows stay together, and a flight may be one graph?"""
        rows = self.rows()
        return max(sum(len(rows[i]) for i in batch) for batch in fixed_batches(rows, self.batch)) <= OVERLAP_TOKENS

    def __str__(self) -> str:
        tokens = "SST-2 lengths" if self.lengths == "SST-2" else f"{SIZES.fixed} tokens"
        return f"hidden {self.hidden}, {tokens}, batch {self.batch}"


def fixed_rows(n: int, tokens: int) -> list[Row]:
    generator = np.random.default_rng(0)
    return [generator.integers(1, SIZES.vocabulary, tokens).tolist() for _ in range(n)]


def sizes_of_models() -> mock._patch_dict:
    """A dry run's sizes in place of those that the other suites have."""
    heads = models.EXIT_HEADS | {"classifier": (models.EXIT_HEADS["classifier"][0], SIZES.layers)}
    return mock.patch.dict(
        models.__dict__,
        LAYERS=SIZES.layers, HEADS_OF_ATTENTION=SIZES.attention_heads, VOCABULARY=SIZES.vocabulary, EXIT_HEADS=heads,
    )  # fmt: skip


def exit_layers(rows: Sequence[Row], speedup: float) -> np.ndarray:
    return replay_layers(rows, speedup, layers=SIZES.layers)


@functools.cache
def directory() -> Path:
    """Of checkpoints; a dry run's are of no use to others."""
    return Path(tempfile.mkdtemp(prefix="pfengine-dry-")) if DRY else CACHE


def path(hidden: int, head: str) -> Path:
    """Of a checkpoint, made where it is not there, by one process at a time; head: a key of `models.EXIT_HEADS`."""
    directory().mkdir(parents=True, exist_ok=True)
    with sizes_of_models(), (directory() / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return models.random_checkpoint(directory(), hidden, head)


How = Literal["as it is", "one graph", "eager"]


@functools.cache
def engine(hidden: int, head: str, device: torch.device, how: How = "as it is") -> pfengine.Engine:
    """As a user has it; where the run is dry, over the same kernels, interpreted.

    how: "one graph": a flight of few tokens is one graph; "eager": nothing is recorded.
    """
    if device.type == "cuda":
        made = pfengine.load(path(hidden, head), device="cuda", precision=SIZES.precision, criterion="never")
    else:
        made = engine_over(cuda, hidden, head, device)
    carrier = made.model.carrier
    assert isinstance(carrier, CudaModel)
    carrier.records, carrier.whole = how != "eager", how == "one graph"
    return made


@functools.cache
def int8_engine(hidden: int, device: torch.device) -> pfengine.Engine:
    """`engine` of the classifier with its large products in int8; where the run is dry, all else in fp32."""
    if device.type == "cuda":
        return pfengine.load(path(hidden, "classifier"), device="cuda", precision="int8", criterion="never")
    with mock.patch.object(cuda_linear, "BESIDE_INT8", SIZES.dtype):
        return engine_over(cuda, hidden, "classifier", device, torch.int8)


@functools.cache
def ragged_torch(hidden: int, device: torch.device) -> pfengine.Engine:
    """Ragged batches in plain torch operations: what the kernels replace."""
    return engine_over(reference, hidden, "classifier", device)


def engine_over(
    ops: OpSet, hidden: int, head: str, device: torch.device, dtype: torch.dtype = SIZES.dtype
) -> pfengine.Engine:
    ckpt = reader.read(path(hidden, head))
    plain = pfengine.load(ckpt.path, device="cpu", precision="fp32", criterion="never")
    plain.model, plain.device = build(ckpt, ops, dtype, device), device
    return plain


class Prediction:
    """`Engine.predict` of the same rows again and again."""

    def __init__(
        self,
        engine: pfengine.Engine,
        rows: Sequence[Row],
        batch: int,
        layers: np.ndarray | None = None,
        criterion: Any = "never",
    ) -> None:
        """layers: exit layers to replay, instead of the criterion."""
        self.engine, self.batch, self.layers = engine, batch, layers
        self.inputs = [{"input_ids": row} for row in rows]
        self.criterion = criterion if layers is None else Replay(layers.tolist())
        self.batch_tokens = max(sum(map(len, rows)), len(rows) + 1)  # the number of rows alone cuts batches

    def __call__(self) -> pfengine.api.Predictions:
        return self.engine.predict(
            self.inputs, criterion=self.criterion, batch_size=self.batch, batch_tokens=self.batch_tokens
        )

    def batches(self) -> list[Prediction]:
        """The same, a call per batch."""
        rows = [one["input_ids"] for one in self.inputs]
        parts = []
        for chosen in fixed_batches(rows, self.batch):
            layers = None if self.layers is None else self.layers[chosen]
            parts.append(Prediction(self.engine, [rows[i] for i in chosen], self.batch, layers, self.criterion))
        return parts
