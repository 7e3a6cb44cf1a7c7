"""What `attach` and `tune` ask of the finished model that gets exits, and of the system that the exits are of."""

from __future__ import annotations

import os
from typing import Any

from ..checkpoint import Checkpoint
from ..config import BackboneConfig
from ..errors import ConfigError
from ..exits.base import MULTI, REGRESSION
from ..heads import HEADS
from ..heads.attached import has_exits
from .config import TrainingConfig
from .criterion import check_criterion
from .systems import SYSTEMS


def check_model(ckpt: Checkpoint, model: str | os.PathLike[str]) -> None:
    """Raise ConfigError where a checkpoint is no plain classifier with an earlier layer to exit at."""
    backbone = ckpt.backbone
    if ckpt.manifest.head["type"] != "classifier":
        raise ConfigError(f"{model} has exits already; give a plain sequence-classification directory")
    if backbone.problem_type == REGRESSION and backbone.num_labels > 1:
        raise ConfigError(f"{model} gives {backbone.num_labels} scores per row; exits take one score, or labels")
    if backbone.num_layers < 2:
        raise ConfigError(f"{model} has one layer: there is no earlier layer to exit at")


def check_system(config: TrainingConfig) -> None:
    """Raise ConfigError where the system has no exits to give to a model."""
    if not has_exits(HEADS[config.head(shared_pooler=False)["type"]]):
        raise ConfigError(f"system is {config.system!r}, which has no exits to attach")


def exits_of(config: TrainingConfig, backbone: BackboneConfig) -> dict[str, Any]:
    """The `head` object of the system's exits. ConfigError where it has none for this model."""
    head = config.head(backbone.family.shares_pooler, backbone.num_layers)
    if len(HEADS[head["type"]].layers(backbone, head)) < 2:
        raise ConfigError(f"system is {config.system!r}, which has no exit before the last layer")
    if backbone.problem_type == MULTI and not SYSTEMS[config.system].label_sets:
        known = ", ".join(name for name, each in SYSTEMS.items() if each.label_sets)
        raise ConfigError(
            f"system is {config.system!r}, which learns one label per row, and the model is for {MULTI}; take one of "
            f"{known}"
        )
    return head


def criterion_of(config: TrainingConfig, head: dict[str, Any], backbone: BackboneConfig) -> str:
    """The criterion that was asked for, or the usual one for what the model gives. ConfigError where it does not fit.

    head: that of the exits.
    """
    regression = backbone.problem_type == REGRESSION
    own = SYSTEMS[config.system].criterion_of(head, regression=regression) or "never"
    written = config.criterion or ("binary-confidence" if backbone.problem_type == MULTI else own)
    check_criterion(written, head, backbone)
    return written
