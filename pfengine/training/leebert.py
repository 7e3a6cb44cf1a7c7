"""LeeBERT: every exit learns from the labels and from every other exit, with learned weights (Zhu, ACL 2021)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..heads import Scores
from .cross_level import weight_gradients
from .losses import exit_loss
from .options import POSITIVE, Option
from .pooled import PooledModel
from .stored_states import unstack
from .system import System

OPTIONS = {"weight_rate": Option("Learning rate of the losses' weights.", POSITIVE, default=1e-2)}


def loss_terms(logits: Tensor, labels: Tensor) -> Tensor:
    """All losses of a batch, [e, e] from logits [e, B, C]: what exit i learns from labels (i, i), from exit j (i, j).

    From labels: cross-entropy, or squared error for regression, where C is 1. From exit j, which gets no gradient:
    KL(p_j || p_i) with p = softmax(logits), or the squared distance of scores. Means over rows.
    """
    exits, _, width = logits.shape
    teachers = logits.detach()
    if width == 1:
        mutual = (logits[:, None, :, 0] - teachers[None, :, :, 0]).square().mean(-1)
    else:
        log_p, log_q = torch.log_softmax(logits, -1)[:, None], torch.log_softmax(teachers, -1)[None]
        mutual = (log_q.exp() * (log_q - log_p)).sum(-1).mean(-1)
    own = torch.eye(exits, dtype=torch.bool, device=logits.device)
    return torch.where(own, torch.diag(exit_loss(logits, labels)), mutual)


class LeeBERTModel(PooledModel):
    """Loss: sum_ij w_ij L_ij over `loss_terms`, w = softmax(v) over all n^2 terms, so that they start equal.

    v is learned by cross-level optimisation. The rows of each batch are of two halves of the training data, which
    change roles at every step. The gradient of v is that of the mean cross-entropy of all exits on one half, after one
    step of gradient descent on the weighted loss of the other half. The model itself learns from both. v is updated by
    the run's optimiser at a rate of its own, `weight_rate`, and is not stored in the checkpoint.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        exits = len(self.exit_layers)
        self.loss_weights = nn.Parameter(torch.zeros(exits, exits, dtype=torch.float32, device="cpu"))
        found = torch.zeros(exits, exits, dtype=torch.float32, device="cpu")
        self.register_buffer("balance", found, persistent=False)

    def rates(self) -> dict[str, float]:
        return super().rates() | {"loss_weights": self.options["weight_rate"]}

    def weights(self) -> Tensor:
        """w [e, e]."""
        return torch.softmax(self.loss_weights.flatten(), 0).view_as(self.loss_weights)

    def loss(self, scores: Sequence[Scores], labels: Tensor | None) -> Tensor:
        assert labels is not None
        weights = self.weights()
        terms = loss_terms(torch.stack([each.logits for each in scores]), labels)
        through = (weights * self.balance).sum()  # its gradient is that of v; it adds nothing to the loss
        return (weights.detach() * terms).sum() + through - through.detach()

    balance: Tensor

    def before_step(self, inputs: Mapping[str, Tensor]) -> None:
        """Find d objective / dw for this step; zeros where the batch has rows of one half only."""
        half = halves(inputs)
        if self.step % 2:
            half = ~half
        self.balance.zero_()
        if half.all() or not half.any():
            return
        probe, was = _Logits(self), self.training
        trained, unseen = ({key: value[which] for key, value in inputs.items()} for which in (half, ~half))

        def logits(parameters: Mapping[str, Tensor], rows: Mapping[str, Tensor]) -> Tensor:
            return torch.func.functional_call(probe, dict(parameters), (), dict(rows))

        self.eval()  # so that losses are functions of parameters alone: there is no dropout
        try:
            gradients = weight_gradients(
                lambda parameters: logits(parameters, trained),
                lambda found: loss_terms(found, trained["labels"]),
                lambda parameters: exit_loss(logits(parameters, unseen), unseen["labels"]).mean(),
                {name: value for name, value in probe.named_parameters() if value.requires_grad},
                self.weights().detach(),
                self.options["learning_rate"],
            )
        finally:
            self.train(was)
        self.balance.copy_(gradients)


def halves(inputs: Mapping[str, Tensor]) -> Tensor:
    """Which of two halves of the training data each row of a batch belongs to, bool [B]; equal texts to the same one.

    It is the parity of the sum of the row's token ids, or of bits of its states where exits are trained on those.
    """
    if "states" in inputs:
        return inputs["states"].flatten(1)[:, :1].contiguous().view(torch.int32)[:, 0] % 2 == 1
    return (inputs["input_ids"] * inputs["attention_mask"]).sum(1) % 2 == 1


class _Logits(nn.Module):
    """The logits of every exit, [e, B, C], in the precision of the parameters whatever `model` is wrapped in."""

    def __init__(self, model: PooledModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Tensor) -> Tensor:
        del inputs["labels"]
        states: list[Tensor]
        bounds: Tensor | None
        if "states" in inputs:
            states, bounds = unstack(inputs["states"])
        else:
            states, bounds = self.model.read_layers(inputs)
        return self.model.outputs(self.model.weigh(states, bounds), None, bounds)["logits"].transpose(0, 1)


SYSTEMS = (
    System(
        "leebert",
        "exits that learn from each other, with learned weights; experimental",
        {"type": "linear", "pooler": "shared"},
        LeeBERTModel,
        options=("pooler", "reads"),
        own=OPTIONS,
        criterion="patience",
    ),
)
