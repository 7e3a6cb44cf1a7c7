"""What environment variables set for a run, and where suites leave what is printed at its end."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

ROUNDS = int(os.environ.get("PFENGINE_BENCH_ROUNDS", "5"))
ROWS = int(os.environ.get("PFENGINE_BENCH_ROWS", "96"))
HIDDEN = tuple(int(size) for size in os.environ.get("PFENGINE_BENCH_HIDDEN", "384,768").split(","))
# of replayed exits
PRECISIONS = tuple(os.environ.get("PFENGINE_BENCH_PRECISIONS", "int8").split(","))
# beginnings of contestants' names, such as "OpenVINO,pfengine int8"; transformers fp32 always runs
CONTESTANTS = tuple(os.environ.get("PFENGINE_BENCH_CONTESTANTS", "").split(","))
# the folder of checkpoints and the peers' models of them, kept from run to run
CACHE = Path(os.environ.get("PFENGINE_BENCH_CACHE", "~/.cache/pfengine-bench")).expanduser()
# for test_quality: files of labelled rows, and of rows to calibrate peers on; default: the sentences of test_exits
QUALITY, CALIBRATION = os.environ.get("PFENGINE_BENCH_QUALITY"), os.environ.get("PFENGINE_BENCH_CALIBRATION")
JSON = os.environ.get("PFENGINE_BENCH_JSON")  # the report's path
# seconds that the default suite takes at most, peers' conversions included
SECONDS = float(os.environ.get("PFENGINE_BENCH_SECONDS", "220"))
PICTURES = os.environ.get("PFENGINE_BENCH_PICTURES")  # a directory

BatchSize = int | None  # None: "stream"
BUNDLED = "bundled"
# a hidden size: random weights and a classifier; "family-electra": those of another family; of the overview BUNDLED, or
# "random-768" for random weights and exits
Model = int | str


def batch_sizes(*default: BatchSize) -> tuple[BatchSize, ...]:
    """The batch sizes of PFENGINE_BENCH_BATCHES, such as "8,stream"."""
    said = os.environ.get("PFENGINE_BENCH_BATCHES")
    return tuple(None if size == "stream" else int(size) for size in said.split(",")) if said else default


def batch_name(size: BatchSize) -> str:
    return "stream" if size is None else str(size)


WriteLine = Callable[[str], None]
AT_THE_END = pytest.StashKey[list[Callable[[WriteLine], None]]]()  # functions that print something at the end of a run
