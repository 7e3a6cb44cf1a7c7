"""A linear classifier after every layer, which answers alone or together with the classifiers before it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ..config import BackboneConfig
from ..families import Shapes
from ..ops import Exit, OpSet
from .base import PREFIX, HeadState, OwnTensors, Scores, register
from .poolers import Pooler, PoolerKind, pooler_shapes
from .prepared import PreparedHead
from .reading import READS, Reading

Combine = Literal["none", "ensemble", "vote"]


@register
class Linear(PreparedHead):
    """logits_i = W_i s_i + w_i. The state s_i is of what the exit reads (option `reads`; see `Reading`).

    Option `combine` (the naive global strategies of the Past-Future paper, over layers 1..i with
    p_j = softmax(logits_j)): "ensemble" answers with ln of the mean of p_1..p_i. "vote" answers with
    ln((votes + p_i) / (i + 1)), whose largest label is the one that most layers chose. p_i, less than one vote, breaks
    ties.

    Option `classifiers`: "per-layer", or "shared", one W and w for all layers.

    Option `learned`: does the head add sigmoid(u . s_i + v), with one u for all layers, which learns how likely the
    answer after layer i is wrong (BERxiT, Xin et al., EACL 2021, section 3.3)?

    Tensors (n layers, hidden size H, C labels): poolers [n or 1, H, H], classifiers [n or 1, C, H], each with its bias;
    where the head learns, learned [1, H] with its bias.
    """

    name = "linear"

    @staticmethod
    def config_faults(head: dict[str, Any]) -> list[str]:
        choices = {
            "pooler": get_args(PoolerKind), "classifiers": ("per-layer", "shared"), "combine": get_args(Combine),
            "reads": READS,
        }  # fmt: skip
        defaults = {"classifiers": "per-layer", "combine": "none", "reads": "first"}
        known = {"type", "learned", *choices}
        faults = [f"'head.{key}' is not an option of this head" for key in sorted(set(head) - known)]
        for key, values in choices.items():
            if head.get(key, defaults.get(key)) not in values:
                faults.append(f"'head.{key}' is {head.get(key)!r}; it must be one of {', '.join(values)}")
        if type(head.get("learned", False)) is not bool:
            faults.append(f"'head.learned' is {head['learned']!r}; it must be true or false")
        elif head.get("learned") and head.get("combine", "none") != "none":
            faults.append("'head.learned' is true; it must be false where 'head.combine' is not 'none'")
        return faults

    @staticmethod
    def learns(head: dict[str, Any]) -> bool:
        return bool(head.get("learned"))

    @staticmethod
    def shapes(config: BackboneConfig, head: dict[str, Any]) -> Shapes:
        n, hidden, labels = config.num_layers, config.hidden_size, config.num_labels
        count = 1 if head.get("classifiers") == "shared" else n
        shapes = pooler_shapes(head["pooler"], n, hidden) | {
            f"{PREFIX}classifiers.weight": (count, labels, hidden),
            f"{PREFIX}classifiers.bias": (count, labels),
        }
        shapes |= Reading.shapes(config, head)
        if head.get("learned"):
            shapes |= {f"{PREFIX}learned.weight": (1, hidden), f"{PREFIX}learned.bias": (1,)}
        return shapes

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
        self.reading = Reading(ops, head, t)
        self.pooler = Pooler(ops, head["pooler"], config.num_layers, t, dtype)
        weight, bias = t["classifiers.weight"], t["classifiers.bias"]
        classifiers = [ops.prepare_linear(w, b, torch.float32) for w, b in zip(weight, bias, strict=True)]
        classifiers *= config.num_layers // len(classifiers)
        learned = None
        if head.get("learned"):
            learned = ops.prepare_linear(t["learned.weight"], t["learned.bias"], torch.float32)
        self.exits = []
        for i, past in enumerate(classifiers):
            pooler = self.pooler.weights[i] if self.pooler.weights else None
            exit = Exit(config.num_labels, past, pooler, learned=learned, **self.reading.exit(i + 1))
            self.exits.append(ops.prepare_exit(exit))

    def prepared_exits(self) -> list[tuple[Any, int] | None] | None:
        return super().prepared_exits() if self.combine == "none" else None

    def step(
        self, layer: int, x: Tensor, cu_seqlens: Tensor, state: HeadState | None, answer: bool
    ) -> tuple[Scores | None, HeadState]:
        if self.combine == "none":
            return super().step(layer, x, cu_seqlens, state, answer)
        _, logits, _ = self.ops.exit(x, self.exits[layer - 1], None, answer=False)
        p = torch.softmax(logits, -1)
        if self.combine == "ensemble":
            total = p + state[0] if state else p
            return Scores(torch.log(total / layer)) if answer else None, (total,)
        votes = torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[1]).float()
        votes = votes + state[0] if state else votes
        return Scores(torch.log((votes + p) / (layer + 1))) if answer else None, (votes,)
