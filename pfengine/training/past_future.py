"""The Past-Future model as it is trained: transformers' encoder, and the head's losses as in the authors' code."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import BackboneConfig
from ..heads.past_future import PREFIX, PastFuture


class PastFutureModel(nn.Module):
    """Encoder and exit head; `forward` gives the loss and the logits of every layer.

    backbone: transformers' encoder without pooler, fp32. Head tensors carry the names of the checkpoint, so
    `checkpoint_tensors` is what `pfengine.load` reads.
    """

    def __init__(self, backbone: nn.Module, config: BackboneConfig, head: dict[str, Any], dropout: float) -> None:
        super().__init__()
        self.backbone, self.backbone_config, self.dropout = backbone, config, dropout
        std = float(config.raw.get("initializer_range", 0.02))
        self.exit_head = nn.ParameterDict()
        for key, shape in PastFuture.shapes(config, head).items():
            value = torch.zeros(shape) if key.endswith("bias") else torch.randn(shape) * std
            self.exit_head[key.removeprefix(PREFIX).replace(".", "_")] = nn.Parameter(value)

    def checkpoint_tensors(self) -> dict[str, Tensor]:
        """All tensors as fp32 under their checkpoint names."""
        family = self.backbone_config.family
        tensors = {f"{family.prefix}{key}": value for key, value in self.backbone.state_dict().items()}
        tensors |= {f"{PREFIX}{key.replace('_', '.')}": value for key, value in self.exit_head.items()}
        wanted = family.shapes(self.backbone_config).keys() | {key for key in tensors if key.startswith(PREFIX)}
        return {key: value.detach().float().cpu() for key, value in tensors.items() if key in wanted}

    def forward(self, labels: Tensor | None = None, **inputs: Tensor) -> dict[str, Tensor]:
        """inputs: as transformers' encoders take them, [B, tokens]; labels: int64 [B].

        Returns logits [B, n, C] and, with labels, loss = (weighted_ce + imitation) / 2.
        """
        hidden = self.backbone(**inputs, output_hidden_states=True).hidden_states[1:]
        pooled = self.pool(torch.stack([h[:, 0] for h in hidden]))
        logits, guesses = self.head(pooled)
        out = {"logits": logits.transpose(0, 1)}
        if labels is not None:
            out["weighted_ce"] = weighted_cross_entropy(logits, labels)
            out["imitation"] = imitation_loss(pooled, guesses)
            out["loss"] = (out["weighted_ce"] + out["imitation"]) / 2
        return out

    def pool(self, first: Tensor) -> Tensor:
        """tanh(W_i h_i[first] + b_i): first tokens' states [n, B, H] -> [n, B, H]."""
        weight, bias = self.exit_head["poolers_weight"], self.exit_head["poolers_bias"]
        return torch.tanh(first @ weight.transpose(1, 2) + bias[:, None])

    def head(self, pooled: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits of all layers [n, B, C] and, for each layer i < n, the guesses of the layers after it [n - i, B, H].

        Gradients as in the authors' code: in the logits of layer i, states of earlier layers are detached.
        """
        head, n, labels = self.exit_head, self.backbone_config.num_layers, self.backbone_config.num_labels
        guesses = [
            torch.tanh(pooled[i] @ head["learners_weight"][i:].transpose(1, 2) + head["learners_bias"][i:, None])
            for i in range(n - 1)
        ]
        own = self._project(pooled)
        earlier = self._project(pooled.detach())
        past = earlier.cumsum(0) - earlier + own  # [n, B, 2C]
        slots = torch.arange(1, n + 1, device=past.device).view(-1, 1, 1)
        gate = F.linear(torch.tanh(past[..., labels:] / slots), head["gate_weight"], head["gate_bias"])
        keep = torch.sigmoid(gate.float())
        future = torch.zeros_like(past[..., :labels])
        for i, guess in enumerate(guesses):
            weight, bias = head["projections_weight"][i + 1 :, :labels], head["projections_bias"][i + 1 :, :labels]
            future[i] = ((self._drop(guess) @ weight.transpose(1, 2)).float() + bias[:, None]).sum(0)
        return 2 * keep * past[..., :labels] + (2 - 2 * keep) * future, guesses

    def _project(self, pooled: Tensor) -> Tensor:
        weight, bias = self.exit_head["projections_weight"], self.exit_head["projections_bias"]
        return (self._drop(pooled) @ weight.transpose(1, 2)).float() + bias[:, None]

    def _drop(self, states: Tensor) -> Tensor:
        return F.dropout(states, self.dropout, self.training)


def weighted_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """sum_i i CE_i / sum_i i over the layers: deeper exits weigh more (eq. 13). logits [n, B, C], labels [B]."""
    n, rows, classes = logits.shape
    each = F.cross_entropy(logits.reshape(n * rows, classes), labels.repeat(n), reduction="none").view(n, rows).mean(1)
    depth = torch.arange(1, n + 1, device=logits.device, dtype=each.dtype)
    return (depth * each).sum() / depth.sum()


def imitation_loss(pooled: Tensor, guesses: list[Tensor]) -> Tensor:
    """Mean over sources i < n of the mean of 1 - cos(guess of p_j from p_i, p_j) over rows and j > i.

    The states to imitate are detached; the source is not.
    """
    losses = [
        (1 - F.cosine_similarity(guess.float(), pooled[i + 1 :].detach().float(), dim=-1)).mean()
        for i, guess in enumerate(guesses)
    ]
    return torch.stack(losses).mean()
