"""What a recipe is made of beside its losses: phases, and the held-out rows that it may be fitted to afterwards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn


class Phase(NamedTuple):
    """A part of a training run, with an optimiser and a learning rate schedule of its own.

    name: for messages, and for the recipe's loss, which reads `ExitModel.phase`. trains: which parameters change, by
    their name in the `ExitModel`: "backbone.", "exit_head." or what a recipe adds begins it. labelled: does the loss
    read labels? In a phase without them the rows of `TrainingConfig.unlabelled` take part too. epochs, learning_rate:
    None for those of the run.
    """

    name: str = "joint"
    trains: Callable[[str], bool] = bool  # all of them: no name is empty
    labelled: bool = True
    epochs: float | None = None
    learning_rate: float | None = None


def trains_exits(name: str) -> bool:
    """`Phase.trains` of a phase in which the encoder is frozen."""
    return name.startswith("exit_head.")


class HeldOut(NamedTuple):
    """What the trained model says of rows that it was not trained on."""

    logits: np.ndarray  # float32 [exits, rows, labels]
    learned: np.ndarray | None  # float32 [exits, rows]: the score that some heads add
    labels: np.ndarray  # int64 [rows], or float64 [rows] for regression


def held_out_scores(model: nn.Module, rows: Sequence[dict[str, Any]], collator: Callable[[Any], Any]) -> HeldOut:
    """What an `ExitModel` says, as it is now, of rows as `Rows` has them. Each is computed alone."""
    device, logits, learned = next(model.parameters()).device, [], []
    with torch.no_grad():
        for row in rows:
            inputs = {key: value.to(device) for key, value in collator([row]).items() if key != "labels"}
            out = model(**inputs)
            logits.append(out["logits"].transpose(0, 1).float().cpu())
            learned += [out["learned"].T.float().cpu()] if "learned" in out else []
    labels = np.array([row["labels"] for row in rows])
    return HeldOut(torch.cat(logits, 1).numpy(), torch.cat(learned, 1).numpy() if learned else None, labels)
