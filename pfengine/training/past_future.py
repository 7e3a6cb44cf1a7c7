"""The Past-Future recipe: all exits are trained jointly, with learners that imitate the states to come."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..heads import PastFuture
from ..ops import reference
from .model import ExitModel, depth_weighted, exit_loss

Objective = Literal["paper", "authors"]


class PastFutureModel(ExitModel):
    """loss = weighted_ce + imitation ("paper", eq. 13), or half of it ("authors").

    weighted_ce = sum_i i CE_i / sum_i i (eq. 9-11); imitation: see `imitation_loss` (eq. 4-5, 12). In the authors'
    code the logits of layer i send no gradient into the states of earlier layers; under "paper" they do.
    """

    objective: Objective = "paper"

    def outputs(self, first: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        states, guesses, logits = self.exits(first)
        out = {"logits": logits.transpose(0, 1)}
        if labels is not None:
            out["weighted_ce"] = depth_weighted(exit_loss(logits, labels))
            out["imitation"] = imitation_loss(states, guesses)
            out["loss"] = (out["weighted_ce"] + out["imitation"]) / (2 if self.objective == "authors" else 1)
        return out

    def exits(self, first: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
        """States [n, B, H], for each layer i < n the guesses of those after it [B, n - i, H], logits [n, B, C]."""
        config = self.backbone_config
        head = PastFuture(reference, config, self.head_config, self.head_tensors(), torch.float32, fold=False)
        states, guesses, logits, memory = [], [], [], None
        for layer in range(1, config.num_layers + 1):
            state = head.pooler(layer, first[layer - 1])
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


def head_of(form: Objective, **options: Any) -> dict[str, Any]:
    """The `head` object for the paper's equations or the authors' code, with single options replaced."""
    head = {"type": "past-future", **FORMS[form]}
    head |= {key: value for key, value in options.items() if value is not None}
    if head["states"] == "past" and options.get("gate") is None:
        head["gate"] = "none"  # there is no future to weigh
    return head


FORMS: dict[str, dict[str, Any]] = {
    "paper": {"pooler": "none", "learner": "linear", "incorporate": "concat", "states": "past-future", "gate": "row"},
    "authors": {
        "pooler": "per-layer", "learner": "tanh", "incorporate": "concat-shared", "states": "past-future",
        "gate": "label",
    },
}  # fmt: skip
