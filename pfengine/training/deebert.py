"""DeeBERT (Xin et al., ACL 2020): an ordinary fine-tuned model, to which exits are added afterwards."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..convert import deebert
from ..heads import Scores
from .losses import losses_of
from .phases import Phase, trains_exits
from .pooled import PooledModel
from .system import System

FINE_TUNING, EXITS = Phase("the encoder and its classifier"), Phase("the exits", trains_exits)


class DeeBERTModel(PooledModel):
    """First the loss of the last exit, then, all else frozen, the sum of those of the exits before it (section 3.2).

    The last exit is the model's ordinary classifier. In the authors' second stage the loss runs back through the frozen
    encoder as well, whose gradients count in the clipping to norm 1 and so shorten the exits' steps; here it does not.
    """

    def phases(self) -> tuple[Phase, ...]:
        first = () if self.backbone is None else (FINE_TUNING,)  # exits are attached to a fine-tuned model
        return (*first, EXITS) if len(self.exit_layers) > 1 else first

    def fixed(self) -> list[Tensor]:
        untouched = slice(-1, None) if self.phase is EXITS else slice(-1)
        return [tensor[untouched] for tensor in self.head_tensors().values()]

    def loss(self, scores: Sequence[Scores], labels: Tensor | None) -> Tensor:
        losses = losses_of(scores, labels)
        return losses[:-1].sum() if self.phase is EXITS else losses[-1]


SYSTEMS = (
    System(
        "deebert",
        "exits added to a fine-tuned model",
        {"type": "linear", "pooler": "per-layer"},
        DeeBERTModel,
        options=("pooler", "reads"),
        criterion="entropy",
        converter=deebert,
    ),
)
