"""One example of every registered head, made from the tables, so that a new head is among them by itself."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from pfengine.config import BackboneConfig
from pfengine.heads import HEADS, PREFIX, OwnTensors, PreparedHead
from pfengine.heads.attached import has_exits
from pfengine.ops import Exit, OpSet
from pfengine.training import TrainingConfig
from pfengine.training.systems import SYSTEMS

LAYERS = 5  # of the encoders that tests make


class Knowing(PreparedHead):
    """A linear classifier per layer, and one for all layers of how likely the answer is wrong."""

    name = "knowing"

    @staticmethod
    def learns(head: dict[str, Any]) -> bool:
        return True

    @staticmethod
    def shapes(config: BackboneConfig, head: dict[str, Any]) -> dict[str, tuple[int, ...]]:
        n, hidden, labels = config.num_layers, config.hidden_size, config.num_labels
        classifiers = {f"{PREFIX}classifiers.weight": (n, labels, hidden), f"{PREFIX}classifiers.bias": (n, labels)}
        return classifiers | {f"{PREFIX}error.weight": (1, hidden), f"{PREFIX}error.bias": (1,)}

    def __init__(
        self, ops: OpSet, config: BackboneConfig, head: dict[str, Any], tensors: Mapping[str, Tensor],
        dtype: torch.dtype,
    ) -> None:  # fmt: skip
        own = OwnTensors(tensors)
        error = ops.prepare_linear(own["error.weight"], own["error.bias"], torch.float32)
        classifiers = zip(own["classifiers.weight"], own["classifiers.bias"], strict=True)
        past = [ops.prepare_linear(weight, bias, torch.float32) for weight, bias in classifiers]
        self.ops = ops
        self.exits = [ops.prepare_exit(Exit(config.num_labels, each, learned=error)) for each in past]


def examples() -> dict[str, dict[str, Any]]:
    """Heads by name: those of the systems, each once, and of each other type in the table one with few options."""
    found: dict[str, dict[str, Any]] = {}
    for name in SYSTEMS:
        head = TrainingConfig("", "", "", system=name).head(False, LAYERS)
        if head not in found.values():
            found[name] = head
    covered = {head["type"] for head in found.values()}
    for kind in HEADS:
        if kind in covered:
            continue
        if kind == "attached":
            exits = next(head for head in found.values() if has_exits(HEADS[head["type"]]))
            found[kind] = {"type": kind, "exits": exits}
        else:
            found[kind] = {"type": kind}
        faults = HEADS[kind].config_faults(found[kind])
        assert not faults, f"give the head {kind!r} options of its own here, or a system: {faults}"
    return found


def exit_layers(head: dict[str, Any]) -> tuple[int, ...]:
    """The layers after which such a head can answer."""
    encoder: Any = SimpleNamespace(num_layers=LAYERS)
    return HEADS[head["type"]].layers(encoder, head)
