"""Freezing lower layers while exits are trained jointly, in two ways."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

FreezingKind = Literal["none", "layers", "lower"]


@dataclass
class Freezing:
    """Which layers get no gradient in a training step.

    "layers" (paper): the parameters of layer i get no gradient with probability (n - i) / (n - 1), which falls from 1
    at the first layer to 0 at the last. "lower" (authors' code): the output of each of the `lower` lowest layers is
    detached with probability 1 - progress, so that neither it nor anything below it gets a gradient. progress is the
    share of optimiser steps done; the authors' code counts forward passes instead. Draws come from Python's `random`,
    whose state the Trainer saves.
    """

    kind: FreezingKind = "none"
    lower: int = 0
    progress: float = 0.0

    def detaches(self, layer: int) -> bool:
        """Whether to detach the output of layer `layer` (1-based) in this forward pass; drawn at every call."""
        return self.kind == "lower" and layer <= self.lower and random.random() > self.progress

    @contextlib.contextmanager
    def step(self, layers: Sequence[nn.Module]) -> Iterator[None]:
        """One forward pass of training through these layers: those drawn by "layers" get no gradients."""
        if self.kind != "layers":
            yield
            return
        last = len(layers)
        frozen = [m for i, m in enumerate(layers, 1) if random.random() < (last - i) / max(1, last - 1)]
        parameters = [p for module in frozen for p in module.parameters() if p.requires_grad]
        for parameter in parameters:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in parameters:
                parameter.requires_grad_(True)
