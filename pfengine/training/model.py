"""The model that is trained: transformers' encoder, read after every layer, and an exit head of ours."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import saving
from ..config import BackboneConfig
from ..heads import HEADS, PREFIX, ExitHead, Scores
from ..manifest import Manifest
from ..ops import Reads, reference
from .freezing import Freezing
from .losses import depth_weighted, losses_of
from .phases import HeldOut, Phase

QUERIES, QUERY_RATE = "queries_weight", 5.0  # of the rate of other parameters


class ExitModel(nn.Module):
    """Encoder and exit head; `forward` gives the loss and the logits of every exit.

    This class trains all exits of any head jointly, and deeper exits weigh more. A recipe is a subclass with another
    `loss`, or with `outputs` of its own where the loss needs more than scores. Its `phases` are trained one after the
    other; what is `fixed` in one of them does not change. It may have parameters of its own, which are trained and not
    written to the checkpoint.

    backbone: transformers' encoder without pooler, fp32; None where `outputs` alone is called. head: the `head` object
    of pfengine.json. options: those of the training run by name, as in `TrainingConfig`. `checkpoint_tensors` is what
    `pfengine.load` reads. phase, step, epoch_step: where the run is, for the loss; optimiser steps count from 0 in each
    phase, and in each epoch. cascade: does `fill` write a cascade?

    schedule: the phases, unless a recipe says otherwise; own_rates: learning rates of parameters, by name, that go
    before those of a recipe; still: does the encoder run without dropout, as one that is not trained should?
    """

    cascade: ClassVar[bool] = False

    def __init__(
        self,
        backbone: nn.Module | None,
        config: BackboneConfig,
        head: dict[str, Any],
        *,
        dropout: float = 0.0,
        freezing: Freezing | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.backbone, self.backbone_config, self.head_config = backbone, config, head
        self.dropout, self.freezing, self.options = dropout, freezing or Freezing(), options or {}
        self.phase, self.step, self.epoch_step = Phase(), 0, 0
        self.own_rates: dict[str, float] = {}
        self.schedule: tuple[Phase, ...] = (Phase(),)
        self.still = False
        std = float(config.raw.get("initializer_range", 0.02))
        self._keys: dict[str, str] = {}
        self.exit_head = nn.Module()  # no ParameterDict: DataParallel's copies of one are empty
        kind = HEADS[head["type"]]
        for key, shape in kind.shapes(config, head).items():
            value = torch.zeros(shape, dtype=torch.float32, device="cpu")
            if not key.endswith("bias"):
                value = torch.randn(shape, dtype=torch.float32, device="cpu") * std
            name = key.removeprefix(PREFIX).replace(".", "_")
            self._keys[name] = key
            self.exit_head.register_parameter(name, nn.Parameter(value))
        with torch.no_grad():
            made = self.head()
            self.reads = [made.reads(layer) for layer in range(1, config.num_layers + 1)]
        self.exit_layers = kind.layers(config, head)
        self._calls = threading.local()  # DataParallel runs its copies in threads
        for module in self._layers() if backbone is not None else ():
            module.register_forward_hook(self._after_layer)

    def train(self, mode: bool = True) -> ExitModel:
        super().train(mode)
        if self.still and self.backbone is not None:
            self.backbone.eval()
        return self

    def head_tensors(self) -> dict[str, Tensor]:
        """The head's parameters under their checkpoint keys."""
        return {key: getattr(self.exit_head, name) for name, key in self._keys.items()}

    def load_head(self, tensors: dict[str, Tensor]) -> None:
        """Copy values into the head's parameters, from tensors under checkpoint keys."""
        with torch.no_grad():
            for key, value in self.head_tensors().items():
                value.copy_(tensors[key])

    def start_at(self, score: float) -> None:
        """Let every exit of regression begin at this score.

        The scores of data may lie far from 0. An optimiser moves a weight by its learning rate per step, so hundreds of
        steps would go into finding their mean.
        """
        level = HEADS[self.head_config["type"]].level(self.backbone_config, self.head_config)
        with torch.no_grad():
            for key, value in level.items():
                self.head_tensors()[key].copy_(value * score)

    def checkpoint_tensors(self) -> dict[str, Tensor]:
        """All tensors as fp32 under their checkpoint keys."""
        family = self.backbone_config.family
        tensors = {f"{family.prefix}{key}": value for key, value in self.backbone.state_dict().items()}  # type: ignore[union-attr]
        wanted = self.backbone_config.encoder_shapes().keys()
        tensors = {key: value for key, value in tensors.items() if key in wanted} | self.head_tensors()
        return {key: value.detach().float().cpu().clone() for key, value in tensors.items()}

    def fill(self, stage: Path, manifest: Manifest, tokenizer: Mapping[str, bytes] | None) -> None:
        """Write the checkpoint into an empty directory; arguments as in `saving.fill`."""
        saving.fill(stage, self.backbone_config.raw, manifest, self.checkpoint_tensors(), tokenizer)

    def forward(self, labels: Tensor | None = None, **inputs: Tensor) -> dict[str, Tensor]:
        """inputs: as transformers' encoders take them, [B, tokens]; labels: [B], ids or, for regression, floats.

        Returns what `outputs` says.
        """
        states, bounds = self.read_layers(inputs)
        with torch.autocast(states[0].device.type, enabled=False):  # the head is small, and sums over layers
            return self.outputs(self.weigh([state.float() for state in states], bounds), labels, bounds)

    def outputs(
        self, states: Sequence[Tensor], labels: Tensor | None, bounds: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Logits of every exit [B, exits, C], "learned" [B, exits] where the head adds a score, and the loss.

        states: what the head reads after each layer, as `weigh` gives it: float32 [B, H], or [tokens, H] without
        padding for a head that reads all tokens. bounds: of the rows in those tokens, int32 [B + 1]. The loss is there
        where labels are given, and in training in a phase without labels.
        """
        scores = self.scores(states, bounds)
        out = {"logits": torch.stack([each.logits for each in scores], 1)}
        learned = [each.learned for each in scores if each.learned is not None]
        if scores and len(learned) == len(scores):
            out["learned"] = torch.stack(learned, 1)
        if labels is not None or (self.training and not self.phase.labelled):
            out["loss"] = self.loss(scores, labels)
        return out

    def weigh(self, states: Sequence[Tensor], bounds: Tensor | None) -> list[Tensor]:
        """What `read_layers` gives, in float32, with the tokens of each row weighed where the head reads by queries."""
        head = self.head() if "query" in self.reads else None
        return [
            head.read(reference, layer, state, bounds) if head and bounds is not None and reads == "query" else state
            for layer, (state, reads) in enumerate(zip(states, self.reads, strict=True), 1)
        ]

    def loss(self, scores: Sequence[Scores], labels: Tensor | None) -> Tensor:
        """The loss of a batch, a tensor without dimensions, from the scores of every exit.

        labels: ids [B], probabilities [B, C] where exits are attached to a finished model, or numbers [B] for
        regression; None in a phase without labels.
        """
        return depth_weighted(losses_of(scores, labels))

    def phases(self) -> tuple[Phase, ...]:
        """The parts of a training run, one after the other."""
        return self.schedule

    def fixed(self) -> list[Tensor]:
        """Views of parts of trained parameters that do not change in the present phase, such as those of one exit."""
        return []

    def begin_phase(self) -> None:
        """Called before the first step of each phase, and not where a phase is resumed."""

    def rates(self) -> dict[str, float]:
        """Learning rates of parameters that have one of their own, by name. They are not decayed.

        This class has one for queries, which start near zero and would hardly move in few steps.
        """
        rate = self.phase.learning_rate or self.options.get("learning_rate")
        names = [name for name in dict(self.named_parameters()) if name.endswith(QUERIES)]
        return (dict.fromkeys(names, QUERY_RATE * rate) if rate else {}) | self.own_rates

    def initialise(self, pooler: tuple[Tensor, Tensor]) -> None:
        """Start from the pretrained encoder's own pooler, where it has one.

        pooler: weight [n, H, H] and bias [n, H] before tanh, after each layer; n times the same for most encoders.
        It is called once, before training. This class starts its poolers from random numbers.
        """

    def pass_on(self, layer: int, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """What the head reads of the hidden states after a layer, and what goes on to the next: [B, tokens, H] each."""
        return hidden, hidden

    def before_step(self, inputs: Mapping[str, Tensor]) -> None:
        """Prepare what the loss of this batch needs beyond its scores; called before every optimiser step.

        inputs: what `forward` is to get, with labels, on its device. Where exits are attached to a finished model they
        are "states" [B, T, n, H] (see `stored_states`) and "labels". Parameters and gradients must stay as they are.
        """

    def after_training(self, held_out: HeldOut) -> str | None:
        """Fit what is fitted to rows that the model was not trained on, before the checkpoint is written.

        Returns the criterion where its numbers are fitted, as text without a threshold: "beem:,0.7/0.8/0.9".
        """
        return None

    def head(self) -> ExitHead:
        """The head over plain torch, made of the present parameters."""
        kind, tensors = HEADS[self.head_config["type"]], self.head_tensors()
        return kind(reference, self.backbone_config, self.head_config, tensors, torch.float32)

    def scores(self, states: Sequence[Tensor], bounds: Tensor | None) -> list[Scores]:
        """The scores of every exit, from what the head reads after each layer, with dropout; arguments as `outputs`."""
        head, kept, found = self.head(), None, []
        for layer, state in enumerate(states, 1):
            every = torch.arange(len(state) + 1, dtype=torch.int32, device=state.device)
            rows = bounds if self.reads[layer - 1] == "all" and bounds is not None else every
            answered, kept = head.step(layer, self.drop(state), rows, kept, layer in self.exit_layers)
            found += [] if answered is None else [answered]
        return found

    def read_layers(self, inputs: dict[str, Tensor]) -> tuple[list[Tensor], Tensor | None]:
        """What the head reads after every layer, and the bounds of rows; some of it is detached or frozen in training.

        That is the first token's hidden state or the mean of those of a row's tokens, [B, H], or, also where the head
        weighs them by queries, those of all tokens without padding, [tokens, H].
        """
        mask = inputs.get("attention_mask")
        if mask is None:
            mask = torch.ones_like(inputs["input_ids"])
        states: list[Tensor] = []
        self._calls.states, self._calls.mask = states, mask
        with self.freezing.step(self._layers()) if self.training else contextlib.nullcontext():
            self.backbone(**inputs)  # type: ignore[misc]
        self._calls.states = None
        by_token = {"all", "query"} & set(self.reads)
        return states, F.pad(mask.sum(1).cumsum(0), (1, 0)).to(torch.int32) if by_token else None

    def drop(self, states: Tensor) -> Tensor:
        return F.dropout(states, self.dropout, self.training)

    def _layers(self) -> list[nn.Module]:
        """The modules that are called once per layer, in order; where layers share weights, one per group."""
        path = self.backbone_config.family.block_key.partition(".{")[0]
        modules: Any = self.backbone.get_submodule(path)  # type: ignore[union-attr]
        return list(modules)

    def _after_layer(self, _module: nn.Module, _inputs: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        states: list[Tensor] | None = getattr(self._calls, "states", None)
        if states is None:  # the encoder alone was called
            return output
        layer = len(states) + 1
        if self.training and self.freezing.detaches(layer):
            hidden = hidden.detach()
        read, onward = self.pass_on(layer, hidden)
        if self.backbone_config.family.final_norm is not None:
            read = self.backbone.get_submodule(self.backbone_config.family.final_norm)(read)  # type: ignore[union-attr]
        states.append(self._read(read, self.reads[layer - 1]))
        return (onward, *output[1:]) if isinstance(output, tuple) else onward

    def _read(self, hidden: Tensor, reads: Reads) -> Tensor:
        """[B, tokens, H] -> [B, H], or [tokens without padding, H]."""
        mask: Tensor = self._calls.mask
        if reads == "first":
            return hidden[:, 0]
        if reads in ("all", "query"):
            return hidden[mask.bool()]
        weights = mask.to(hidden.dtype).unsqueeze(-1)
        return (hidden * weights).sum(1) / weights.sum(1)
