"""A model: an encoder and its exit head, prepared for one op set, and the carrier that takes batches through them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .checkpoint import Checkpoint
from .config import BackboneConfig
from .encoder import Encoder, prepare
from .heads import HEADS, ExitHead
from .ops import OpSet
from .ops.flight import Carrier
from .ops.rule import ExitRule
from .token_flight import TokenFlight
from .torch_flight import TorchCarrier, TorchFlight
from .torch_state import isolated


@dataclass(frozen=True)
class Model:
    """The prepared parts of a checkpoint."""

    config: BackboneConfig
    encoder: Encoder
    head: ExitHead
    exit_layers: tuple[int, ...]  # layers whose exits may be tested; the last layer is always among them
    carrier: Carrier
    learned: bool = False  # does the head add a score of its own?

    @property
    def num_layers(self) -> int:
        return self.config.num_layers

    @property
    def worker_threads(self) -> int:
        """How many threads take batches through the layers, for the best throughput."""
        return self.carrier.worker_threads

    @property
    def full_depth(self) -> ExitRule:
        """The rule under which nobody leaves before the last layer."""
        return ExitRule(bytes(self.num_layers))


def build(ckpt: Checkpoint, ops: OpSet, dtype: torch.dtype, device: torch.device | None = None) -> Model:
    """Prepare the weights of a checkpoint for an op set, which computes its large products in `dtype` on `device`.

    device: the CPU where it is None.
    """
    tensors = ckpt.tensors
    if device is not None and device.type != "cpu":
        tensors = {key: value.to(device) for key, value in tensors.items()}
    kind, options, exit_layers = HEADS[ckpt.manifest.head["type"]], ckpt.manifest.head, ckpt.manifest.exit_layers
    learned = kind.learns(options)
    with isolated():
        head = kind(ops, ckpt.backbone, options, tensors, dtype)
        encoder, exits = prepare(ops, ckpt.backbone, tensors, dtype), head.prepared_exits()
        carrier: Carrier | None = None
        if exits is not None:
            carrier = ops.prepare_model(
                encoder.embedding,
                encoder.embedding_projection,
                encoder.layers,
                exits,
                head.renormalises,
                encoder.final_norm,
            )
        if carrier is None:
            flight, where = TokenFlight if head.tags else TorchFlight, device or torch.device("cpu")
            carrier = TorchCarrier(flight, encoder, head, exit_layers, ckpt.backbone.num_labels, where, learned)
        return Model(ckpt.backbone, encoder, head, exit_layers, carrier, learned)
