"""A cascade whose models run on the device: rows leave as they do alone, batches of one model in several threads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import pfengine
from pfengine.cascade_reader import read_cascade
from pfengine.exits import CascadeBERT
from pfengine.loading import Preparation, prepare
from pfengine.ops import cuda


def test_batched_as_alone(
    make_checkpoint: Callable[..., Path], random_rows: Callable[..., list], device: torch.device, tmp_path: Path
) -> None:
    small = {"num_hidden_layers": 1}, {"num_hidden_layers": 2}
    parts = [
        make_checkpoint("bert", head="classifier", config=small[0]),
        make_checkpoint("bert", head="linear", criterion="entropy", threshold=0.8, seed=1, config=small[1]),
    ]
    ckpt = read_cascade(pfengine.cascade(parts, tmp_path / "out"))
    model, tokenizer, _ = prepare(ckpt, Preparation(cuda, device, "fp32", None, None))
    rows = random_rows([1, 9, 3, 5])
    first = torch.softmax(torch.from_numpy(pfengine.load(ckpt, precision="fp32").layer_logits(rows)[0]), -1).amax(-1)
    between = CascadeBERT(first.sort().values[1:3].mean().item())  # half of the rows go on
    ours = pfengine.Engine(ckpt, model, tokenizer, between, device, "fp32")
    plain = pfengine.load(ckpt, precision="fp32", criterion=between)
    out, expected = ours.predict(rows, batch_size=2), plain.predict(rows)
    assert set(expected.models) == {1, 2}
    np.testing.assert_array_equal(out.models, expected.models)
    np.testing.assert_array_equal(out.exit_layers, expected.exit_layers)
    np.testing.assert_allclose(out.logits, expected.logits, atol=2e-5, rtol=1e-4)
    for model_number in (1, 2):
        i = out.models.tolist().index(model_number)
        np.testing.assert_array_equal(ours.predict(rows[i]).logits[0], out.logits[i])
