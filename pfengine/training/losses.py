"""Losses over the logits of all exits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..heads import Scores


def losses_of(scores: Sequence[Scores], labels: Tensor | None) -> Tensor:
    """`exit_loss` of the scores of every exit, in a phase with labels."""
    assert labels is not None
    return exit_loss(torch.stack([each.logits for each in scores]), labels)


def exit_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the batch for each exit of `row_losses`: [e, B, C] -> [e]."""
    return row_losses(logits, labels).mean(1)


def row_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of every exit and row, squared error where there is one label: [e, B, C] -> [e, B].

    labels: ids [B], probabilities [B, C], or numbers [B]. Where labels are given or not each by itself, [B, C, 2]: the
    probabilities that a label is not given and that it is. Then it is the mean of the labels' cross-entropies.
    """
    exits, rows, width = logits.shape
    if labels.dim() == 3:
        wanted = labels[..., 1].to(logits.dtype).expand_as(logits)
        return F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean(2)
    if width == 1:
        return (logits[..., 0] - labels.to(logits.dtype)).square()
    flat = logits.reshape(exits * rows, width)
    repeated = labels.repeat(exits, *[1] * (labels.dim() - 1))
    return F.cross_entropy(flat, repeated, reduction="none").view(exits, rows)


def given_or_not(logits: Tensor) -> Tensor:
    """The probabilities that a label is not given and that it is, for `row_losses`: [B, C] -> [B, C, 2]."""
    return torch.stack([torch.sigmoid(-logits), torch.sigmoid(logits)], -1)


def depth_weighted(losses: Tensor) -> Tensor:
    """sum_i i L_i / sum_i i over the exits i = 1..n: deeper exits weigh more."""
    depth = torch.arange(1, len(losses) + 1, device=losses.device, dtype=losses.dtype)
    return (depth * losses).sum() / depth.sum()


def divergences(logits: Tensor) -> Tensor:
    """KL(p_last || p_i) of each exit i before the last, mean over rows: [e, B, C] -> [e - 1]. The last is a constant.

    Where there is one label it is the squared distance of the scores.
    """
    last = logits[-1].detach()
    if logits.shape[2] == 1:
        return exit_loss(logits[:-1], last[:, 0])
    wanted = torch.softmax(last, -1).expand_as(logits[:-1])
    return F.kl_div(torch.log_softmax(logits[:-1], -1), wanted, reduction="none").sum(-1).mean(1)
