"""The moving average of a model's parameters over the steps of a run, which is kept in the place of the last step's."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

FILE = "average.safetensors"  # in a saved state


class Average:
    """a <- a + w (p - a) after every step for each parameter p, with w = max(1 / (memory * steps), 1 / step).

    memory: as a share of the run's steps. The first `memory * steps` steps count alike; from then on a step counts
    1 / e as much as one that is `memory * steps` later (Polyak and Juditsky, 1992, in the exponential form).
    """

    def __init__(self, model: nn.Module, memory: float) -> None:
        self.memory = memory
        self.parameters = {name: each for name, each in model.named_parameters() if each.requires_grad}
        self.values: dict[str, Tensor] = {name: each.detach().clone() for name, each in self.parameters.items()}

    @torch.no_grad()
    def update(self, step: int, steps: int) -> None:
        """Called after optimiser step `step` of `steps`, counted from 1."""
        weight = max(1 / math.ceil(self.memory * steps), 1 / step)
        for name, parameter in self.parameters.items():
            if self.values[name].device != parameter.device:  # the Trainer moves a model after it was given to us
                self.values[name] = self.values[name].to(parameter.device)
            self.values[name].lerp_(parameter, weight)

    @torch.no_grad()
    def take(self) -> None:
        """Make the average the model's parameters."""
        for name, value in self.values.items():
            self.parameters[name].copy_(value)

    def save(self, directory: Path) -> None:
        save_file({name: value.contiguous() for name, value in self.values.items()}, directory / FILE)

    def load(self, directory: Path) -> None:
        for name, value in load_file(directory / FILE).items():
            self.values[name].copy_(value)
