"""The Global Past-Future exit head (Liao et al., NAACL 2021) in the form of the authors' code.

Where the code differs from the paper, the code is followed here: learners and projections are indexed by the layer
they stand for and shared by all sources, states are pooled with a tanh, and the merge carries a factor 2.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..batch import RaggedBatch
from ..config import BackboneConfig
from ..families import Shapes
from ..ops import OpSet
from .base import ExitHead, HeadState

PREFIX = "exit_head."
POOLERS = ("per-layer", "shared")


class PastFuture(ExitHead):
    """Past states, imitated future states, and a gate between them.

    With p_j = tanh(W_j h_j[first] + b_j) the state of layer j, and p~_j = tanh(L_j p_i + l_j) its imitation from
    layer i < j, each slot j is projected to 2C numbers, [a_j; g_j] = P_j p_j + q_j. Then

        past   = sum_{j<=i} a_j                       future = sum_{j>i} a_j(p~_j)
        lambda = sigmoid(G tanh(mean_{j<=i} g_j) + c)     per label (the paper's eq. 7-8, which have one a row)
        logits = 2 lambda past + (2 - 2 lambda) future

    Tensors (n layers, hidden size H, C labels): poolers [n or 1, H, H], learners [n - 1, H, H] for layers 2..n,
    projections [n, 2C, H], gate [C, C], each with its bias.
    """

    @staticmethod
    def config_faults(head: dict[str, Any]) -> list[str]:
        faults = [f"'head.{key}' is not an option of this head" for key in sorted(set(head) - {"type", "pooler"})]
        if head.get("pooler") not in POOLERS:
            faults.append(f"'head.pooler' is {head.get('pooler')!r}; it must be one of {', '.join(POOLERS)}")
        return faults

    @staticmethod
    def shapes(config: BackboneConfig, head: dict[str, Any]) -> Shapes:
        n, hidden, labels = config.num_layers, config.hidden_size, config.num_labels
        poolers = 1 if head["pooler"] == "shared" else n
        return {
            f"{PREFIX}poolers.weight": (poolers, hidden, hidden),
            f"{PREFIX}poolers.bias": (poolers, hidden),
            f"{PREFIX}learners.weight": (n - 1, hidden, hidden),
            f"{PREFIX}learners.bias": (n - 1, hidden),
            f"{PREFIX}projections.weight": (n, 2 * labels, hidden),
            f"{PREFIX}projections.bias": (n, 2 * labels),
            f"{PREFIX}gate.weight": (labels, labels),
            f"{PREFIX}gate.bias": (labels,),
        }

    def __init__(
        self, ops: OpSet, config: BackboneConfig, head: dict[str, Any], tensors: dict[str, Tensor], dtype: torch.dtype
    ) -> None:
        self.ops, self.num_layers = ops, config.num_layers
        weight = {key: tensors[f"{PREFIX}{key}.weight"] for key in ("poolers", "learners", "projections", "gate")}
        bias = {key: tensors[f"{PREFIX}{key}.bias"] for key in weight}
        poolers = [ops.prepare_linear(w, b, dtype) for w, b in zip(weight["poolers"], bias["poolers"], strict=True)]
        self.poolers = poolers * (self.num_layers if head["pooler"] == "shared" else 1)
        self.projections = [
            ops.prepare_linear(w, b, torch.float32)
            for w, b in zip(weight["projections"], bias["projections"], strict=True)
        ]
        # A guess is projected to logits only: its gate half is never read.
        labels = config.num_labels
        self.imitation = ops.prepare_imitation(
            weight["learners"],
            bias["learners"],
            weight["projections"][1:, :labels],
            bias["projections"][1:, :labels],
            dtype,
        )
        self.gate = ops.prepare_linear(weight["gate"], bias["gate"], torch.float32)

    def step(
        self, layer: int, batch: RaggedBatch, state: HeadState | None, answer: bool
    ) -> tuple[Tensor | None, HeadState]:
        pooled = self.ops.linear(batch.first(), self.poolers[layer - 1], "tanh")
        past = self.ops.linear(pooled, self.projections[layer - 1], "none")  # [rows, 2C]
        if state is not None:
            past = past + state[0]
        if not answer:
            return None, (past,)
        future = self.ops.imitation(pooled, self.imitation, layer) if layer < self.num_layers else None
        return self.ops.gate_merge(past, future, self.gate, layer), (past,)
