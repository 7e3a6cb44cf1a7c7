"""A batch from its ids to its answers in one call: nothing of Python, or torch, between the layers. On the CPU."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .. import extension
from ..batch import Packed
from .packing import Linear, kernels

if TYPE_CHECKING:
    from .cpu import Embedding, PreparedBlock, PreparedExit  # which offers what stands here


class PreparedModel(NamedTuple):
    native: Any  # _C.Model: addresses of the parts below
    parts: tuple[Any, ...]


class Rule(NamedTuple):
    """When rows leave. For R rows and n layers; a row leaves behind the last layer at the latest."""

    tested: bytes  # [n]: is the exit behind this layer tested?
    entropy: float  # a row leaves where its entropy is below this
    layers: np.ndarray | None  # int64 [R]: or behind this layer, 1-based, or a later one


def prepare_model(
    embedding: Embedding,
    widen: Linear | None,
    layers: list[list[PreparedBlock]],
    exits: list[tuple[PreparedExit, int] | None],
) -> Callable[..., None]:
    """As `OpSet.prepare_model` says."""
    C, steps = extension.native(), []
    for blocks, behind in zip(layers, exits, strict=True):
        prepared, adds_from = behind or (None, -1)
        native = None if prepared is None else prepared.native
        steps.append(C.Step(blocks=[block.native for block in blocks], exit=native, adds_from=adds_from))
    assert exits[-1] is not None
    native = C.Model(
        embedding=embedding.native,
        widen=None if widen is None else widen.native,
        precision=C.Precision.fp32 if widen is None else widen.precision,
        steps=steps,
    )
    return functools.partial(run_model, PreparedModel(native, (embedding, widen, layers, exits)))


def run_model(
    weights: PreparedModel,
    packed: Packed,
    rule: Rule,
    open_from: int,
    places: np.ndarray,
    logits: np.ndarray,
    exit_layers: np.ndarray,
) -> None:
    """R rows: logits[places[r]] and exit_layers[places[r]] become the answers of row r.

    places: int64 [R]; logits: float32 [P, C]; exit_layers: int64 [P], 1-based. open_from: from so many rows on a tested
    layer is computed in two halves.
    Arrays must be contiguous. Raises TypeError for another dtype or layout, ValueError for sizes that do not fit, and
    IndexError for an id outside its table.
    """
    extension.native().run_model(
        kernels(),
        weights.native,
        rule.tested,
        rule.entropy,
        rule.layers,
        open_from,
        packed.ids,
        packed.positions,
        packed.types,
        packed.cu_seqlens,
        places,
        logits,
        exit_layers,
        extension.threads(),
    )
