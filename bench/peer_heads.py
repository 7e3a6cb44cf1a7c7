"""Exit heads in plain torch, as research code has them: of padded hidden states, for the peers with exits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PREFIX = "exit_head."


class PeerHead(nn.Module):
    """The exits of a checkpoint. States are [rows, tokens, H], masks [rows, tokens] with 1 for tokens of the row."""

    def __init__(self, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """config: `head` of pfengine.json; tensors: fp32, by key without the prefix."""
        super().__init__()
        self.reads, self.has_poolers = config.get("reads", "first"), config["pooler"] != "none"
        self.weights = nn.ParameterDict(
            {key.replace(".", "_"): nn.Parameter(value, requires_grad=False) for key, value in tensors.items()}
        )

    def linear(self, name: str, x: Tensor, i: int) -> Tensor:
        weight, bias = self.weights[f"{name}_weight"], self.weights[f"{name}_bias"]
        shared = len(weight) == 1  # by all layers
        return F.linear(x, weight[0 if shared else i], bias[0 if shared else i])

    def state(self, x: Tensor, mask: Tensor, i: int) -> Tensor:
        """What exit i (from 0) makes its logits of: [rows, H]."""
        if self.reads == "first":
            read = x[:, 0]
        elif self.reads == "mean":
            read = (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        else:
            queries = self.weights["queries_weight"][i]  # [heads, H]
            scores = F.linear(x, queries).masked_fill(mask[..., None] == 0, -torch.inf)
            grouped = x.unflatten(-1, (len(queries), -1))
            read = (torch.softmax(scores, 1)[..., None] * grouped).sum(1).flatten(1)
        return torch.tanh(self.linear("poolers", read, i)) if self.has_poolers else read

    def full_depth(self, states: Sequence[Tensor], mask: Tensor) -> Tensor:
        """Logits of the last exit, from the states after every layer."""
        raise NotImplementedError

    def step(self, x: Tensor, mask: Tensor, i: int, past: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Logits of exit i, and what the exits after it need from it."""
        raise NotImplementedError


class LinearHead(PeerHead):
    """A classifier per layer, which answers alone."""

    def full_depth(self, states: Sequence[Tensor], mask: Tensor) -> Tensor:
        return self.step(states[-1], mask, len(states) - 1, None)[0]

    def step(self, x: Tensor, mask: Tensor, i: int, past: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return self.linear("classifiers", self.state(x, mask, i), i), None


class PastFutureHead(PeerHead):
    """The Past-Future head: past states summed, future states imitated from the present one."""

    def logits(self, past: Tensor, future: Tensor | float, layers: int) -> Tensor:
        labels = past.shape[-1] // 2
        gate = F.linear(torch.tanh(past[..., labels:] / layers), self.weights["gate_weight"], self.weights["gate_bias"])
        keep = torch.sigmoid(gate)
        return 2 * keep * past[..., :labels] + (2 - 2 * keep) * future

    def full_depth(self, states: Sequence[Tensor], mask: Tensor) -> Tensor:
        slots = [self.linear("projections", self.state(x, mask, i), i) for i, x in enumerate(states)]
        return self.logits(torch.stack(slots).sum(0), 0.0, len(states))

    def step(self, x: Tensor, mask: Tensor, i: int, past: Tensor | None) -> tuple[Tensor, Tensor | None]:
        state = self.state(x, mask, i)
        slot = self.linear("projections", state, i)
        past = slot if past is None else past + slot
        labels = past.shape[-1] // 2
        future = torch.zeros(labels)
        for j in range(i + 1, len(self.weights["projections_weight"])):
            imitated = torch.tanh(self.linear("learners", state, j - 1))
            future = future + self.linear("projections", imitated, j)[:, :labels]
        return self.logits(past, future, i + 1), past


HEADS: dict[str, type[PeerHead]] = {"linear": LinearHead, "past-future": PastFutureHead}


def build(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> PeerHead:
    """The head of a checkpoint; options that these peers do not know stop the benchmark."""
    plain = config.get("combine", "none") == "none" and not config.get("learned", False)
    known = config["type"] in HEADS and plain
    assert known, f"no peer is written for the head {config}"
    own = {key.removeprefix(PREFIX): value for key, value in tensors.items() if key.startswith(PREFIX)}
    return HEADS[config["type"]](config, own)
