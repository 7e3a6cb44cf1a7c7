"""The carrier of flights on the GPU, and `prepare_model`, which makes it."""

from __future__ import annotations

import contextlib
import math
import queue
import threading
from typing import Any

import numpy as np
import torch

from ..batch import Packed
from ..kernels.survivors import MAX_ROWS
from . import Exit
from .cuda_buffers import PreparedModel
from .cuda_flight import CudaFlight
from .cuda_lanes import Lane
from .cuda_ops import Embedding, Linear
from .flight import Answers
from .reference import PreparedBlock
from .rule import ExitRule

LANES = 2  # threads that are served at once: one flight computes while another is copied to or answered
MAX_FLIGHTS = 2 * LANES  # under way at once: each of them may hold one and start another, to join it


class CudaModel:
    """`Carrier` of a prepared model, on the GPU where its weights are.

    MAX_FLIGHTS flights may be under way; `start` waits until one is done, or dropped, where there are more.
    """

    def __init__(self, weights: PreparedModel) -> None:
        self.lanes, self.max_rows = LANES, MAX_ROWS
        self.weights = weights
        device = weights.embedding.tables[0].device
        if device.type == "cuda":
            torch.cuda.current_stream(device).synchronize()  # the weights are there for every stream
        self.free: queue.SimpleQueue[Lane] = queue.SimpleQueue()  # of which flights that are collected may make use
        self.made = 0
        self.making, self.warming = threading.Lock(), threading.Lock()

    def start(self, packed: Packed, slots: np.ndarray, answers: Answers) -> CudaFlight:
        rows, tokens = len(slots), len(packed.ids)
        lengths = {len(part) for part in (packed.positions, packed.types)}
        if len(packed.cu_seqlens) != rows + 1 or lengths != {tokens} or packed.cu_seqlens[-1] != tokens:
            raise ValueError(
                f"cu_seqlens has {len(packed.cu_seqlens)} numbers for {rows} rows and ends at {packed.cu_seqlens[-1]} "
                f"for {tokens} tokens; expected {rows + 1} numbers that end at {tokens}"
            )
        if not 1 <= rows <= self.max_rows:
            raise ValueError(f"there are {rows} rows; expected 1 to {self.max_rows} in a flight")
        self._check_ids(packed)
        return CudaFlight(self.take(), self.free.put, packed, slots, answers)

    def _check_ids(self, packed: Packed) -> None:
        """IndexError for an id outside its table: kernels give zeros there."""
        for name, ids, table in zip(("id", "position", "type"), packed[:3], self.weights.embedding.tables, strict=True):
            if ids.min() < 0 or ids.max() >= len(table):
                bad = int(ids.min() if ids.min() < 0 else ids.max())
                raise IndexError(f"a token has the {name} {bad}; expected 0 to {len(table) - 1}")

    def warmup(self, packed: Packed, rule: ExitRule) -> None:
        """Record what flights of this size launch, all the way, for as many lanes as threads are served."""
        nobody = rule._replace(
            clauses=tuple(
                clause._replace(threshold=np.full_like(clause.threshold, math.nan)) for clause in rule.clauses
            )
        )
        rows, n = len(packed.row_ids), len(self.weights.layers)
        slots = np.zeros(rows, np.int64)  # of which any rule has numbers
        with self.warming:
            lanes: list[Lane] = []
            try:
                for _ in range(self.lanes):
                    lanes.append(self.take())
                for lane in lanes:
                    for _ in range(2):  # recorded at the second time
                        answers = Answers(0, 1, self.weights.labels)
                        CudaFlight(lane, _keep, packed, slots, answers).advance(nobody, n)
            finally:
                for lane in lanes:
                    self.free.put(lane)

    def take(self) -> Lane:
        """A lane that nobody uses; a new one while there may be more."""
        with contextlib.suppress(queue.Empty):
            return self.free.get_nowait()
        with self.making:
            if self.made < MAX_FLIGHTS:
                lane = Lane(self.weights)
                self.made += 1
                return lane
        return self.free.get()


def _keep(lane: Lane) -> None:
    """Of a flight whose lane goes on to another one."""


def prepare_model(
    embedding: Embedding,
    projection: Linear | None,
    layers: list[list[PreparedBlock]],
    exits: list[tuple[Any, int] | None],
    renormalises: bool = False,
) -> CudaModel | None:
    last = exits[-1]
    assert last is not None
    parts: Exit = last[0]
    if parts.reads == "all":
        return None  # tokens that leave are carried by plain torch over this op set
    return CudaModel(PreparedModel(embedding, projection, layers, exits))
