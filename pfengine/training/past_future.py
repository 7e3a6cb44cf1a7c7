"""The Past-Future recipe: all exits are trained jointly, with learners that imitate the states to come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..convert import past_future
from ..errors import ConfigError
from ..heads import PastFuture
from ..heads.past_future import CHOICES
from ..ops import reference
from .losses import depth_weighted, exit_loss
from .model import ExitModel
from .plain import LinearModel, linear_head
from .system import System

Objective = Literal["paper", "authors"]
NAIVE = ("ensemble", "vote")  # strategies over the labels or probabilities of plain classifiers


class PastFutureModel(ExitModel):
    """loss = weighted_ce + imitation ("paper", eq. 13), or half of it ("authors").

    weighted_ce = sum_i i CE_i / sum_i i (eq. 9-11); imitation: see `imitation_loss` (eq. 4-5, 12). In the authors'
    code the logits of layer i send no gradient into the states of earlier layers; under "paper" they do.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.objective: Objective = self.options.get("form") or "paper"

    def outputs(
        self, states: Sequence[Tensor], labels: Tensor | None, bounds: Tensor | None = None
    ) -> dict[str, Tensor]:
        own, guesses, logits = self.exits(states)
        out = {"logits": logits.transpose(0, 1)}
        if labels is not None:
            out["weighted_ce"] = depth_weighted(exit_loss(logits, labels))
            out["imitation"] = imitation_loss(own, guesses)
            out["loss"] = (out["weighted_ce"] + out["imitation"]) / (2 if self.objective == "authors" else 1)
        return out

    def exits(self, read: Sequence[Tensor]) -> tuple[Tensor, list[Tensor], Tensor]:
        """States [n, B, H], for each layer i < n the guesses of those after it [B, n - i, H], logits [n, B, C]."""
        config = self.backbone_config
        head = PastFuture(reference, config, self.head_config, self.head_tensors(), torch.float32, fold=False)
        states, guesses, logits, memory = [], [], [], None
        for layer in range(1, config.num_layers + 1):
            state = head.pooler(layer, read[layer - 1])
            states.append(state)
            dropped = self.drop(state)
            past, kept = head.past.read(layer, dropped, memory, answer=True)
            if self.objective == "authors":
                _, kept = head.past.read(layer, dropped.detach(), memory, answer=False)
            memory, future = kept, None
            if head.options.future and layer < config.num_layers:
                guesses.append(head.future.guesses(layer, state))
                future = head.future.read(layer, self.drop(guesses[-1]))
            assert past is not None
            logits.append(head.merge(layer, past, future))
        return torch.stack(states), guesses, torch.stack(logits)


def imitation_loss(states: Tensor, guesses: list[Tensor]) -> Tensor:
    """Mean over sources i < n of the mean of 1 - cos(guess of s_j from s_i, s_j) over rows and j > i; 0 without any.

    states [n, B, H]: those to imitate are detached; the source is not, so that gradients reach the encoder by it.
    """
    losses = [
        (1 - F.cosine_similarity(guess, states[i + 1 :].detach().transpose(0, 1), dim=-1)).mean()
        for i, guess in enumerate(guesses)
    ]
    return torch.stack(losses).mean() if losses else states.new_zeros(())


def past_future_head(options: Mapping[str, Any], shared_pooler: bool) -> dict[str, Any]:
    """The `head` object for the paper's equations or the authors' code, with single options replaced.

    options: of a training run. With incorporate "ensemble" or "vote" it is that of plain classifiers. Raises
    ConfigError for options that they do not have.
    """
    given = {name: options[name] for name in CHOICES if options.get(name) is not None}
    if given.get("incorporate") in NAIVE:
        if unused := [name for name in given if name not in ("incorporate", "pooler", "reads")]:
            raise ConfigError(
                "; ".join(
                    f"{name} is {given[name]!r}, an option of the past-future head, which this run does not train"
                    for name in unused
                )
            )
        return linear_head(options, shared_pooler) | {"combine": given["incorporate"]}
    form = options.get("form") or "paper"
    if form == "authors":
        given.setdefault("pooler", "shared" if shared_pooler else "per-layer")
    head = {"type": "past-future", **FORMS[form], **given}
    if head["states"] == "past" and "gate" not in given:
        head["gate"] = "none"  # there is no future to weigh
    return head


def past_future_recipe(backbone: Any, config: Any, head: dict[str, Any], **options: Any) -> ExitModel:
    """The model to train for a head that `past_future_head` returned."""
    kind = LinearModel if head["type"] == "linear" else PastFutureModel
    return kind(backbone, config, head, **options)


FORMS: dict[str, dict[str, Any]] = {
    "paper": {"pooler": "none", "learner": "linear", "incorporate": "concat", "states": "past-future", "gate": "row"},
    "authors": {
        "pooler": "per-layer", "learner": "tanh", "incorporate": "concat-shared", "states": "past-future",
        "gate": "label",
    },
}  # fmt: skip


SYSTEMS = (
    System(
        "past-future",
        "learners imitate the states to come",
        past_future_head,
        past_future_recipe,
        options=(*CHOICES, "form"),
        criterion="entropy",
        converter=past_future,
        label_sets=True,
    ),
)
