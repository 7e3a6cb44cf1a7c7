"""What the environment says about a run, and its sizes: real ones on a GPU, tiny ones where it is dry."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import NamedTuple

import torch

ROOT = Path(__file__).parent.parent.parent
DRY = os.environ.get("PFENGINE_GPU_DRY") == "1"  # the whole way on a CPU, kernels interpreted; its times mean nothing
DOCS = os.environ.get("PFENGINE_GPU_DOCS") == "1"  # the report goes to docs/results, too
OUT = Path(os.environ.get("PFENGINE_GPU_OUT") or ROOT / "build" / "gpu")
STARTED = float(os.environ.get("PFENGINE_GPU_STARTED") or time.time())  # of the whole run, seconds since 1970
DEADLINE = float(os.environ.get("PFENGINE_GPU_DEADLINE") or 510)  # seconds from there


class Sizes(NamedTuple):
    hidden: tuple[int, ...]  # the first is that of the goals
    layers: int
    attention_heads: int
    vocabulary: int
    precision: str
    batches: tuple[int, ...]
    goal_batch: int  # at SST-2 lengths, against the peers
    large_batch: int
    least_rows: int  # of a cell with small batches, but no more than 16 of them
    fixed: int  # tokens a row
    most_tokens: int  # longer rows are cut
    speedups: tuple[float, ...]  # of layers, replayed
    gemm: int  # rows and columns of the matrices of the ceiling
    copy_bytes: int
    gemm_share: tuple[int, int]  # rows and tokens a row
    gemm_batches: int  # of them in a call
    latency_tokens: int
    rounds: int
    round_seconds: float  # a contestant's part of a round lasts as long at least

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self.precision == "fp32" else torch.bfloat16


REAL = Sizes(
    hidden=(768, 384), layers=12, attention_heads=12, vocabulary=8000, precision="bf16",
    batches=(1, 8, 32, 128, 512), goal_batch=128, large_batch=512, least_rows=64, fixed=128, most_tokens=512,
    speedups=(1.5, 2.0, 3.0, 4.0), gemm=8192, copy_bytes=4 << 30, gemm_share=(256, 128), gemm_batches=4,
    latency_tokens=32, rounds=7, round_seconds=0.03,
)  # fmt: skip
TINY = Sizes(
    hidden=(32,), layers=2, attention_heads=4, vocabulary=90, precision="fp32",
    batches=(1, 2), goal_batch=2, large_batch=3, least_rows=2, fixed=3, most_tokens=4, speedups=(1.5, 2.0),
    gemm=64, copy_bytes=1 << 16, gemm_share=(2, 3), gemm_batches=1, latency_tokens=4, rounds=1, round_seconds=0.0,
)  # fmt: skip
SIZES = TINY if DRY else REAL


def device() -> torch.device | None:
    """Where to measure; None where there is no GPU."""
    if DRY:
        return torch.device("cpu")
    return torch.device("cuda:0") if torch.cuda.is_available() else None


def seconds_left() -> float:
    return STARTED + DEADLINE - time.time()
