"""One row from its ids to its answer in a single call: nothing of Python between the layers. On the CPU."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

from .. import extension
from .cpu import Embedding, PreparedBlock, PreparedExit
from .packing import Linear, kernels


class Alone(NamedTuple):
    native: Any  # _C.Alone: addresses of the parts below
    layers: int
    labels: int
    parts: tuple[Any, ...]


def prepare(
    embedding: Embedding,
    widen: Linear | None,
    layers: list[list[PreparedBlock]],
    exits: list[tuple[PreparedExit, int] | None],
) -> Alone:
    """The blocks of each layer, and its exit, if any, with the place in the past of the exit before from which on it
    adds (-1: it adds nothing)."""
    C, steps = extension.native(), []
    for blocks, behind in zip(layers, exits, strict=True):
        prepared, adds_from = behind or (None, -1)
        native = None if prepared is None else prepared.native
        steps.append(C.Step(blocks=[block.native for block in blocks], exit=native, adds_from=adds_from))
    last = exits[-1]
    assert last is not None
    native = C.Alone(
        embedding=embedding.native,
        widen=None if widen is None else widen.native,
        precision=C.Precision.fp32 if widen is None else widen.precision,
        steps=steps,
    )
    return Alone(native, len(steps), last[0].labels, (embedding, widen, layers, exits))


def run(
    weights: Alone, ids: np.ndarray, positions: np.ndarray, types: np.ndarray, tested: bytes, entropy: float, layer: int
) -> tuple[np.ndarray, int]:
    """The logits of the row with these ids, int64 [tokens] each: float32 [C], and the layer it left behind.

    It leaves behind the first layer i with tested[i - 1] that is `layer` or later or has an entropy below `entropy`,
    or else behind the last. Raises ValueError for wrong shapes and IndexError for an id outside its table.
    """
    for name, x in (("ids", ids), ("positions", positions), ("types", types)):
        if x.dtype != np.int64 or x.shape != (len(ids),):
            raise ValueError(f"{name} is {x.dtype} {list(x.shape)}, expected int64 [{len(ids)}]")
    if not len(ids) or len(tested) != weights.layers:
        raise ValueError(f"{len(tested)} layers for {len(ids)} tokens, expected {weights.layers} for a token or more")
    logits = np.empty(weights.labels, np.float32)
    left = extension.native().run_alone(
        kernels(),
        weights.native,
        tested,
        entropy,
        layer,
        ids,
        positions,
        types,
        logits,
        torch.get_num_threads(),
    )
    return logits, left
