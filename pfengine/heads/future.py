"""What the Past-Future head reads of later states, imitated from the present one. Formulas: `incorporate`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..families import Shapes
from ..ops import OpSet, Pooling
from ..ops.reference import pool
from .base import PREFIX, HeadState
from .lstm import Lstm


class Future(ABC):
    """Scores [rows, C] of the states of later layers, imitated from the present state."""

    linear = False  # are the scores linear in the imitated states?

    def __init__(
        self,
        ops: OpSet,
        tensors: Mapping[str, Tensor],
        layers: int,
        labels: int,
        learner: str,
        dtype: torch.dtype,
        fold: bool,
    ) -> None:
        self.ops, self.layers, self.labels = ops, layers, labels
        weight, bias = tensors["learners.weight"], tensors["learners.bias"]
        projections = [self.projection(tensors, i) for i in range(1, layers)] if self.linear else []
        self.folded: list[Any] = []
        if self.linear and learner == "linear" and fold:
            for i, (matrix, own) in enumerate(projections):
                matrix = matrix.double()
                folded = matrix @ weight[i:].double().flatten(0, 1)  # [C, (n - i) H] @ [(n - i) H, H]
                offset = matrix @ bias[i:].double().flatten() + own
                self.folded.append(ops.prepare_linear(folded.float(), offset.float(), torch.float32))
        else:
            self.learners = ops.prepare_imitation(
                weight, bias, "tanh" if learner == "tanh" else "none", projections, dtype
            )

    @staticmethod
    @abstractmethod
    def shapes(layers: int, hidden: int, labels: int) -> Shapes: ...

    def projection(self, tensors: Mapping[str, Tensor], layer: int) -> tuple[Tensor, Tensor]:
        """Where linear: the matrix [C, (n - layer) H] and bias [C] that map concatenated imitated states to scores."""
        raise NotImplementedError

    def logits(self, layer: int, state: Tensor) -> Tensor:
        """Scores from the state of layer `layer` < n: [rows, H] -> float32 [rows, C]."""
        if self.folded:
            return self.ops.linear(state, self.folded[layer - 1], "none")
        return self.read(layer, self.guesses(layer, state))

    def guesses(self, layer: int, state: Tensor) -> Tensor:
        """The imitated states of layers `layer` + 1 to n: [rows, H] -> [rows, n - layer, H]. Not where folded."""
        return self.ops.guesses(state, self.learners, layer)

    def read(self, layer: int, guesses: Tensor) -> Tensor:
        """Scores from imitated states [rows, n - layer, H], float32 [rows, C]: the definition, and what is trained."""
        return self.ops.project(guesses.flatten(1), self.learners, layer)


class SharedFuture(Future):
    linear = True

    @staticmethod
    def shapes(layers: int, hidden: int, labels: int) -> Shapes:
        return {}  # it uses the tensors of the past

    def projection(self, tensors: Mapping[str, Tensor], layer: int) -> tuple[Tensor, Tensor]:
        weight = tensors["projections.weight"][layer:, : self.labels]
        return weight.transpose(0, 1).flatten(1), tensors["projections.bias"][layer:, : self.labels].sum(0)


class ConcatFuture(Future):
    linear = True

    @staticmethod
    def shapes(layers: int, hidden: int, labels: int) -> Shapes:
        """future.weight: one matrix per pair (exit i, state j > i), sorted by exit."""
        pairs = layers * (layers - 1) // 2
        return {f"{PREFIX}future.weight": (pairs, labels, hidden), f"{PREFIX}future.bias": (layers - 1, labels)}

    def projection(self, tensors: Mapping[str, Tensor], layer: int) -> tuple[Tensor, Tensor]:
        before = sum(self.layers - i for i in range(1, layer))
        weight = tensors["future.weight"][before : before + self.layers - layer]
        return weight.transpose(0, 1).flatten(1), tensors["future.bias"][layer - 1]


def _exit_shapes(layers: int, hidden: int, labels: int) -> Shapes:
    return {f"{PREFIX}future.weight": (layers - 1, labels, hidden), f"{PREFIX}future.bias": (layers - 1, labels)}


class AvgFuture(Future):
    linear = True
    shapes = staticmethod(_exit_shapes)

    def projection(self, tensors: Mapping[str, Tensor], layer: int) -> tuple[Tensor, Tensor]:
        ahead = self.layers - layer
        return (tensors["future.weight"][layer - 1] / ahead).repeat(1, ahead), tensors["future.bias"][layer - 1]


class PooledFuture(Future):
    shapes = staticmethod(_exit_shapes)

    def __init__(self, ops: OpSet, tensors: Mapping[str, Tensor], *args: Any) -> None:
        super().__init__(ops, tensors, *args)
        weight, bias = tensors["future.weight"], tensors["future.bias"]
        self.weights = [ops.prepare_linear(w, b, torch.float32) for w, b in zip(weight, bias, strict=True)]

    def read(self, layer: int, guesses: Tensor) -> Tensor:
        return self.ops.linear(self.pool(guesses), self.weights[layer - 1], "none")

    @abstractmethod
    def pool(self, guesses: Tensor) -> Tensor:
        """The pooled imitated states: [rows, n - layer, H] -> [rows, H]."""


class FusedPooledFuture(PooledFuture):
    """Pooled by the op set, which need not write the imitated states to memory."""

    pooling: Pooling

    def logits(self, layer: int, state: Tensor) -> Tensor:
        return self.ops.pooled(state, self.learners, layer, self.pooling, self.weights[layer - 1])

    def pool(self, guesses: Tensor) -> Tensor:
        return pool(guesses, self.pooling)


class MaxFuture(FusedPooledFuture):
    pooling = "max"


class AttentionFuture(FusedPooledFuture):
    pooling = "attention"


class LstmFuture(PooledFuture):
    def __init__(self, ops: OpSet, tensors: Mapping[str, Tensor], *args: Any) -> None:
        super().__init__(ops, tensors, *args)
        self.lstm = Lstm(ops, tensors, "future_lstm")

    @staticmethod
    def shapes(layers: int, hidden: int, labels: int) -> Shapes:
        return _exit_shapes(layers, hidden, labels) | Lstm.shapes("future_lstm", hidden)

    def pool(self, guesses: Tensor) -> Tensor:
        memory: HeadState | None = None
        for state in guesses.unbind(1):
            memory = self.lstm.step(state, memory)
        assert memory is not None
        return memory[0]
