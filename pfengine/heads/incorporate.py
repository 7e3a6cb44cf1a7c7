"""How the Past-Future head makes numbers a label of many states: G of the paper's section 3.

    concat-shared   sum_j P_j s_j + p_j, the projections P shared by all exits                     (authors' code)
    concat          W_i [s_1; ...; s_i] + w_i, a linear layer of its own for each exit             (paper)
    max, avg        W_i max_j s_j + w_i, W_i mean_j s_j + w_i
    attention       W_i sum_j softmax_j(s_j . q / sqrt(H)) s_j + w_i, the query q being the last of the states
    lstm            W_i h + w_i, h the last hidden state of an LSTM that reads the states in order

Past and future have tensors of their own, but for concat-shared. The past is read layer by layer, and what is kept of
it leads with rows, so that it compacts. The future is read from one state, through the imitation learners; where they
and the incorporation are linear, both fold into one [C, H] matrix a layer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from ..families import Shapes
from ..ops import OpSet, Pooling
from ..ops.reference import attend, pool
from .base import PREFIX, HeadState

Incorporate = Literal["concat-shared", "concat", "max", "avg", "attention", "lstm"]


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


class Past(ABC):
    """Numbers a label [rows, width] of the states up to the present layer."""

    def __init__(self, ops: OpSet, tensors: Mapping[str, Tensor], layers: int, history: bool) -> None:
        """history: False where only the present state counts."""
        self.ops, self.history = ops, history

    @staticmethod
    @abstractmethod
    def shapes(layers: int, hidden: int, width: int, history: bool) -> Shapes: ...

    @abstractmethod
    def read(
        self, layer: int, state: Tensor, memory: HeadState | None, answer: bool
    ) -> tuple[Tensor | None, HeadState]:
        """state: of layer `layer`, [rows, H]; float32 [rows, width] where `answer`, and what is to be kept."""


class LinearPast(Past):
    """Each layer adds its own numbers to what earlier ones left; the first of them are its exit's."""

    width: int  # numbers of one exit
    weights: list[Any]  # for each layer

    def read(
        self, layer: int, state: Tensor, memory: HeadState | None, answer: bool
    ) -> tuple[Tensor | None, HeadState]:
        past = self.ops.linear(state, self.weights[layer - 1], "none", memory[0] if memory else None)
        return past[:, : self.width] if answer else None, self.keep(past)

    @property
    def kept_from(self) -> int:
        """The first number that the next layer adds to; -1 where it starts anew."""
        return 0 if self.history else -1

    def keep(self, past: Tensor) -> HeadState:
        """What the next layer adds to."""
        return (past[:, self.kept_from :],) if self.history else ()


class _SharedPast(LinearPast):
    """The same projection for all exits."""

    def __init__(self, ops: OpSet, tensors: Mapping[str, Tensor], layers: int, history: bool) -> None:
        super().__init__(ops, tensors, layers, history)
        weight, bias = tensors["projections.weight"], tensors["projections.bias"]
        self.width = bias.shape[1]
        self.weights = [ops.prepare_linear(w, b, torch.float32) for w, b in zip(weight, bias, strict=True)]

    @staticmethod
    def shapes(layers: int, hidden: int, width: int, history: bool) -> Shapes:
        return {f"{PREFIX}projections.weight": (layers, width, hidden), f"{PREFIX}projections.bias": (layers, width)}


class _ConcatPast(LinearPast):
    """Layer j's share of all exits i >= j is computed at once and added up: [rows, (n - j + 1) width] is kept."""

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
        """past.weight: the pairs (exit i, state j <= i), by exit."""
        pairs = layers * (layers + 1) // 2 if history else layers
        return {f"{PREFIX}past.weight": (pairs, width, hidden), f"{PREFIX}past.bias": (layers, width)}

    @property
    def kept_from(self) -> int:
        return self.width if self.history else -1


class _PooledPast(Past):
    """One vector a row of all states so far, and a linear layer for each exit."""

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
        """G of the states so far [rows, H], and what is to be kept."""


class _MaxPast(_PooledPast):
    def pool(self, layer: int, state: Tensor, memory: HeadState | None) -> tuple[Tensor, HeadState]:
        largest = torch.maximum(memory[0], state) if memory else state
        return largest, (largest,)


class _AvgPast(_PooledPast):
    def pool(self, layer: int, state: Tensor, memory: HeadState | None) -> tuple[Tensor, HeadState]:
        total = memory[0] + state if memory else state.float()
        return total / (layer if self.history else 1), (total,)


class _AttentionPast(_PooledPast):
    def pool(self, layer: int, state: Tensor, memory: HeadState | None) -> tuple[Tensor, HeadState]:
        states = state.float().unsqueeze(1)
        states = torch.cat([memory[0], states], 1) if memory else states
        return attend(states), (states,)


class _LstmPast(_PooledPast):
    def __init__(self, ops: OpSet, tensors: Mapping[str, Tensor], layers: int, history: bool) -> None:
        super().__init__(ops, tensors, layers, history)
        self.lstm = Lstm(ops, tensors, "past_lstm")

    @staticmethod
    def shapes(layers: int, hidden: int, width: int, history: bool) -> Shapes:
        return _PooledPast.shapes(layers, hidden, width, history) | Lstm.shapes("past_lstm", hidden)

    def pool(self, layer: int, state: Tensor, memory: HeadState | None) -> tuple[Tensor, HeadState]:
        memory = self.lstm.step(state, memory)
        return memory[0], memory


class Future(ABC):
    """Numbers a label [rows, C] of the states to come, imitated from the present one."""

    linear = False  # is it linear in the imitated states?

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
        """Where linear: [C, (n - i) H] and [C] that make numbers of the imitated states side by side."""
        raise NotImplementedError

    def logits(self, layer: int, state: Tensor) -> Tensor:
        """state: of layer `layer` < n, [rows, H] -> float32 [rows, C]."""
        if self.folded:
            return self.ops.linear(state, self.folded[layer - 1], "none")
        return self.read(layer, self.guesses(layer, state))

    def guesses(self, layer: int, state: Tensor) -> Tensor:
        """The imitated states of layers `layer` + 1 to n: [rows, H] -> [rows, n - layer, H]. Not where folded."""
        return self.ops.guesses(state, self.learners, layer)

    def read(self, layer: int, guesses: Tensor) -> Tensor:
        """The same from imitated states [rows, n - layer, H] themselves: the definition, and what is trained."""
        return self.ops.project(guesses.flatten(1), self.learners, layer)


class _SharedFuture(Future):
    linear = True

    @staticmethod
    def shapes(layers: int, hidden: int, labels: int) -> Shapes:
        return {}  # the past's

    def projection(self, tensors: Mapping[str, Tensor], layer: int) -> tuple[Tensor, Tensor]:
        weight = tensors["projections.weight"][layer:, : self.labels]
        return weight.transpose(0, 1).flatten(1), tensors["projections.bias"][layer:, : self.labels].sum(0)


class _ConcatFuture(Future):
    linear = True

    @staticmethod
    def shapes(layers: int, hidden: int, labels: int) -> Shapes:
        """future.weight: the pairs (exit i, state j > i), by exit."""
        pairs = layers * (layers - 1) // 2
        return {f"{PREFIX}future.weight": (pairs, labels, hidden), f"{PREFIX}future.bias": (layers - 1, labels)}

    def projection(self, tensors: Mapping[str, Tensor], layer: int) -> tuple[Tensor, Tensor]:
        before = sum(self.layers - i for i in range(1, layer))
        weight = tensors["future.weight"][before : before + self.layers - layer]
        return weight.transpose(0, 1).flatten(1), tensors["future.bias"][layer - 1]


def _exit_shapes(layers: int, hidden: int, labels: int) -> Shapes:
    return {f"{PREFIX}future.weight": (layers - 1, labels, hidden), f"{PREFIX}future.bias": (layers - 1, labels)}


class _AvgFuture(Future):
    linear = True
    shapes = staticmethod(_exit_shapes)

    def projection(self, tensors: Mapping[str, Tensor], layer: int) -> tuple[Tensor, Tensor]:
        ahead = self.layers - layer
        return (tensors["future.weight"][layer - 1] / ahead).repeat(1, ahead), tensors["future.bias"][layer - 1]


class _PooledFuture(Future):
    shapes = staticmethod(_exit_shapes)

    def __init__(self, ops: OpSet, tensors: Mapping[str, Tensor], *args: Any) -> None:
        super().__init__(ops, tensors, *args)
        weight, bias = tensors["future.weight"], tensors["future.bias"]
        self.weights = [ops.prepare_linear(w, b, torch.float32) for w, b in zip(weight, bias, strict=True)]

    def read(self, layer: int, guesses: Tensor) -> Tensor:
        return self.ops.linear(self.pool(guesses), self.weights[layer - 1], "none")

    @abstractmethod
    def pool(self, guesses: Tensor) -> Tensor:
        """G: [rows, n - layer, H] -> [rows, H]."""


class _PooledByOps(_PooledFuture):
    """Pooled by the op set, which need not write imitated states out."""

    pooling: Pooling

    def logits(self, layer: int, state: Tensor) -> Tensor:
        return self.ops.pooled(state, self.learners, layer, self.pooling, self.weights[layer - 1])

    def pool(self, guesses: Tensor) -> Tensor:
        return pool(guesses, self.pooling)


class _MaxFuture(_PooledByOps):
    pooling = "max"


class _AttentionFuture(_PooledByOps):
    pooling = "attention"


class _LstmFuture(_PooledFuture):
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


PASTS: dict[str, type[Past]] = {
    "concat-shared": _SharedPast,
    "concat": _ConcatPast,
    "max": _MaxPast,
    "avg": _AvgPast,
    "attention": _AttentionPast,
    "lstm": _LstmPast,
}
FUTURES: dict[str, type[Future]] = {
    "concat-shared": _SharedFuture,
    "concat": _ConcatFuture,
    "max": _MaxFuture,
    "avg": _AvgFuture,
    "attention": _AttentionFuture,
    "lstm": _LstmFuture,
}
