"""A cross-encoder with margins for the best k, whose documents leave at several layers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from pfengine.exits.top_k import TopK

from .conftest import WORDS

K, MARGINS = 4, [0.3, None, 0.1, 0.05]
RULE = TopK(K, tuple(math.inf if margin is None else margin for margin in MARGINS))
QUERY = "is the film very good"
DOCUMENTS = [" ".join(np.random.default_rng(i).choice(WORDS[:18], 2 + i % 17)) for i in range(40)]


def raised(path: Path) -> Path:
    """The scores of lower exits are higher, as those of exits that see less may be."""
    tensors = load_file(path / "model.safetensors")
    tensors["exit_head.classifiers.bias"] += torch.tensor([9.0, 7, 5, 3, 0])[:, None]
    save_file(tensors, path / "model.safetensors")
    return path


def with_margins(path: Path, **changes: Any) -> Path:
    said = json.loads((path / "pfengine.json").read_text())
    said["ranking"] = {"top_k": K, "margins": MARGINS} | changes
    (path / "pfengine.json").write_text(json.dumps(said))
    return path


def checkpoint_with_margins(make_text_checkpoint: Callable[..., Path]) -> Path:
    how = {"criterion": "patience:,0.8", "threshold": 2.0, "config": {"problem_type": "regression"}}
    return raised(with_margins(make_text_checkpoint(labels=1, head="linear", **how)))
