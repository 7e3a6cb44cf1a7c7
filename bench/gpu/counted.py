"""FLOPs and bytes of every kernel of a pass, counted from what would be launched; no GPU, and no weights."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pfengine import api
from pfengine.checkpoint import Checkpoint
from pfengine.config import parse_backbone
from pfengine.heads import HEADS
from pfengine.manifest import Manifest
from pfengine.ops import cuda
from pfengine.ops.cuda_lanes import CudaModel
from pfengine.ops.cuda_model import PreparedModel

from ..models import EXIT_HEADS, HEADS_OF_ATTENTION, LAYERS, VOCABULARY
from ..rows import make_rows
from .launches import Ceilings, Line, Pass, lines, weight_bytes

LEADS = Ceilings(790e12, 4.3e12, measured=False)  # said of an H200; not measured here
HIDDEN = (768, 384)
BATCHES = (1, 128, 512)
ONE_ROW = 25  # tokens: SST-2's average


class Counted(NamedTuple):
    """A pass of 12 layers with every exit tested, nobody leaving."""

    hidden: int
    rows: int
    tokens: int
    lines: list[Line]
    floor_seconds: float  # sum over all launches
    encoder_floor_seconds: float  # the same where no exit is tested
    flops: int
    encoder_launches: int
    encoder_flops: int
    encoder_bytes: int
    weight_bytes: int  # of all matrices and vectors, no exit tested
    whole_floor_seconds: float  # no exit tested: all FLOPs, or every weight read once, whichever is longer


def lengths(batch: int) -> list[int]:
    """Tokens of each row, as SST-2's; a single row is as long as the average."""
    return [ONE_ROW] if batch == 1 else [len(row) for row in make_rows(batch)]


@functools.cache
def meta_weights(hidden: int, head: str = "authors", layers: int = LAYERS, labels: int = 2) -> PreparedModel:
    """A model prepared for the GPU in bf16, its numbers nowhere; head: a key of EXIT_HEADS."""
    return prepare(hidden, EXIT_HEADS[head][0], layers, labels)


def prepare(hidden: int, head: dict[str, Any], layers: int = LAYERS, labels: int = 2) -> PreparedModel:
    """head: as in pfengine.json."""
    raw = {
        "model_type": "bert", "hidden_size": hidden, "num_hidden_layers": layers, "intermediate_size": 4 * hidden,
        "num_attention_heads": HEADS_OF_ATTENTION, "vocab_size": VOCABULARY, "max_position_embeddings": 512,
        "type_vocab_size": 2, "hidden_act": "gelu", "id2label": {str(i): str(i) for i in range(labels)},
    }  # fmt: skip
    faults: list[str] = []
    backbone = parse_backbone(raw, faults)
    assert backbone is not None, faults
    shapes = backbone.encoder_shapes() | HEADS[head["type"]].shapes(backbone, head)
    tensors = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    engine = Manifest(system="meta", head=head, criterion="never", exit_layers=tuple(range(1, layers + 1)))
    model = api.build(Checkpoint(Path(), backbone, engine, tensors, None), cuda, torch.bfloat16)
    assert isinstance(model.native, CudaModel)
    return model.native.weights


def tested(weights: PreparedModel, every: bool) -> bytes:
    """Which exits are: every one, or none but the last, which answers in any case."""
    return bytes(every and behind is not None for behind in weights.exits)


def count(hidden: int, rows: Sequence[int], ceilings: Ceilings) -> Counted:
    """rows: tokens of each."""
    weights = meta_weights(hidden)
    every, none = (Pass(weights, rows, tested(weights, exits)) for exits in (True, False))
    found, encoder = (lines(one.noted(), one.use, ceilings) for one in (every, none))
    flops, encoder_flops = (sum(line.cost.flops for line in table) for table in (found, encoder))
    weights_moved = weight_bytes(none.noted())
    return Counted(
        hidden=hidden,
        rows=len(rows),
        tokens=sum(rows),
        lines=found,
        floor_seconds=sum(line.floor_seconds for line in found),
        encoder_floor_seconds=sum(line.floor_seconds for line in encoder),
        flops=flops,
        encoder_launches=sum(line.launches for line in encoder),
        encoder_flops=encoder_flops,
        encoder_bytes=sum(line.cost.bytes for line in encoder),
        weight_bytes=weights_moved,
        whole_floor_seconds=max(encoder_flops / ceilings.flops, weights_moved / ceilings.bytes),
    )


def counted(ceilings: Ceilings = LEADS) -> list[Counted]:
    return [count(hidden, lengths(batch), ceilings) for hidden in HIDDEN for batch in BATCHES]
