"""Every form of head, saved, loaded and run: a row exits where it does alone, with the same logits bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pfengine
from pfengine.exits.criteria import entropy

from .variants import LINEAR, MIXED, PAST_FUTURE, forms

LENGTHS = [1, 2, 2, 3, 5, 8, 8, 8, 13, 21, 34, 55]


@pytest.mark.parametrize(("head", "precision"), forms(PAST_FUTURE + LINEAR + MIXED, precision=("fp32", "bf16")))
def test_same_alone_and_in_batches(
    make_checkpoint: Callable[..., Path], random_rows: Any, head: dict[str, Any], precision: str
) -> None:
    path = make_checkpoint("bert", labels=3, head=head)
    engine = pfengine.load(path, criterion="never", precision=precision)
    rows = random_rows(LENGTHS, types=2)
    alone = np.concatenate([engine.layer_logits([row]) for row in rows], axis=1)
    assert np.isfinite(alone).all()
    entropies = entropy(torch.from_numpy(alone)).numpy()
    blind = entropies.copy()
    blind[-1] = -np.inf
    if len(engine.exit_layers) == 1:
        np.testing.assert_array_equal(engine.predict(rows).logits, alone[0])
        return
    for share, batch_size in ((0.1, None), (0.3, 5), (0.6, 2)):
        threshold = float(np.quantile(entropies[:-1], share, method="lower"))  # one row's own entropy
        out = engine.predict(rows, threshold=threshold, batch_size=batch_size)
        expected = (blind < np.float32(threshold)).argmax(0)
        np.testing.assert_array_equal(out.exit_layers, np.array(engine.exit_layers)[expected])
        np.testing.assert_array_equal(out.logits, alone[expected, range(len(rows))])
