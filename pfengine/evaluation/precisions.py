"""Whether faster precisions answer as fp32 does: measured by `calibrate`, stored in the manifest, used by `load`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import extension
from ..api import load
from ..errors import InputError
from ..exits.calibration import alike

CHECKED = ("bf16", "int8")


def checked_here() -> tuple[str, ...]:
    """The faster precisions that run here."""
    return tuple(name for name in CHECKED if name != "int8" or extension.has_cpu())


def check_precisions(path: str | os.PathLike[str], rows: Sequence[Any]) -> dict[str, dict[str, Any]]:
    """For each precision that runs here, and answers all rows, what `Manifest.precisions` holds.

    agreement, full_depth_agreement: share of rows, of a tagger's words, with the label of fp32, or all its labels where
    each is given or not by itself, at the checkpoint's own threshold, and with exits off (regression: 1 where every
    score is within a hundredth of their range, else 0);
    layer_speedup_ratio: layer speed-up at that threshold over fp32's.
    """
    exact = load(path, precision="fp32")
    exits, full = exact.predict(rows), exact.predict(rows, criterion="never")
    regression, label_sets = (
        exact.model.config.problem_type == kind for kind in ("regression", "multi_label_classification")
    )

    def agreement(ours: Any, theirs: Any) -> float:
        if regression:
            furthest = np.abs(ours.logits - theirs.logits).max(initial=0.0)
            return float(furthest <= 0.01 * np.ptp(theirs.logits))
        if label_sets:
            return float(alike(ours.logits, theirs.logits, label_sets=True).mean())
        answered = theirs.exit_layers > 0  # those of a tagger are padded
        return float((ours.label_ids == theirs.label_ids)[answered].mean())

    found = {}
    for precision in checked_here():
        engine = load(path, precision=precision)
        try:
            ours, deep = engine.predict(rows), engine.predict(rows, criterion="never")
        except InputError:  # a row overflows in this precision: there is nothing to compare
            continue
        found[precision] = {
            "agreement": agreement(ours, exits),
            "full_depth_agreement": agreement(deep, full),
            "layer_speedup_ratio": ours.layer_speedup / exits.layer_speedup,
            "rows": len(rows),
        }
    return found
