"""What is computed: checkpoints with random weights, rows of token ids, engines over them."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple
from unittest import mock

import numpy as np
import torch

import pfengine
from pfengine import api, reader
from pfengine.exits import Replay
from pfengine.ops import OpSet, cuda, reference

from .. import models
from .. import rows as bench_rows
from ..knobs import CACHE
from ..rows import Row, fixed_batches, make_rows, replay_layers
from .knobs import DRY, SIZES

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
    with mock.patch.object(bench_rows, "LAYERS", SIZES.layers):
        return replay_layers(rows, speedup)


@functools.cache
def directory() -> Path:
    """Of checkpoints; a dry run's are of no use to others."""
    return Path(tempfile.mkdtemp(prefix="pfengine-dry-")) if DRY else CACHE


def path(hidden: int, head: str) -> Path:
    """Of a checkpoint, made where it is not there; head: a key of `models.EXIT_HEADS`."""
    with sizes_of_models():
        return models.random_checkpoint(directory(), hidden, head)


@functools.cache
def engine(hidden: int, head: str, device: torch.device) -> pfengine.Engine:
    """As a user has it; where the run is dry, over the same kernels, interpreted."""
    if device.type == "cuda":
        return pfengine.load(path(hidden, head), device="cuda", precision=SIZES.precision, criterion="never")
    return engine_over(cuda, hidden, head, device)


@functools.cache
def ragged_torch(hidden: int, device: torch.device) -> pfengine.Engine:
    """Ragged batches in plain torch operations: what the kernels replace."""
    return engine_over(reference, hidden, "classifier", device)


def engine_over(ops: OpSet, hidden: int, head: str, device: torch.device) -> pfengine.Engine:
    ckpt = reader.read(path(hidden, head))
    plain = pfengine.load(ckpt.path, device="cpu", precision="fp32", criterion="never")
    plain.model, plain.device = api.build(ckpt, ops, SIZES.dtype, device), device
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
        """The same, a call a batch."""
        rows = [one["input_ids"] for one in self.inputs]
        parts = []
        for chosen in fixed_batches(rows, self.batch):
            layers = None if self.layers is None else self.layers[chosen]
            parts.append(Prediction(self.engine, [rows[i] for i in chosen], self.batch, layers, self.criterion))
        return parts
