"""What the Past-Future head reads of the states up to the present layer. Formulas: `incorporate`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..families import Shapes
from ..ops import OpSet
from ..ops.reference import attend
from .base import PREFIX, HeadState
from .lstm import Lstm


class Past(ABC):
    """Scores of the states up to the present layer, [rows, width]: one per label, then the numbers of the gate."""

    def __init__(self, ops: OpSet, tensors: Mapping[str, Tensor], layers: int, history: bool) -> None:
        """history: are earlier states read, or only the present one?"""
        self.ops, self.history = ops, history

    @staticmethod
    @abstractmethod
    def shapes(layers: int, hidden: int, width: int, history: bool) -> Shapes: ...

    @abstractmethod
    def read(
        self, layer: int, state: Tensor, memory: HeadState | None, answer: bool
    ) -> tuple[Tensor | None, HeadState]:
        """Read the state after layer `layer`, [rows, H].

        Returns float32 scores [rows, width] where `answer`, else None, and the `memory` for the next layer.
        """


class LinearPast(Past):
    """Each layer adds its scores to those of earlier layers. The first `width` of the sum belong to its exit."""

    width: int  # scores per exit
    weights: list[Any]  # one per layer

    def read(
        self, layer: int, state: Tensor, memory: HeadState | None, answer: bool
    ) -> tuple[Tensor | None, HeadState]:
        past = self.ops.linear(state, self.weights[layer - 1], "none", memory[0] if memory else None)
        return past[:, : self.width] if answer else None, self.keep(past)

    @property
    def kept_from(self) -> int:
        """The first column of the past that the next layer adds to; -1 where the next layer starts from zero."""
        return 0 if self.history else -1

    def keep(self, past: Tensor) -> HeadState:
        """The scores that the next layer adds to."""
        return (past[:, self.kept_from :],) if self.history else ()


class SharedPast(LinearPast):
    """The same projection for all exits."""

    def __init__(self, ops: OpSet, tensors: Mapping[str, Tensor], layers: int, history: bool) -> None:
        super().__init__(ops, tensors, layers, history)
        weight, bias = tensors["projections.weight"], tensors["projections.bias"]
        self.width = bias.shape[1]
        self.weights = [ops.prepare_linear(w, b, torch.float32) for w, b in zip(weight, bias, strict=True)]

    @staticmethod
    def shapes(layers: int, hidden: int, width: int, history: bool) -> Shapes:
        return {f"{PREFIX}projections.weight": (layers, width, hidden), f"{PREFIX}projections.bias": (layers, width)}


class ConcatPast(LinearPast):
    """Layer j computes its share of all exits i >= j at once. Their sums, [rows, (n - j + 1) width], are kept."""

    def __init__(self, ops: OpSet, tensors: Mapping[str, Tensor], layers: int, history: bool) -> None:
        super().__init__(ops, tensors, layers, history)
        weight, bias = tensors["past.weight"], tensors["past.bias"]
        self.width = bias.shape[1]
        self.weights = []
        for j in range(layers):
            if history:
                share = torch.cat([weight[i * (i + 1) // 2 + j] for i in range(j, layers)])
            else:
                share = weight[j]
            own = torch.cat([bias[j], bias.new_zeros(len(share) - self.width)])
            self.weights.append(ops.prepare_linear(share, own, torch.float32))

    @staticmethod
    def shapes(layers: int, hidden: int, width: int, history: bool) -> Shapes:
        """past.weight: one matrix per pair (exit i, state j <= i), sorted by exit."""
        pairs = layers * (layers + 1) // 2 if history else layers
        return {f"{PREFIX}past.weight": (pairs, width, hidden), f"{PREFIX}past.bias": (layers, width)}

    @property
    def kept_from(self) -> int:
        return self.width if self.history else -1


class PooledPast(Past):
    """The states so far are pooled to one vector per row, which a linear layer per exit reads."""

    def __init__(self, ops: OpSet, tensors: Mapping[str, Tensor], layers: int, history: bool) -> None:
        super().__init__(ops, tensors, layers, history)
        weight, bias = tensors["past.weight"], tensors["past.bias"]
        self.weights = [ops.prepare_linear(w, b, torch.float32) for w, b in zip(weight, bias, strict=True)]

    @staticmethod
    def shapes(layers: int, hidden: int, width: int, history: bool) -> Shapes:
        return {f"{PREFIX}past.weight": (layers, width, hidden), f"{PREFIX}past.bias": (layers, width)}

    def read(
        self, layer: int, state: Tensor, memory: HeadState | None, answer: bool
    ) -> tuple[Tensor | None, HeadState]:
        pooled, memory = self.pool(layer, state, memory or None)
        past = self.ops.linear(pooled, self.weights[layer - 1], "none") if answer else None
        return past, memory if self.history else ()

    @abstractmethod
    def pool(self, layer: int, state: Tensor, memory: HeadState | None) -> tuple[Tensor, HeadState]:
        """The pooled states so far, [rows, H], and what to keep for the next layer."""


class MaxPast(PooledPast):
    def pool(self, layer: int, state: Tensor, memory: HeadState | None) -> tuple[Tensor, HeadState]:
        largest = torch.maximum(memory[0], state) if memory else state
        return largest, (largest,)


class AvgPast(PooledPast):
    def pool(self, layer: int, state: Tensor, memory: HeadState | None) -> tuple[Tensor, HeadState]:
        total = memory[0] + state if memory else state.float()
        return total / (layer if self.history else 1), (total,)


class AttentionPast(PooledPast):
    def pool(self, layer: int, state: Tensor, memory: HeadState | None) -> tuple[Tensor, HeadState]:
        states = state.float().unsqueeze(1)
        states = torch.cat([memory[0], states], 1) if memory else states
        return attend(states), (states,)


class LstmPast(PooledPast):
    def __init__(self, ops: OpSet, tensors: Mapping[str, Tensor], layers: int, history: bool) -> None:
        super().__init__(ops, tensors, layers, history)
        self.lstm = Lstm(ops, tensors, "past_lstm")

    @staticmethod
    def shapes(layers: int, hidden: int, width: int, history: bool) -> Shapes:
        return PooledPast.shapes(layers, hidden, width, history) | Lstm.shapes("past_lstm", hidden)

    def pool(self, layer: int, state: Tensor, memory: HeadState | None) -> tuple[Tensor, HeadState]:
        memory = self.lstm.step(state, memory)
        return memory[0], memory
