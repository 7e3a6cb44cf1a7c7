"""What a pass launches and what that costs: counted without a GPU and without weights, or noted as it runs."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from pfengine.checkpoint import Checkpoint
from pfengine.config import parse_backbone
from pfengine.heads import HEADS
from pfengine.kernels.launch import Launch, recording
from pfengine.kernels.scratch import Scratch
from pfengine.manifest import Manifest
from pfengine.model import build
from pfengine.ops import cuda
from pfengine.ops.cuda_buffers import Bucket, Buffers, PreparedModel, Sizes
from pfengine.ops.cuda_flight import OVERLAP_TOKENS
from pfengine.ops.cuda_model import CudaModel
from pfengine.ops.cuda_rule import form_of, numbers_of
from pfengine.ops.cuda_segment import Position, run_segment, segments
from pfengine.ops.rule import Clause, ExitRule, values

from ..models import EXIT_HEADS, HEADS_OF_ATTENTION, LAYERS, VOCABULARY
from ..rows import make_rows
from .costs import Cost, Use, cost, name

NOBODY_LEAVES = (Clause("entropy", "<", values(-math.inf)),)
WEIGHTS = (
    "weight", "weight_steps", "weight_sums", "bias", "score", "score_bias", "learners", "learner_bias", "projection",
    "offset", "gate", "gate_bias",
)  # fmt: skip


class Pass:
    """A batch on its way through a model, in buffers exactly as large as it is."""

    def __init__(
        self,
        weights: PreparedModel,
        lengths: Sequence[int],
        tested: bytes,
        vocabulary: int = 2,
        overlap: bool | None = None,
    ) -> None:
        """tested: as in `ExitRule`; overlap: as in `Segment`, None: as a flight would have it."""
        self.weights, self.use, self.vocabulary = weights, Use(tuple(lengths)), vocabulary
        if overlap is None:
            overlap = any(tested[:-1]) and sum(lengths) <= OVERLAP_TOKENS
        self.bucket = Bucket(len(lengths), sum(lengths), max(lengths), sum(lengths))
        self.exit_rule = ExitRule(tested, NOBODY_LEAVES if any(tested) else ())
        self.rule = form_of(self.exit_rule)
        n, width = len(weights.layers), sum(self.rule.widths(weights.labels))
        self.segments = segments(weights, Position(), self.rule, tested, n, scores=True, overlap=overlap)
        with torch.inference_mode():
            numbers = numbers_of(self.exit_rule).size
            device = weights.embedding.tables[0].device
            words = torch.zeros(n + 1, 4, dtype=torch.int64, pin_memory=device.type == "cuda")
            sizes = Sizes(self.bucket.rows, self.bucket.tokens, numbers, width)
            self.buffers = Buffers(weights, sizes, words, (Scratch(device), Scratch(device)))
            if self.buffers.inbox.words.device.type != "meta":
                self.fill()

    @torch.inference_mode()
    def fill(self) -> None:
        """Send the batch, as before the first layer."""
        buffers, generator = self.buffers, np.random.default_rng(3)
        counts, bounds = buffers.counts_and_bounds(buffers.inbox)
        numbers, _ = buffers.numbers(buffers.inbox, self.rule)
        ids, positions, types = buffers.ids(buffers.inbox, self.bucket.tokens)
        lengths = self.use.lengths
        for to, given in (
            (counts, np.array([self.bucket.rows, self.bucket.tokens])),
            (bounds, np.cumsum([0, *lengths])),
            (numbers, numbers_of(self.exit_rule)),
            (ids, generator.integers(1, self.vocabulary, self.bucket.tokens)),
            (positions, np.concatenate([np.arange(length) for length in lengths])),
        ):
            to.copy_(torch.from_numpy(given))
        types.zero_()
        buffers.exit_layers.zero_()

    @torch.inference_mode()
    def run(self) -> None:
        for segment in self.segments:
            run_segment(self.weights, self.buffers, segment, self.bucket)
        for scratch in self.buffers.scratch:
            if scratch.is_too_small():
                scratch.grow()

    def noted(self, run: bool = False) -> list[Launch]:
        """What is launched; on the meta device too, where it does not run."""
        with recording(run) as launches:
            self.run()
        return launches


def label(launch: Launch, use: Use) -> str:
    """What a line of a table is about: the kernel, the shape of a product, what is fused with it.

    Both kernels of `linear` are that: which one runs depends on the device.
    """
    kind, arguments, constants = name(launch).removeprefix("tma_"), launch.arguments, launch.constants
    if kind == "linear" and arguments["weight"].dtype == torch.int8:
        kind = "int8_linear"
    parts = [kind]
    if kind in ("linear", "thin_linear", "int8_linear"):
        columns, inner = arguments["weight"].shape
        parts[0] += f" {columns} x {inner}"
        parts += [constants["ACTIVATION"]] if constants.get("ACTIVATION", "none") != "none" else []
        parts += ["+ add"] if arguments["add"] is not None else []
    of_tokens = kind in ("linear", "int8_linear", "add_layer_norm", "quantise_rows", "attention")
    written = arguments["numbers" if arguments.get("out") is None else "out"] if of_tokens else ()
    if len(written) == len(use.lengths) != sum(use.lengths):
        parts.append("first tokens")
    return ", ".join(parts)


class Line(NamedTuple):
    """Launches of a pass with the same label; cost: of all of them together."""

    label: str
    launches: int
    cost: Cost
    floor_seconds: float  # sum over the launches


class Ceilings(NamedTuple):
    flops: float  # per second, of a large matrix product
    bytes: float  # per second, read and written
    measured: bool

    def seconds(self, cost: Cost) -> float:
        return max(cost.flops / self.flops, cost.bytes / self.bytes)


def lines(launches: Sequence[Launch], use: Use, ceilings: Ceilings) -> list[Line]:
    """In the order of the first launch of each."""
    found: dict[str, Line] = {}
    for launch in launches:
        key, here = label(launch, use), cost(launch, use)
        line = found.get(key, Line(key, 0, Cost(0, 0), 0.0))
        total = Cost(line.cost.flops + here.flops, line.cost.bytes + here.bytes)
        found[key] = Line(key, line.launches + 1, total, line.floor_seconds + ceilings.seconds(here))
    return list(found.values())


def weight_bytes(launches: Sequence[Launch]) -> int:
    """Of matrices and vectors that launches read, each once."""
    return sum(
        launch.arguments[key].numel() * launch.arguments[key].element_size()
        for launch in launches
        for key in WEIGHTS
        if launch.arguments.get(key) is not None
    )


def signature(launch: Launch) -> str:
    """The same for launches that take the same time: one kernel on the same shapes, whatever the numbers."""
    arguments = {
        key: (value.dtype, tuple(value.shape)) if isinstance(value, torch.Tensor) else value
        for key, value in launch.arguments.items()
        if key != "layer" and not isinstance(value, float)
    }
    return repr((name(launch), arguments, launch.constants))


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


def prepare(
    hidden: int, head: dict[str, Any], layers: int = LAYERS, labels: int = 2, dtype: torch.dtype = torch.bfloat16
) -> PreparedModel:
    """head: as in pfengine.json. dtype: of the large products."""
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
    model = build(Checkpoint(Path(), backbone, engine, tensors, None), cuda, dtype)
    assert isinstance(model.carrier, CudaModel)
    return model.carrier.weights


def tested(weights: PreparedModel, every: bool) -> bytes:
    """Which exits are: every one, or none but the last, which answers in any case."""
    return bytes(every and after is not None for after in weights.exits)


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
