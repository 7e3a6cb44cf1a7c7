"""The BERxiT recipe: alternating fine-tuning, learning to exit, and the strategies it is compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..convert import berxit
from ..errors import ConfigError
from ..heads import PREFIX, Scores
from ..ops import reference
from .deebert import DeeBERTModel
from .losses import depth_weighted, exit_loss
from .options import COUNT, Option, given
from .phases import Phase
from .system import System

STRATEGIES = (
    "alternate-lte", "alternate", "all", "weight-linear", "two-stage", "self-distil", "only-highway", "raw", "limit",
)  # fmt: skip
OPTIONS = {
    "strategy": Option(
        "What is trained when: alternate-lte (published), alternate, all (joint), weight-linear, two-stage, "
        "self-distil, only-highway (all exits but the last), raw (the last exit) or limit (one exit).",
        choices=STRATEGIES,
        default=STRATEGIES[0],
    ),
    "limit": Option("The layer whose exit strategy 'limit' trains.", COUNT),
}


class BERxiTModel(DeeBERTModel):
    """With L the loss of the last exit and h_i that of exit i < n (Xin et al., EACL 2021, and their code):

        raw            L
        only-highway   sum_i h_i
        all            sum_i h_i + L                                                           ("joint" in the paper)
        weight-linear  (n L + sum_i i h_i) / (n (n + 1) / 2)
        two-stage      raw; then only-highway, of which only exits learn                       (DeeBERT's)
        self-distil    all + sum_i sum_{rows, labels} -softmax(logits_n) ln softmax(logits_i), the first detached
        alternate      raw at even steps of an epoch, all at odd ones                          (section 3.2)
        alternate-lte  raw + M at even steps, only-highway + M at odd ones                     (section 3.3)
        limit          h_i of one exit, or L

    M is the mean over all layers and rows of (u - t)^2, with u the learned score, and t 1 where that exit's label is
    wrong, else 0; for regression |tanh(score - label)|. Gradients of M reach the encoder.

    Where paper and code differ this follows the code, by which their checkpoints were made: u says how likely an answer
    is wrong, not right; it is read off the pooled state, not the hidden one; and odd steps of alternate-lte leave out
    L. The u of the last layer has a pooler of its own, which is trained and not written, as that exit is never tested.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.strategy: str = self.options.get("strategy", STRATEGIES[0])
        hidden = self.backbone_config.hidden_size
        if self.strategy == "self-distil" and self.backbone_config.num_labels == 1:
            raise ConfigError("strategy 'self-distil' distils probabilities of labels, which regression does not have")
        self.last_pooler: nn.Linear | None = None
        if self.head_config.get("learned") and self.head_config["pooler"] == "per-layer":
            self.last_pooler = nn.Linear(hidden, hidden, dtype=torch.float32, device="cpu")
            nn.init.normal_(self.last_pooler.weight, std=float(self.backbone_config.raw.get("initializer_range", 0.02)))
            nn.init.zeros_(self.last_pooler.bias)

    def initialise(self, pooler: tuple[Tensor, Tensor]) -> None:
        super().initialise(pooler)
        if self.last_pooler is not None:
            with torch.no_grad():
                self.last_pooler.weight.copy_(pooler[0][-1])
                self.last_pooler.bias.copy_(pooler[1][-1])

    def phases(self) -> tuple[Phase, ...]:
        return super().phases() if self.strategy == "two-stage" else (Phase(),)

    def fixed(self) -> list[Tensor]:
        return super().fixed() if self.strategy == "two-stage" else []

    def scores(self, states: Sequence[Tensor], bounds: Tensor | None) -> list[Scores]:
        found = super().scores(states, bounds)
        if self.last_pooler is None:
            return found
        tensors, pooler = self.head_tensors(), (self.last_pooler.weight, self.last_pooler.bias)
        pooled = reference.linear(self.drop(states[-1]), reference.prepare_linear(*pooler, torch.float32), "tanh")
        learned = reference.prepare_linear(
            tensors[f"{PREFIX}learned.weight"], tensors[f"{PREFIX}learned.bias"], torch.float32
        )
        return [*found[:-1], Scores(found[-1].logits, torch.sigmoid(reference.linear(pooled, learned, "none")[:, 0]))]

    def loss(self, scores: Sequence[Scores], labels: Tensor | None) -> Tensor:
        assert labels is not None
        logits = torch.stack([each.logits for each in scores])
        losses = exit_loss(logits, labels)
        highways, last = losses[:-1].sum(), losses[-1]
        even = self.epoch_step % 2 == 0
        if self.strategy == "alternate-lte":
            return (last if even else highways) + learning_loss(scores, labels)
        if self.strategy == "alternate":
            return last if even else highways + last
        if self.strategy == "two-stage":
            return super().loss(scores, labels)
        if self.strategy == "self-distil":
            taught = -torch.softmax(logits[-1].detach(), -1) * torch.log_softmax(logits[:-1], -1)
            return highways + last + taught.sum()
        if self.strategy == "limit":
            return losses[self.options["limit"] - 1]
        if self.strategy == "weight-linear":
            return depth_weighted(losses)
        return {"raw": last, "only-highway": highways, "all": highways + last}[self.strategy]


def learning_loss(scores: Sequence[Scores], labels: Tensor) -> Tensor:
    """M of `BERxiTModel`. labels: as those of `ExitModel.loss`."""
    logits = torch.stack([each.logits for each in scores]).detach()
    learned = torch.stack([each.learned for each in scores])  # type: ignore[misc]
    if logits.shape[-1] == 1:
        wrong = torch.tanh(logits[..., 0] - labels).abs()
    else:
        truth = labels if labels.dim() == 1 else labels.argmax(-1)
        wrong = (logits.argmax(-1) != truth).to(learned.dtype)
    return F.mse_loss(learned, wrong)


def berxit_head(options: Mapping[str, Any], shared_pooler: bool) -> dict[str, Any]:
    """The `head` object: a pooler per layer, as in the authors' code; a learned score where the strategy trains one.

    Raises ConfigError for a strategy and a limit that do not fit.
    """
    strategy, limit, layers = options["strategy"], options["limit"], options["layers"]
    if (limit is None) == (strategy == "limit"):
        said = "needs limit: the layer whose exit is trained" if limit is None else f"has no use for limit, {limit}"
        raise ConfigError(f"strategy {strategy!r} {said}")
    if limit is not None and layers is not None and limit > layers:
        raise ConfigError(f"limit is {limit}; the encoder has {layers} layers")
    head = {"type": "linear", "pooler": options.get("pooler") or "per-layer", "combine": "none"}
    head |= given(options, "reads")
    return head | ({"learned": True} if strategy == "alternate-lte" else {})


SYSTEMS = (
    System(
        "berxit",
        "classifiers that learn when to exit",
        berxit_head,
        BERxiTModel,
        options=("pooler", "reads"),
        criterion=lambda head: "learned" if head.get("learned") else "entropy",
        regression=lambda head: "learned" if head.get("learned") else "never",
        converter=berxit,
        own=OPTIONS,
    ),
)
