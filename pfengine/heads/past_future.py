"""The Global Past-Future exit head (Liao et al., NAACL 2021): the paper's equations, the authors' code, ablations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ..config import BackboneConfig
from ..families import Shapes
from ..ops import Exit, OpSet
from .base import PREFIX, HeadState, OwnTensors, Scores, register
from .incorporate import INCORPORATIONS, Incorporate
from .past import LinearPast
from .poolers import Pooler, PoolerKind, pooler_shapes
from .prepared import PreparedHead
from .reading import READS, Reading, ReadsOfRow


@dataclass(frozen=True)
class Options:
    """The `head` object of pfengine.json. Defaults are as in the authors' code; the pooler has none.

    reads: h is the hidden state of each row's first token, the mean of those of its tokens, or their mean weighed by
    queries; see `Reading`.
    pooler: the state of a layer is tanh(W h + b), with one W per layer or one for all layers, or it is h itself.
    learner: the imitation of s_j from s_i is L_j s_i + l_j, or its tanh.
    incorporate: how states become scores; see `incorporate`.
    states: which are read. "past" leaves out the future, "future" leaves out all earlier layers.
    gate: weighs past against future with one number per row (eq. 7-8) or per label; "none" adds them.
    """

    pooler: PoolerKind = "per-layer"
    learner: str = "tanh"
    incorporate: Incorporate = "concat-shared"
    states: str = "past-future"
    gate: str = "label"
    reads: ReadsOfRow = "first"

    @classmethod
    def of(cls, head: dict[str, Any]) -> Options:
        return cls(**{key: value for key, value in head.items() if key != "type"})

    @property
    def history(self) -> bool:
        """Are earlier layers read?"""
        return self.states != "future"

    @property
    def future(self) -> bool:
        return self.states != "past"

    def gate_width(self, labels: int) -> int:
        return {"label": labels, "row": 1, "none": 0}[self.gate]


CHOICES: dict[str, tuple[str, ...]] = {
    "pooler": get_args(PoolerKind),
    "learner": ("tanh", "linear"),
    "incorporate": get_args(Incorporate),
    "states": ("past-future", "past", "future"),
    "gate": ("label", "row", "none"),
    "reads": READS,
}


@register
class PastFuture(PreparedHead):
    """Past states, imitated future states, and a gate between them.

    With s_j the state of layer j and s~_j = L_j s_i + l_j (or its tanh) the imitation of layer j > i from layer i, the
    incorporation gives one score per label for the past, a_i(s_1..s_i), and for the future, b_i(s~_{i+1}..s~_n), and

        paper    lambda = sigmoid(u_i)                           logits = lambda a_i + (1 - lambda) b_i     (eq. 7-8)
        authors  lambda = sigmoid(G tanh(mean_{j<=i} u_j) + c)   logits = 2 lambda a_i + (2 - 2 lambda) b_i

    where u_i is computed from the past as a_i is. Without a gate logits = a_i + b_i. "concat-shared" has the authors'
    form, all other incorporations have the paper's. After the last layer there is no future: logits are a_n in the
    paper's form, 2 lambda a_n in the authors'.

    Tensors (n layers, hidden size H, C labels): poolers [n or 1, H, H]; learners [n - 1, H, H] for layers 2..n; gate
    [k, k] in the authors' form, k = C or 1; those of the incorporation. Each has its bias.
    """

    name = "past-future"

    @staticmethod
    def config_faults(head: dict[str, Any]) -> list[str]:
        faults = [f"'head.{key}' is not an option of this head" for key in sorted(set(head) - {"type", *CHOICES})]
        for key, known in CHOICES.items():
            default = None if key == "pooler" else next(f.default for f in fields(Options) if f.name == key)
            value = head.get(key, default)
            if value not in known:
                faults.append(f"'head.{key}' is {value!r}; it must be one of {', '.join(known)}")
        if not faults and head.get("states") == "past" and Options.of(head).gate != "none":
            faults.append("'head.gate' must be 'none' where 'head.states' is 'past', as there is no future to weigh")
        return faults

    @staticmethod
    def shapes(config: BackboneConfig, head: dict[str, Any]) -> Shapes:
        options = Options.of(head)
        n, hidden, labels = config.num_layers, config.hidden_size, config.num_labels
        width = options.gate_width(labels)
        shapes = pooler_shapes(options.pooler, n, hidden) | Reading.shapes(config, head)
        if options.future:
            shapes |= {f"{PREFIX}learners.weight": (n - 1, hidden, hidden), f"{PREFIX}learners.bias": (n - 1, hidden)}
        past, future = INCORPORATIONS[options.incorporate]
        shapes |= past.shapes(n, hidden, labels + width, options.history)
        if options.future:
            shapes |= future.shapes(n, hidden, labels)
        if options.incorporate == "concat-shared" and width:
            shapes |= {f"{PREFIX}gate.weight": (width, width), f"{PREFIX}gate.bias": (width,)}
        return shapes

    @classmethod
    def level(cls, config: BackboneConfig, head: dict[str, Any]) -> dict[str, Tensor]:
        options, labels = Options.of(head), config.num_labels
        found = {
            key: torch.zeros(shape, dtype=torch.float32, device="cpu")
            for key, shape in cls.shapes(config, head).items()
            if key.removeprefix(PREFIX) in ("past.bias", "future.bias", "projections.bias")
        }
        for key, value in found.items():
            if options.incorporate == "concat-shared":  # past and future are one sum, over all layers
                value[-1 if options.future else 0, :labels] = 1
            else:
                value[:, :labels] = 0.5 if options.future and options.gate == "none" else 1
                if key == f"{PREFIX}past.bias":
                    value[-1, :labels] = 1  # after the last layer the past is all
        return found

    def __init__(
        self,
        ops: OpSet,
        config: BackboneConfig,
        head: dict[str, Any],
        tensors: Mapping[str, Tensor],
        dtype: torch.dtype,
        *,
        fold: bool = True,
    ) -> None:
        """fold: multiply learners and incorporation into one matrix where both are linear; equal up to rounding."""
        self.ops, self.options = ops, Options.of(head)
        self.num_layers, self.labels = config.num_layers, config.num_labels
        t = OwnTensors(tensors)
        self.reading = Reading(ops, head, t)
        self.pooler = Pooler(ops, self.options.pooler, config.num_layers, t, dtype)
        past_type, future_type = INCORPORATIONS[self.options.incorporate]
        self.past = past_type(ops, t, config.num_layers, self.options.history)
        if self.options.future and config.num_layers > 1:
            self.future = future_type(ops, t, config.num_layers, self.labels, self.options.learner, dtype, fold)
        self.gate = ops.prepare_linear(t["gate.weight"], t["gate.bias"], torch.float32) if "gate.weight" in t else None
        past = self.past
        self.exits = [ops.prepare_exit(self._exit(i, past)) for i in range(1, config.num_layers + 1)] if isinstance(
            past, LinearPast
        ) else []  # fmt: skip
        self.adds_from = [past.kept_from for _ in self.exits] if isinstance(past, LinearPast) else []

    def _has_future(self, layer: int) -> bool:
        return self.options.future and layer < self.num_layers

    def _exit(self, layer: int, past: LinearPast) -> Exit:
        future = self.future if self._has_future(layer) else None
        folded = future.folded[layer - 1] if future and future.folded else None
        kind: Literal["none", "paper", "authors"] = "none"
        if self.options.gate != "none" and (self.gate is not None or future is not None):
            kind = "paper" if self.gate is None else "authors"
        return Exit(
            labels=self.labels,
            past=past.weights[layer - 1],
            pooler=self.pooler.weights[layer - 1] if self.pooler.weights else None,
            folded=folded,
            imitation=(future.learners, layer) if future and folded is None else None,
            gate_kind=kind,
            width=0 if kind == "none" else past.width - self.labels,
            gate=self.gate,
            states=layer if self.options.history else 1,
            **self.reading.exit(layer),
        )

    def prepared_exits(self) -> list[tuple[Any, int] | None] | None:
        return super().prepared_exits() if isinstance(self.past, LinearPast) else None

    def step(
        self, layer: int, x: Tensor, cu_seqlens: Tensor, state: HeadState | None, answer: bool
    ) -> tuple[Scores | None, HeadState]:
        if isinstance(self.past, LinearPast):
            return super().step(layer, x, cu_seqlens, state, answer)
        current = self.pooler(layer, x)
        numbers, memory = self.past.read(layer, current, state, answer)
        if numbers is None:
            return None, memory
        future = self.future.logits(layer, current) if self._has_future(layer) else None
        return Scores(self.merge(layer, numbers, future)), memory

    def merge(self, layer: int, past: Tensor, future: Tensor | None) -> Tensor:
        """float32 logits [rows, C] after `layer`, of past, float32 [rows, C + k], and future, float32 [rows, C]."""
        logits, gates = past[:, : self.labels], past[:, self.labels :]
        if self.gate is None and (future is None or self.options.gate == "none"):
            return logits if future is None else logits + future
        return self.ops.gate_merge(logits, gates, future, self.gate, layer if self.options.history else 1)
