"""FastBERT (Liu et al., ACL 2020): the last classifier learns from labels, the others from it, on any text."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..convert import fastbert
from ..heads import Attentive, Scores
from ..ops import Queries, reference
from .losses import divergences, exit_loss
from .model import ExitModel
from .phases import Phase, trains_exits
from .system import System

FASTER = 10  # times the learning rate, for the students (the authors' code)


class FastBERTModel(ExitModel):
    """First the loss of the teacher, the last exit; then, without labels, that of the students, the exits before it.

    The second phase is self-distillation (section 3.4.2): encoder and teacher are frozen, the loss is the sum over
    students of KL(p_teacher || p_student), a mean over rows, and the learning rate is ten times the run's. The teacher
    has dropout then, as the encoder has. All of this is as in the authors' code; the paper prints KL the other way
    round, KL(p_student || p_teacher). For regression, which the authors do not have, the loss is the squared
    difference from the teacher's score.

    Dropout is that of attention within the classifiers, as in the authors' code, not of the states they read.
    """

    def phases(self) -> tuple[Phase, ...]:
        rate = self.options.get("learning_rate")
        students = Phase("self-distillation", trains_exits, labelled=False, learning_rate=rate and FASTER * rate)
        return (Phase("the encoder and its last exit"), students)[: len(self.exit_layers)]

    def fixed(self) -> list[Tensor]:
        untouched = slice(-1) if self.phase.labelled else slice(-1, None)
        return [tensor[untouched] for tensor in self.head_tensors().values()]

    def read_layers(self, inputs: dict[str, Tensor]) -> tuple[list[Tensor], Tensor | None]:
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.phase.labelled):
            return super().read_layers(inputs)

    def scores(self, states: Sequence[Tensor], bounds: Tensor | None) -> list[Scores]:
        """The scores of every exit; while the teacher is trained, of the last one alone."""
        head, found = self.head(), []
        assert isinstance(head, Attentive)
        assert bounds is not None
        first = len(states) - 1 if self.training and self.phase.labelled else 0
        for i in range(first, len(states)):
            pooled = reference.composed_attentive(
                states[i], bounds, head.attentive[i], reference.linear, self.attention
            )
            logits, _, _ = reference.exit(pooled, head.exits[i], None, answer=True)
            assert logits is not None
            found.append(Scores(logits))
        return found

    def attention(
        self, qkv: Tensor, bounds: Tensor, heads: int, scale: float, queries: Queries | None = None
    ) -> Tensor:
        """`reference.attention` with dropout, for all rows at once; queries: first tokens, or None for all tokens."""
        lengths = bounds.diff()
        places = torch.arange(int(lengths.max()), dtype=lengths.dtype, device=bounds.device)
        there = places < lengths[:, None]  # [B, longest]
        padded = qkv.new_zeros(*there.shape, qkv.shape[1])
        padded[there] = qkv
        q, k, v = padded.unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)  # [B, heads, longest, d]
        y = F.scaled_dot_product_attention(
            q if queries is None else q[:, :, :1], k, v, attn_mask=there[:, None, None, :], scale=scale,
            dropout_p=self.dropout if self.training else 0.0,
        ).transpose(1, 2).flatten(2)  # fmt: skip
        return y[there] if queries is None else y[:, 0]

    def loss(self, scores: Sequence[Scores], labels: Tensor | None) -> Tensor:
        if self.phase.labelled:
            assert labels is not None
            return exit_loss(scores[-1].logits[None], labels)[0]
        return divergences(torch.stack([each.logits for each in scores])).sum()


SYSTEMS = (
    System(
        "fastbert",
        "self-distillation of classifiers with attention of their own",
        {"type": "attentive", "width": 128, "heads": 2, "pooling": "first"},
        FastBERTModel,
        criterion="fastbert",
        converter=fastbert,
    ),
)
