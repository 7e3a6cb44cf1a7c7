"""The RightTool recipe: classifiers at chosen layers trained jointly, then a temperature for each of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..convert import righttool
from ..errors import ConfigError
from ..exits.temperature import fit_temperature
from ..heads import PREFIX, ExitHead, Mixed, Scores
from ..ops import reference
from .losses import losses_of
from .model import ExitModel
from .options import COUNT, Option, given
from .phases import HeldOut, Phase
from .pooled import copy_pooler
from .system import System

EXITS = 4  # as many as in the paper
OPTIONS = {
    "exits": Option(
        "Layers with a classifier; those above the last are dropped. By default about four, evenly spread.",
        COUNT,
        many=True,
    ),
    "mixing": Option(
        "Mixing weights: learned, or fixed, at random numbers of unit norm (the authors' code).",
        choices=("learned", "fixed"),
        default="learned",
    ),
}
MIX, TEMPERATURES = f"{PREFIX}mix.weight", f"{PREFIX}log_temperatures"


class RightToolModel(ExitModel):
    """loss = sum_c CE_c over the exits, at temperature 1 (Schwartz et al., ACL 2020, section 3).

    Mixing weights are learned, as the paper has them, and start equal, with unit norm. In the authors' code they are
    replaced after every step, so that its optimiser never changes them: they stay random vectors of unit norm. The
    option mixing "fixed" is that.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.learns_mix = self.options.get("mixing", "learned") == "learned"
        tensors = self.head_tensors()
        with torch.no_grad():
            for layer, weights in zip(self.head_config["layers"], tensors[MIX], strict=True):
                start = torch.ones if self.learns_mix else torch.randn
                read = start(layer, dtype=torch.float32, device="cpu")
                weights.zero_()[:layer] = read / read.norm()
            tensors[TEMPERATURES].zero_()

    def head(self) -> ExitHead:
        tensors = self.head_tensors()
        if not getattr(self, "learns_mix", True):  # the base class asks once before it is known
            tensors[MIX] = tensors[MIX].detach()
        return Mixed(reference, self.backbone_config, self.head_config, tensors, torch.float32)

    def initialise(self, pooler: tuple[Tensor, Tensor]) -> None:
        copy_pooler(self, pooler)

    def phases(self) -> tuple[Phase, ...]:
        still = {TEMPERATURES} if self.learns_mix else {TEMPERATURES, MIX}
        return (Phase(trains=lambda name: self._keys.get(name.removeprefix("exit_head.")) not in still),)

    def loss(self, scores: Sequence[Scores], labels: Tensor | None) -> Tensor:
        return losses_of(scores, labels).sum()

    def after_training(self, held_out: HeldOut) -> None:
        """Calibrate each exit (section 3.2). For regression there is nothing to calibrate.

        The authors keep the best of ten runs of Adam, which end near the temperature that is found here.
        """
        if held_out.logits.shape[-1] == 1:
            return
        found = [math.log(fit_temperature(logits, held_out.labels)) for logits in held_out.logits]
        with torch.no_grad():
            self.head_tensors()[TEMPERATURES].copy_(torch.tensor(found, dtype=torch.float32, device="cpu"))


def righttool_head(options: Mapping[str, Any], shared_pooler: bool) -> dict[str, Any]:
    """The `head` object. One pooler for all layers, as in the authors' code, whatever the family has.

    Raises ConfigError for exits that do not rise, or that the encoder has no layer for.
    """
    exits, layers = options["exits"], options["layers"]
    if exits is None:
        depth, count = layers or 12, min(EXITS, layers or 12)
        exits = tuple(-(-depth * i // count) for i in range(1, count + 1))
    elif list(exits) != sorted(set(exits)):
        raise ConfigError(f"exits is {exits!r}; each must be larger than the one before")
    elif layers is not None and exits[-1] > layers:
        raise ConfigError(f"exits is {exits!r}; the encoder has {layers} layers")
    head = {"type": "mixed", "layers": list(exits), "pooler": options.get("pooler") or "shared"}
    return head | given(options, "reads")


SYSTEMS = (
    System(
        "righttool",
        "calibrated classifiers at chosen layers",
        righttool_head,
        RightToolModel,
        options=("pooler", "reads"),
        criterion="confidence",
        converter=righttool,
        own=OPTIONS,
    ),
)
