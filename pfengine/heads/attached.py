"""Exits added to a finished model: its own classifier answers after the last layer, another head before it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..config import BackboneConfig
from ..families import Shapes
from ..ops import OpSet, Reads
from .base import HEADS, ExitHead, HeadState, Scores, register
from .classifier import Classifier


@register
class Attached(ExitHead):
    """The head `exits` answers after layers before the last, the model's own classifier after the last.

    Option `exits` is the `head` object of another head that scores rows, such as "past-future", with the same number of
    layers. Its exit after the last layer is not used.
    """

    name = "attached"

    @staticmethod
    def config_faults(head: dict[str, Any]) -> list[str]:
        faults = [f"'head.{key}' is not an option of this head" for key in sorted(set(head) - {"type", "exits"})]
        exits, known = head.get("exits"), sorted(name for name, kind in HEADS.items() if has_exits(kind))
        if not isinstance(exits, dict) or exits.get("type") not in known:
            return [*faults, f"'head.exits' is {exits!r}; it must be a head of type {' or '.join(known)}"]
        inner = HEADS[exits["type"]].config_faults(exits)
        return [*faults, *(fault.replace("'head.", "'head.exits.") for fault in inner)]

    @staticmethod
    def learns(head: dict[str, Any]) -> bool:
        return HEADS[head["exits"]["type"]].learns(head["exits"])

    @staticmethod
    def layers(config: BackboneConfig, head: dict[str, Any]) -> tuple[int, ...]:
        inner = HEADS[head["exits"]["type"]].layers(config, head["exits"])
        return (*(layer for layer in inner if layer < config.num_layers), config.num_layers)

    @staticmethod
    def shapes(config: BackboneConfig, head: dict[str, Any]) -> Shapes:
        return HEADS[head["exits"]["type"]].shapes(config, head["exits"]) | Classifier.shapes(config, {})

    @classmethod
    def level(cls, config: BackboneConfig, head: dict[str, Any]) -> dict[str, Tensor]:
        return HEADS[head["exits"]["type"]].level(config, head["exits"])

    def __init__(
        self,
        ops: OpSet,
        config: BackboneConfig,
        head: dict[str, Any],
        tensors: Mapping[str, Tensor],
        dtype: torch.dtype,
    ) -> None:
        self.num_layers = config.num_layers
        self.exits = HEADS[head["exits"]["type"]](ops, config, head["exits"], tensors, dtype)
        self.classifier = Classifier(ops, config, {"type": "classifier"}, tensors, dtype)

    def reads(self, layer: int) -> Reads:
        return (self.classifier if layer == self.num_layers else self.exits).reads(layer)

    def queries(self, layer: int) -> Any:
        return self.exits.queries(layer)

    def prepared_exits(self) -> list[tuple[Any, int] | None] | None:
        exits, classifier = self.exits.prepared_exits(), self.classifier.prepared_exits()
        if exits is None or classifier is None:
            return None
        return [*exits[:-1], classifier[-1]]

    def step(
        self, layer: int, x: Tensor, cu_seqlens: Tensor, state: HeadState | None, answer: bool
    ) -> tuple[Scores | None, HeadState]:
        if layer == self.num_layers:
            return self.classifier.step(layer, x, cu_seqlens, (), answer)
        return self.exits.step(layer, x, cu_seqlens, state, answer)


def has_exits(kind: type[ExitHead]) -> bool:
    """Does it score rows, after other layers than the last too?"""
    return not kind.tags and not issubclass(kind, (Attached, Classifier))
