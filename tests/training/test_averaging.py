"""The average of weights over steps: the formula, and what a run writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

import pfengine
from pfengine.training import fit as fitting
from pfengine.training.averaging import Average

from .test_train import config


def test_the_average_is_the_formula(tmp_path: Path) -> None:
    model = nn.Linear(1, 1, bias=False)
    average, values, expected = Average(model, 0.3), [3.0, -1.0, 4.0, 1.0, -5.0, 9.0, 2.0, 6.0, 5.0, 3.0], 0.0
    for step, value in enumerate(values, 1):
        with torch.no_grad():
            model.weight.fill_(value)
        average.update(step, len(values))
        expected += max(1 / 3, 1 / step) * (value - expected)
    np.testing.assert_allclose(average.values["weight"].item(), expected, rtol=1e-6)
    average.save(tmp_path)
    other = Average(nn.Linear(1, 1, bias=False), 0.3)
    other.load(tmp_path)
    other.take()
    assert other.parameters["weight"].item() == average.values["weight"].item()


def test_the_average_follows_a_model_that_is_moved() -> None:
    average = Average(nn.Linear(2, 2), 0.3)
    average.parameters = {name: value.to("meta") for name, value in average.parameters.items()}  # any other device
    average.update(1, 10)
    assert {value.device.type for value in average.values.values()} == {"meta"}


def test_a_run_writes_its_average(encoder: Path, rows: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """Of all parameters that are trained, and of nothing else."""
    seen: list[Average] = []
    take = Average.take

    def noted(self: Average) -> None:
        seen.append(self)
        self.last = {name: value.detach().clone() for name, value in self.parameters.items()}  # type: ignore[attr-defined]
        take(self)

    monkeypatch.setattr(fitting.Average, "take", noted)
    out = pfengine.train(config(encoder, rows, tmp_path / "ckpt", system="linear", epochs=2, averaging=0.5))
    (average,) = seen
    written = load_file(out / "model.safetensors")
    name = "exit_head.classifiers_weight"
    assert torch.equal(written["exit_head.classifiers.weight"], average.values[name])
    assert not torch.equal(average.values[name], average.last[name])  # type: ignore[attr-defined]
