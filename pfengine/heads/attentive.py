"""FastBERT's classifiers: narrow self-attention over all tokens of a row, after every layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

import torch
from torch import Tensor

from ..config import BackboneConfig
from ..families import Shapes
from ..json_fields import is_int
from ..ops import Attentive as Parts
from ..ops import Exit, OpSet, Reads, TokenPooling
from ..ops.padding import pad_inputs, pad_outputs
from .base import PREFIX, HeadState, OwnTensors, Scores, register
from .prepared import PreparedHead

WIDTH, HEADS_OF_WIDTH = 128, 2  # the authors'


@register
class Attentive(PreparedHead):
    """logits_i = W tanh(D pool(O attention(tanh(N h)))), the student and teacher classifiers of FastBERT.

    (Liu et al., ACL 2020, section 3.2 and figure 2.) h are the hidden states of all tokens of a row after layer i, N
    makes them narrow, and attention has no residual and no norm. All of N, D, O, W and the projections of the attention
    are linear layers with biases, and each layer has its own.

    Options: `width` of the attention and number of its `heads`, by default the authors' 128 and 2. `pooling`: "first",
    the row's first token, or "max", for each number the greatest among the row's tokens.

    In bf16 and int8 all products but the last are narrow ones, as in the encoder: only W is in float32.

    Tensors (n layers, hidden size H, width w, C labels), each with its bias: narrow [n, w, H], query, key, value,
    output and dense [n, w, w], classifiers [n, C, w].
    """

    name = "attentive"

    @staticmethod
    def config_faults(head: dict[str, Any]) -> list[str]:
        known = {"type", "width", "heads", "pooling"}
        faults = [f"'head.{key}' is not an option of this head" for key in sorted(set(head) - known)]
        width, heads, pooling = (_option(head, key) for key in ("width", "heads", "pooling"))
        for key, number in (("width", width), ("heads", heads)):
            if not (is_int(number) and number >= 1):
                faults.append(f"'head.{key}' is {number!r}; it must be an integer >= 1")
        if not faults and width % heads:
            faults.append(f"'head.width' is {width}, which the {heads} heads do not divide")
        if pooling not in get_args(TokenPooling):
            faults.append(f"'head.pooling' is {pooling!r}; it must be one of {', '.join(get_args(TokenPooling))}")
        return faults

    @staticmethod
    def shapes(config: BackboneConfig, head: dict[str, Any]) -> Shapes:
        n, width = config.num_layers, _option(head, "width")
        sizes = {"narrow": (width, config.hidden_size), "classifiers": (config.num_labels, width)}
        sizes |= dict.fromkeys(("query", "key", "value", "output", "dense"), (width, width))
        weights: Shapes = {f"{PREFIX}{name}.weight": (n, *size) for name, size in sizes.items()}
        return weights | {f"{PREFIX}{name}.bias": (n, size[0]) for name, size in sizes.items()}

    def __init__(
        self,
        ops: OpSet,
        config: BackboneConfig,
        head: dict[str, Any],
        tensors: Mapping[str, Tensor],
        dtype: torch.dtype,
    ) -> None:
        self.ops, width, heads = ops, _option(head, "width"), _option(head, "heads")
        names = ("narrow", "query", "key", "value", "output", "dense", "classifiers")
        t = OwnTensors(tensors)
        stacked = {name: list(zip(t[f"{name}.weight"], t[f"{name}.bias"], strict=True)) for name in names}
        self.attentive, self.exits = [], []
        for i in range(config.num_layers):
            part = {name: each[i] for name, each in stacked.items()}
            qkv = [pad_outputs(*part[name], heads, ops.HEAD_ALIGNMENT) for name in ("query", "key", "value")]
            output, bias = part["output"]
            attentive = ops.prepare_attentive(
                Parts(
                    narrow=part["narrow"],
                    qkv=(torch.cat([weight for weight, _ in qkv]), torch.cat([bias for _, bias in qkv])),
                    output=(pad_inputs(output, heads, ops.HEAD_ALIGNMENT), bias),
                    num_heads=heads,
                    scale=(width // heads) ** -0.5,
                    pooling=_option(head, "pooling"),
                ),
                dtype,
            )
            classifier = ops.prepare_linear(*part["classifiers"], torch.float32)
            dense = ops.prepare_linear(*part["dense"], dtype)
            self.attentive.append(attentive)
            self.exits.append(
                ops.prepare_exit(Exit(config.num_labels, classifier, dense, reads="all", attentive=attentive))
            )

    def reads(self, layer: int) -> Reads:
        return "all"

    def step(
        self, layer: int, x: Tensor, cu_seqlens: Tensor, state: HeadState | None, answer: bool
    ) -> tuple[Scores | None, HeadState]:
        if not answer:
            return None, ()
        pooled = self.ops.attentive(x, cu_seqlens, self.attentive[layer - 1])
        return super().step(layer, pooled, cu_seqlens, state, answer)


def _option(head: Mapping[str, Any], key: str) -> Any:
    return head.get(key, {"width": WIDTH, "heads": HEADS_OF_WIDTH, "pooling": "first"}[key])
