"""The criterion of a newly trained checkpoint: does it fit the head, and at which threshold does it run?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import saving
from ..api import load
from ..config import BackboneConfig
from ..errors import ConfigError, shown
from ..evaluation.model_answers import answers_of_models
from ..evaluation.tagged import UNANSWERED, Words, tag_table
from ..exits import DataCriterion
from ..exits.base import MULTI, Outputs
from ..exits.calibration import calibration_table, correlation
from ..exits.selection import ENOUGH
from ..exits.text import check_fits, parse_form
from ..heads import HEADS
from ..messages import warn


def add_calibration(path: Path, rows: list[Any], values: np.ndarray | None, speedup: float, max_length: int) -> Path:
    """Add calibration table and threshold to a newly trained checkpoint, from rows it was not trained on.

    values: label ids or, for regression, scores, [rows]; None where labels are given or not each by itself.
    The stored weights are calibrated, which rounding to int8 may have changed. speedup: the layer speed-up to run at.
    """
    trained = load(path, precision="fp32", criterion="never", max_length=max_length)
    manifest = trained.checkpoint.manifest
    models = None if trained.cascade is None else answers_of_models(trained, rows)
    if models is None:
        (logits, learned), layers = trained.layer_scores(rows), trained.exit_layers
    else:
        logits, learned, layers = models.logits, None, models.ends
    score: dict[str, float] = {}
    if values is None:
        pass
    elif trained.model.config.problem_type != "regression":
        score = {"held_out_score": float((logits[-1].argmax(-1) == values).mean())}
    elif (pearson := correlation(logits[-1, :, 0], values)) is not None:
        score = {"held_out_score": pearson}
    else:  # JSON has no number for it
        warn("the model gives all held-out rows the same score, so there is no correlation")
    manifest = replace(manifest, training=manifest.training | score)
    if manifest.criterion is not None and manifest.criterion != "never":
        criterion = parse_form(manifest.criterion)
        table = calibration_table(criterion, logits, values, layers, learned, label_sets=values is None)
        manifest = _with_table(manifest, table if models is None else models.recounted(table, criterion), speedup)
    return saving.write_manifest(path, manifest)


def add_tag_calibration(path: Path, rows: list[Any], values: list[list[int]], speedup: float, max_length: int) -> Path:
    """`add_calibration` for a tagger; values: the label ids of each row's words.

    The score on held-out rows is span F1 where the labels mark entities, else accuracy of words.
    """
    trained = load(path, precision="fp32", criterion="never", max_length=max_length)
    manifest, side = trained.checkpoint.manifest, trained.tokenizer.side
    words = Words(np.cumsum([0, *map(len, values)]), np.concatenate(values), trained.labels, side)
    full = trained.predict(rows)
    answers = words.flat(full.label_ids, full.exit_layers > 0, UNANSWERED)
    score = next(iter(words.metrics().values()))(answers, answers)
    manifest = replace(manifest, training=manifest.training | {"held_out_score": score})
    if manifest.criterion is not None and manifest.criterion != "never":
        criterion = parse_form(manifest.criterion)
        assert isinstance(criterion, DataCriterion)  # as `check_criterion` has seen
        manifest = _with_table(manifest, tag_table(trained, criterion, rows, words), speedup)
    return saving.write_manifest(path, manifest)


def _with_table(manifest: saving.AnyManifest, table: list[dict[str, Any]], speedup: float) -> saving.AnyManifest:
    """With this calibration table, to run at the threshold whose layer speed-up is the nearest."""
    nearest = min(table, key=lambda point: abs(point["layer_speedup"] - speedup), default=None)
    if nearest is not None and nearest["layer_speedup"] < 0.95 * speedup:
        warn(
            f"the nearest layer speed-up that the exits reach is {nearest['layer_speedup']:.2f}, not {speedup:g}; the "
            "checkpoint runs at that"
        )
    if nearest is not None and nearest.get("agreement", 1) < ENOUGH:
        warn(
            f"at a layer speed-up of {nearest['layer_speedup']:.1f}, which the checkpoint runs at, "
            f"{nearest['agreement']:.1%} of the held-out rows are answered as at full depth; give a lower speedup, or "
            "train on more rows or for more epochs"
        )
    return replace(manifest, calibration=tuple(table), threshold=nearest["threshold"] if nearest else None)


def check_criterion(
    text: str, head: dict[str, Any], config: BackboneConfig, layers: tuple[int, ...] | None = None
) -> None:
    """Raise ConfigError where the criterion does not run on this head, or no threshold for it can be searched for.

    layers: those after which it is asked, where they are not the head's: those of a cascade.
    """
    kind = HEADS[head["type"]]
    if text == "never":
        return
    criterion, layers = parse_form(text), layers or kind.layers(config, head)
    outputs = Outputs(config.problem_type, config.num_labels, kind.learns(head), kind.tags)
    if len(layers) == 1:
        raise ConfigError(f"criterion {shown(text)} needs exits, and a head of type {head['type']!r} answers once")
    check_fits(criterion, outputs, text)
    # On any scores, so that a criterion that cannot be calibrated is found before the training.
    if kind.tags:
        if not isinstance(criterion, DataCriterion):
            raise ConfigError(f"criterion {shown(text)} is no data, which taggers are calibrated with")
        criterion.grid(len(layers), config.num_labels)
        return
    scores = np.zeros((len(layers), 2, config.num_labels), np.float32)
    calibration_table(
        criterion, scores, None, layers, scores[..., 0] if outputs.learned else None,
        label_sets=config.problem_type == MULTI,
    )  # fmt: skip
