"""The model that is trained: transformers' encoder, read after every layer, and an exit head of ours."""

from __future__ import annotations

import contextlib
import threading
from abc import abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import BackboneConfig
from ..heads import HEADS, PREFIX
from .freezing import Freezing


class ExitModel(nn.Module):
    """Encoder and exit head; `forward` gives the loss and the logits of every exit.

    backbone: transformers' encoder without pooler, fp32; None where `outputs` alone is called. `checkpoint_tensors` is
    what `pfengine.load` reads. A recipe is a subclass with its `outputs`.
    """

    def __init__(
        self,
        backbone: nn.Module | None,
        config: BackboneConfig,
        head: dict[str, Any],
        *,
        dropout: float = 0.0,
        freezing: Freezing | None = None,
    ) -> None:
        super().__init__()
        self.backbone, self.backbone_config, self.head_config = backbone, config, head
        self.dropout, self.freezing = dropout, freezing or Freezing()
        std = float(config.raw.get("initializer_range", 0.02))
        self._keys: dict[str, str] = {}
        self.exit_head = nn.Module()  # no ParameterDict: DataParallel's copies of one are empty
        for key, shape in HEADS[head["type"]].shapes(config, head).items():
            value = torch.zeros(shape, dtype=torch.float32, device="cpu")
            if not key.endswith("bias"):
                value = torch.randn(shape, dtype=torch.float32, device="cpu") * std
            name = key.removeprefix(PREFIX).replace(".", "_")
            self._keys[name] = key
            self.exit_head.register_parameter(name, nn.Parameter(value))
        self._calls = threading.local()  # DataParallel runs its copies in threads
        for module in self._layers() if backbone is not None else ():
            module.register_forward_hook(self._after_layer)

    def head_tensors(self) -> dict[str, Tensor]:
        """The head's parameters under their checkpoint keys."""
        return {key: getattr(self.exit_head, name) for name, key in self._keys.items()}

    def load_head(self, tensors: dict[str, Tensor]) -> None:
        """Copy values into the head's parameters, from tensors under checkpoint keys."""
        with torch.no_grad():
            for key, value in self.head_tensors().items():
                value.copy_(tensors[key])

    def checkpoint_tensors(self) -> dict[str, Tensor]:
        """All tensors as fp32 under their checkpoint keys."""
        family = self.backbone_config.family
        tensors = {f"{family.prefix}{key}": value for key, value in self.backbone.state_dict().items()}  # type: ignore[union-attr]
        wanted = self.backbone_config.encoder_shapes().keys()
        tensors = {key: value for key, value in tensors.items() if key in wanted} | self.head_tensors()
        return {key: value.detach().float().cpu().clone() for key, value in tensors.items()}

    def forward(self, labels: Tensor | None = None, **inputs: Tensor) -> dict[str, Tensor]:
        """inputs: as transformers' encoders take them, [B, tokens]; labels: [B], ids or, for regression, floats.

        Returns logits [B, exits, C] and, with labels, the loss and its terms.
        """
        read = self.read_layers(inputs)
        with torch.autocast(read.device.type, enabled=False):  # the head is small, and sums over layers
            return self.outputs(read.float(), labels)

    @abstractmethod
    def outputs(self, first: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        """first: what the head reads after each layer, float32 [n, B, H]."""

    def read_layers(self, inputs: dict[str, Tensor]) -> Tensor:
        """What the head reads after every layer, [n, B, H]; some of it is detached or frozen while training.

        That is the first token's hidden state, or the mean of those of a row's tokens.
        """
        self._calls.first, self._calls.mask = [], inputs.get("attention_mask")
        with self.freezing.step(self._layers()) if self.training else contextlib.nullcontext():
            self.backbone(**inputs)  # type: ignore[misc]
        return torch.stack(self._calls.first)

    def drop(self, states: Tensor) -> Tensor:
        return F.dropout(states, self.dropout, self.training)

    def _layers(self) -> list[nn.Module]:
        """The modules that are called once per layer, in order; where layers share weights, one per group."""
        path = self.backbone_config.family.block_key.partition(".{")[0]
        modules: Any = self.backbone.get_submodule(path)  # type: ignore[union-attr]
        return list(modules)

    def _after_layer(self, _module: nn.Module, _inputs: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        first: list[Tensor] = self._calls.first
        if self.training and self.freezing.detaches(len(first) + 1):
            hidden = hidden.detach()
            output = (hidden, *output[1:]) if isinstance(output, tuple) else hidden
        first.append(self._read(hidden))
        return output

    def _read(self, hidden: Tensor) -> Tensor:
        """[B, tokens, H] -> [B, H]."""
        if self.head_config.get("reads", "first") == "first":
            return hidden[:, 0]
        mask: Tensor | None = self._calls.mask
        if mask is None:
            return hidden.mean(1)
        weights = mask.to(hidden.dtype).unsqueeze(-1)
        return (hidden * weights).sum(1) / weights.sum(1)


def exit_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the batch for each exit: cross-entropy, squared error where there is one label. [e, B, C] -> [e].

    labels: ids [B], probabilities [B, C], or numbers [B].
    """
    exits, rows, width = logits.shape
    if width == 1:
        return (logits[..., 0] - labels.to(logits.dtype)).square().mean(1)
    flat = logits.reshape(exits * rows, width)
    return (
        F.cross_entropy(flat, labels.repeat(exits, *[1] * (labels.dim() - 1)), reduction="none")
        .view(exits, rows)
        .mean(1)
    )


def depth_weighted(losses: Tensor) -> Tensor:
    """sum_i i L_i / sum_i i over the exits i = 1..n: deeper exits weigh more."""
    depth = torch.arange(1, len(losses) + 1, device=losses.device, dtype=losses.dtype)
    return (depth * losses).sum() / depth.sum()
