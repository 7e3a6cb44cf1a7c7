"""A linear classifier after every layer, which answers alone or together with those before it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ..batch import RaggedBatch
from ..config import BackboneConfig
from ..families import Shapes
from ..ops import Exit, OpSet
from .base import PREFIX, ExitHead, HeadState, OwnTensors
from .poolers import Pooler, PoolerKind, pooler_shapes

Combine = Literal["none", "ensemble", "vote"]


class Linear(ExitHead):
    """logits_i = W_i s_i + w_i, where s_i is the state of layer i.

    combine (the naive global strategies of the Past-Future paper, over layers 1..i with p_j = softmax(logits_j)):
    "ensemble" answers with the logarithm of the mean probabilities; "vote" with the label most layers chose, as
    ln((votes + p_i) / (i + 1)): p_i is less than one vote, breaks ties, and makes the votes a signal.

    Tensors (n layers, hidden size H, C labels): poolers [n or 1, H, H], classifiers [n, C, H], each with its bias.
    """

    @staticmethod
    def config_faults(head: dict[str, Any]) -> list[str]:
        choices = {"pooler": get_args(PoolerKind), "combine": get_args(Combine)}
        faults = [f"'head.{key}' is not an option of this head" for key in sorted(set(head) - {"type", *choices})]
        for key, known in choices.items():
            if head.get(key, "none" if key == "combine" else None) not in known:
                faults.append(f"'head.{key}' is {head.get(key)!r}; it must be one of {', '.join(known)}")
        return faults

    @staticmethod
    def shapes(config: BackboneConfig, head: dict[str, Any]) -> Shapes:
        n, hidden, labels = config.num_layers, config.hidden_size, config.num_labels
        return pooler_shapes(head["pooler"], n, hidden) | {
            f"{PREFIX}classifiers.weight": (n, labels, hidden),
            f"{PREFIX}classifiers.bias": (n, labels),
        }

    def __init__(
        self,
        ops: OpSet,
        config: BackboneConfig,
        head: dict[str, Any],
        tensors: Mapping[str, Tensor],
        dtype: torch.dtype,
    ) -> None:
        self.ops, self.combine = ops, head.get("combine", "none")
        t = OwnTensors(tensors)
        self.pooler = Pooler(ops, head["pooler"], config.num_layers, t, dtype)
        weight, bias = t["classifiers.weight"], t["classifiers.bias"]
        self.exits = []
        for i, (w, b) in enumerate(zip(weight, bias, strict=True)):
            pooler = self.pooler.weights[i] if self.pooler.weights else None
            parts = Exit(config.num_labels, past=ops.prepare_linear(w, b, torch.float32), pooler=pooler)
            self.exits.append(ops.prepare_exit(parts))

    def exits_in_one_call(self) -> list[tuple[Any, int] | None] | None:
        return [(exit, -1) for exit in self.exits] if self.combine == "none" else None

    def step(
        self, layer: int, batch: RaggedBatch, state: HeadState | None, answer: bool
    ) -> tuple[Tensor | None, HeadState]:
        if self.combine == "none" and not answer:
            return None, ()
        _, logits = self.ops.exit(batch.tokens, batch.cu_seqlens, self.exits[layer - 1], None, answer=False)
        if self.combine == "none":
            return logits, ()
        p = torch.softmax(logits, -1)
        if self.combine == "ensemble":
            total = p + state[0] if state else p
            return torch.log(total / layer) if answer else None, (total,)
        votes = torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[1]).float()
        votes = votes + state[0] if state else votes
        return torch.log((votes + p) / (layer + 1)) if answer else None, (votes,)
