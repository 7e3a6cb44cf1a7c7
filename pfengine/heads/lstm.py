"""An LSTM cell that reads one state per step."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..families import Shapes
from ..ops import OpSet
from .base import PREFIX, HeadState


class Lstm:
    """One LSTM cell, gates in the order input, forget, cell, output; input, hidden [4H, H]."""

    def __init__(self, ops: OpSet, tensors: Mapping[str, Tensor], name: str) -> None:
        weights = tensors[f"{name}.input.weight"], tensors[f"{name}.hidden.weight"]
        biases = tensors[f"{name}.input.bias"], tensors[f"{name}.hidden.bias"]
        self.ops = ops
        self.input, self.hidden = (
            ops.prepare_linear(w, b, torch.float32) for w, b in zip(weights, biases, strict=True)
        )

    @staticmethod
    def shapes(name: str, hidden: int) -> Shapes:
        return {
            f"{PREFIX}{name}.{part}.{kind}": (4 * hidden, hidden) if kind == "weight" else (4 * hidden,)
            for part in ("input", "hidden")
            for kind in ("weight", "bias")
        }

    def step(self, state: Tensor, memory: HeadState | None) -> HeadState:
        """The next (hidden, cell), float32 [rows, H] each."""
        hidden, cell = memory or (torch.zeros_like(state, dtype=torch.float32),) * 2
        gates = self.ops.linear(state, self.input, "none") + self.ops.linear(hidden, self.hidden, "none")
        take, keep, value, give = gates.chunk(4, dim=1)
        cell = _sigmoid(keep) * cell + _sigmoid(take) * torch.tanh(value)
        return _sigmoid(give) * torch.tanh(cell), cell


def _sigmoid(x: Tensor) -> Tensor:
    """By tanh, whose vector body and scalar tail agree to the last bit."""
    return (1 + torch.tanh(x / 2)) / 2
