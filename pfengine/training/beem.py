"""BEEM: exits are experts, whose confidences add up with weights (Bajpai and Hanawal, ICLR 2025, arXiv 2502.00745)."""

from __future__ import annotations

import numpy as np

from .options import Option
from .phases import HeldOut
from .pooled import PooledModel
from .system import System

OPTIONS = {
    "exit_weights": Option(
        "Weights of the exits' confidences: accuracy (on the held-out rows), depth or equal.",
        choices=("accuracy", "depth", "equal"),
        default="accuracy",
    )
}


class BEEMModel(PooledModel):
    """The loss is PABEE's, as in the authors' code. After training the criterion gets the exits' weights.

    accuracy is the paper's BEEM-A. depth is 0.1 times the layer, the paper's BEEM-C in its example.
    """

    def after_training(self, held_out: HeldOut) -> str | None:
        kind = self.options["exit_weights"]
        if kind == "equal" or held_out.logits.shape[-1] == 1:  # scores never leave early
            return None
        if kind == "accuracy":
            weights = (held_out.logits.argmax(-1) == held_out.labels).mean(1)
        else:
            weights = np.array(self.exit_layers) / 10
        return f"beem:,{'/'.join(f'{weight:.4g}' for weight in weights)}"


SYSTEMS = (
    System(
        "beem",
        "confidences of exits that agree, added up",
        {"type": "linear", "pooler": "shared"},
        BEEMModel,
        options=("pooler", "reads"),
        own=OPTIONS,
        criterion="beem",
    ),
)
