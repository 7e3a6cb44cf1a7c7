"""Exits that are trained to differ from those before them, and that vote (Sun et al., arXiv 2105.13792)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..heads import Scores
from .losses import exit_loss
from .options import SHARE, Option
from .pooled import PooledModel
from .system import System

OPTIONS = {"diversity": Option("How much it counts that exits differ from those before them.", SHARE, default=0.1)}


def diversity(logits: Tensor) -> Tensor:
    """How far each exit after the first is from the nearest exit before it: [e, B, C] -> [e - 1, B].

    For exit i, min over j < i of the cross-entropy -sum_c p_j(c) ln p_i(c), p = softmax(logits). p_j stands where a
    label would, and so it gets no gradient: exit i moves away from it. Otherwise exit j would be trained towards labels
    that exit i is sure are wrong.
    """
    log_p = torch.log_softmax(logits, -1)
    cross = -torch.einsum("jbc,ibc->ijb", log_p.detach().exp(), log_p)
    exits = len(logits)
    later = torch.ones(exits, exits, dtype=torch.bool, device=logits.device).triu()  # j >= i
    return cross.masked_fill(later[..., None], torch.inf)[1:].amin(1)


class VotingModel(PooledModel):
    """Loss: the mean over exits of their cross-entropy less `diversity` times how far each is from those before it.

    With weight w < 1 this is, up to the factor 1 - w, cross-entropy against y + w / (1 - w) (y - p_j): the label moved
    further away from what the nearest earlier exit says. Where that exit is right and sure, nothing changes.
    """

    def loss(self, scores: Sequence[Scores], labels: Tensor | None) -> Tensor:
        assert labels is not None
        logits = torch.stack([each.logits for each in scores])
        apart = diversity(logits).mean(1).sum()
        return (exit_loss(logits, labels).sum() - self.options["diversity"] * apart) / len(logits)


SYSTEMS = (
    System(
        "voting",
        "exits trained to differ, which vote; experimental",
        {"type": "linear", "pooler": "shared"},
        VotingModel,
        options=("pooler", "reads"),
        own=OPTIONS,
        criterion="voting",
        regression=None,
    ),
)
