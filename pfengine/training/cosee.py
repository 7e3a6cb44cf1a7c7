"""COSEE: each exit learns most from the rows that would leave near it (He et al., arXiv 2412.13236).

The formulas are those of the authors' code, https://github.com/He-Jianing/COSEE, with its energy signal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..convert import cosee
from ..heads import Scores
from .losses import row_losses
from .options import COUNT, NOT_NEGATIVE, Option
from .pooled import PooledModel
from .system import System

OPTIONS = {  # with the defaults of the authors' script
    "thresholds": Option("How many random thresholds each batch is weighted for.", COUNT, default=5),
    "beta": Option(
        "How fast weights fall with the distance from a row's exit, at the end of the run.", NOT_NEGATIVE, default=10.0
    ),
    "alpha": Option(
        "Weight of the loss that tells right rows from wrong ones by their signals.", NOT_NEGATIVE, default=0.1
    ),
    "margin": Option("How far apart those signals are to be.", NOT_NEGATIVE, default=0.3),
}


def energy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """1 / (1 + (sum_c exp(x_c / T))^T), in (0, 1) and lower for surer rows: [..., C] -> [...].

    It is sigmoid(E) of the criterion `energy`, E = -T ln sum exp(x / T), so that both order rows alike.
    """
    return torch.sigmoid(-temperature * torch.logsumexp(logits / temperature, -1))


def exits_taken(signals: Tensor, thresholds: Tensor) -> Tensor:
    """The exit that each row would leave at, counted from 0: signals [e, B] and thresholds [K] -> int64 [K, B].

    It is the first whose signal is below the threshold. The last exit takes all that are left.
    """
    below = signals < thresholds[:, None, None]
    below = torch.cat([below[:, :-1], torch.ones_like(below[:, :1])], 1)
    return below.int().argmax(1)


def sample_weights(exits: int, decay: float) -> Tensor:
    """How much a row that would leave at exit k counts in the loss of exit i: float32 [exits (k), exits (i)].

    It is softmax over i of -decay |i - k|; with decay 0 all exits count the same.
    """
    at = torch.arange(exits, dtype=torch.float32, device="cpu")
    return torch.softmax(-decay * (at[:, None] - at).abs(), -1)


def calibration(signals: Tensor, right: Tensor, margin: float) -> Tensor:
    """How little the signals tell right rows from wrong ones (the paper's online signal calibration): [] from [e, B].

    The mean of max(0, mean signal of right rows - that of wrong rows + margin) over the exits that have both; 0 where
    there are none.
    """
    share = right.float()
    both = (right.any(1) & ~right.all(1)).float()
    of_right = (signals * share).sum(1) / share.sum(1).clamp(min=1)
    of_wrong = (signals * (1 - share)).sum(1) / (1 - share).sum(1).clamp(min=1)
    return (F.relu(of_right - of_wrong + margin) * both).sum() / both.sum().clamp(min=1)


class COSEEModel(PooledModel):
    """Loss: mean over `thresholds` random thresholds of the weighted cross-entropies, plus `alpha` times `calibration`.

    For a threshold, each row's exit is found as at inference, and the row weighs exp(-b |i - exit|), normalised, in the
    loss of exit i. b rises linearly over the run from 0 to `beta`. Thresholds are uniform over the range of all signals
    of the epoch before, in the first epoch over (0, 1).
    """

    signal_range: Tensor
    next_range: Tensor

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.register_buffer("signal_range", torch.tensor([0.0, 1.0], dtype=torch.float32, device="cpu"))
        self.register_buffer("next_range", torch.tensor([1.0, 0.0], dtype=torch.float32, device="cpu"))

    def loss(self, scores: Sequence[Scores], labels: Tensor | None) -> Tensor:
        assert labels is not None
        logits = torch.stack([each.logits for each in scores])
        signals = energy(logits)
        if self.training and len(logits) > 1:
            self._follow(signals[:-1].detach())
        low, high = self.signal_range
        drawn = torch.rand(self.options["thresholds"], dtype=torch.float32, device=logits.device)
        thresholds = low + (high - low) * drawn
        by_exit = sample_weights(len(logits), self.options["beta"] * self.freezing.progress).to(logits.device)
        weights = by_exit[exits_taken(signals.detach(), thresholds)].mean(0).T
        weighted = (weights * row_losses(logits, labels)).sum(0).mean()
        right = logits.argmax(-1) == (labels if labels.dim() == 1 else labels.argmax(-1))
        return weighted + self.options["alpha"] * calibration(signals[:-1], right[:-1], self.options["margin"])

    def _follow(self, signals: Tensor) -> None:
        """Widen the range of this epoch's signals; at the start of an epoch, take over that of the one before."""
        if self.step and not self.epoch_step:
            self.signal_range.copy_(self.next_range)
            self.next_range[0], self.next_range[1] = 1.0, 0.0
        self.next_range[0] = torch.minimum(self.next_range[0], signals.amin())
        self.next_range[1] = torch.maximum(self.next_range[1], signals.amax())


SYSTEMS = (
    System(
        "cosee",
        "each exit learns from the rows that would leave near it",
        {"type": "linear", "pooler": "shared"},
        COSEEModel,
        options=("pooler", "reads"),
        own=OPTIONS,
        criterion="energy",
        regression=None,
        converter=cosee,
    ),
)
