"""The heads of taggers: a linear classifier of every word after each layer, or after the last one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..config import BackboneConfig
from ..families import Shapes
from ..ops import Exit, OpSet, Reads
from .base import PREFIX, OwnTensors, register
from .classifier import pooler_of
from .prepared import PreparedHead

CHOICES = {"frozen": ("kept", "renormalised"), "freezes": ("words", "first-pieces")}


@register
class Tagger(PreparedHead):
    """logits_i = W_i h_i + w_i for the hidden state h_i of each word after layer i (SENTEE and TOKEE, Li et al. 2021).

    The state of a word is that of its first piece. Option `frozen`, the state of a token that has left: "kept", or
    "renormalised" by each later layer's output norm. Option `freezes`, which tokens leave with a word: "words", all its
    pieces, or "first-pieces", the first one alone (`copy_wordpiece` of the authors' code, "all" or "first").

    Tensors (n layers, hidden size H, C labels): classifiers [n, C, H] and [n, C].
    """

    name = "tagger"
    tags = True

    @staticmethod
    def config_faults(head: dict[str, Any]) -> list[str]:
        faults = [f"'head.{key}' is not an option of this head" for key in sorted(set(head) - {"type", *CHOICES})]
        for key, known in CHOICES.items():
            if head.get(key, known[0]) not in known:
                faults.append(f"'head.{key}' is {head[key]!r}; it must be one of {', '.join(known)}")
        return faults

    @staticmethod
    def misfits(config: BackboneConfig, head: dict[str, Any]) -> list[str]:
        if head.get("frozen") != "renormalised" or not config.family.norm_first:
            return []
        return [f"'head.frozen' is 'renormalised'; layers of {config.family.name} do not end with a norm: use 'kept'"]

    @staticmethod
    def shapes(config: BackboneConfig, head: dict[str, Any]) -> Shapes:
        n, hidden, labels = config.num_layers, config.hidden_size, config.num_labels
        return {
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
        self.ops, self.renormalises = ops, head.get("frozen") == "renormalised"
        self.freezes_first_pieces = head.get("freezes") == "first-pieces"
        t = OwnTensors(tensors)
        weight, bias = t["classifiers.weight"], t["classifiers.bias"]
        classifiers = [ops.prepare_linear(w, b, torch.float32) for w, b in zip(weight, bias, strict=True)]
        self.exits = [ops.prepare_exit(Exit(config.num_labels, past=own, reads="all")) for own in classifiers]

    def reads(self, layer: int) -> Reads:
        return "all"


@register
class TokenClassifier(PreparedHead):
    """logits = W h + w after the last layer: the head of a plain Hugging Face token-classification model.

    That of ModernBERT applies it to f(V h + v), normalised, as its sequence classifier does; see `Classifier`.
    """

    name = "token-classifier"
    tags = True

    @staticmethod
    def layers(config: BackboneConfig, head: dict[str, Any]) -> tuple[int, ...]:
        return (config.num_layers,)

    @staticmethod
    def shapes(config: BackboneConfig, head: dict[str, Any]) -> Shapes:
        if config.family.pooler_norm is not None:
            return config.classifier_shapes()
        return {"classifier.weight": (config.num_labels, config.hidden_size), "classifier.bias": (config.num_labels,)}

    def __init__(
        self,
        ops: OpSet,
        config: BackboneConfig,
        head: dict[str, Any],
        tensors: Mapping[str, Tensor],
        dtype: torch.dtype,
    ) -> None:
        self.ops = ops
        past = ops.prepare_linear(tensors["classifier.weight"], tensors["classifier.bias"], torch.float32)
        pooler: dict[str, Any] = {}
        if config.family.pooler_norm is not None:
            pooler = pooler_of(ops, config, tensors, dtype)
        exit = ops.prepare_exit(Exit(config.num_labels, past=past, reads="all", **pooler))
        self.exits = [*[None] * (config.num_layers - 1), exit]

    def reads(self, layer: int) -> Reads:
        return "all"
