"""BEEM's weights of exits, as the checkpoint's criterion has them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import pfengine
from pfengine import data
from pfengine.training.beem import BEEMModel
from pfengine.training.phases import HeldOut

from .test_train import config


@pytest.mark.parametrize("weights", ["accuracy", "depth", "equal"])
def test_weights_of_exits(encoder: Path, rows: Path, tmp_path: Path, weights: str) -> None:
    asked = config(encoder, rows, tmp_path / "ckpt", system="beem", epochs=0.5, options={"exit_weights": weights})
    engine = pfengine.load(pfengine.train(asked), precision="fp32")
    written = engine.checkpoint.manifest.criterion
    assert written is not None
    if weights != "accuracy":
        assert written == {"depth": "beem:,0.1/0.2/0.3", "equal": "beem"}[weights]
        return
    _, held_out = data.hold_out(data.read(rows / "train.tsv"), 40, seed=0)
    truth = np.array(data.label_ids(held_out, engine.labels, ""))
    exits = engine.layer_logits([example.row for example in held_out]).argmax(-1)
    expected = (exits == truth).mean(1)
    assert written.startswith("beem:,")
    np.testing.assert_allclose([float(each) for each in written[6:].split("/")], expected, atol=1e-4)


def test_accuracies_are_of_each_exit() -> None:
    logits = np.zeros((3, 5, 2), np.float32)
    logits[0, :, 1], logits[1, :2, 1], logits[2, 3:, 1] = 1, 1, 1
    model = BEEMModel.__new__(BEEMModel)
    torch.nn.Module.__init__(model)
    model.options = {"exit_weights": "accuracy"}
    assert model.after_training(HeldOut(logits, None, np.array([0, 0, 0, 1, 1]))) == "beem:,0.4/0.2/1"


def test_another_criterion_is_kept(encoder: Path, rows: Path, tmp_path: Path) -> None:
    asked = config(encoder, rows, tmp_path / "ckpt", system="beem", epochs=0.5, criterion="entropy")
    assert pfengine.load(pfengine.train(asked)).checkpoint.manifest.criterion == "entropy"


def test_exits_attached_have_no_labels_to_weigh_them_by(encoder: Path, rows: Path, tmp_path: Path) -> None:
    full = pfengine.train(config(encoder, rows, tmp_path / "full", system="full-model", epochs=0.1))
    with pytest.raises(pfengine.ConfigError, match="'beem', which is fitted to labelled rows"):
        pfengine.attach(full, rows / "train.tsv", tmp_path / "attached", system="beem", hold_out=40)
