"""Systems whose exits learn together: trained on a few hundred rows, saved, loaded, and asked alone and in batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pfengine
from pfengine.training import SYSTEMS

from .test_resuming import bytes_of, killed, one_thread  # noqa: F401
from .test_train import config

JOINT = {"voting": "voting", "cosee": "energy", "leebert": "patience", "pcee": "pcee", "beem": "beem"}

OTHERS = ("voting", "cosee", "pcee")


@pytest.mark.slow  # `test_recipes` has a shorter one
@pytest.mark.parametrize("system", ["pcee", "voting", "cosee", "leebert", "beem"])
def test_trained_saved_loaded_and_batched_as_alone(encoder: Path, rows: Path, tmp_path: Path, system: str) -> None:
    out = pfengine.train(config(encoder, rows, tmp_path / "ckpt", system=system, epochs=4))
    engine = pfengine.load(out, precision="fp32")
    manifest = engine.checkpoint.manifest
    assert manifest.criterion is not None
    assert (manifest.system, manifest.exit_layers) == (system, (1, 2, 3))
    assert manifest.criterion.partition(":")[0] == JOINT[system]
    texts = [line.partition("\t")[0] for line in (rows / "train.tsv").read_text().splitlines()[1:200]]
    truth = [int(line[-1]) for line in (rows / "train.tsv").read_text().splitlines()[1:200]]
    points = manifest.calibration
    assert points is not None
    seen = set()
    for threshold in (points[0]["threshold"], points[len(points) // 2]["threshold"], points[-1]["threshold"]):
        together = engine.predict(texts, threshold=threshold)
        alone = engine.predict(texts, threshold=threshold, batch_size=1)
        np.testing.assert_array_equal(together.exit_layers, alone.exit_layers)
        np.testing.assert_array_equal(together.logits, alone.logits)
        seen |= set(together.exit_layers)
    assert len(seen) > 1
    assert np.mean(engine.predict(texts, criterion="never").label_ids == truth) > 0.95


@pytest.mark.slow
@pytest.mark.parametrize("system", ["cosee", "leebert"])
def test_killed_and_started_again(encoder: Path, rows: Path, tmp_path: Path, system: str) -> None:
    """What they remember beside the model (ranges of signals, weights of losses) is part of the saved state."""
    settings: dict[str, Any] = {"system": system, "epochs": 2.5, "save_every": 4, "dropout": 0.2}
    whole = bytes_of(pfengine.train(config(encoder, rows, tmp_path / "whole", **settings)))
    asked = config(encoder, rows, tmp_path / "ckpt", **settings)
    for step in (10, 17):
        assert killed(lambda: pfengine.train(asked), step, 0)
    assert bytes_of(pfengine.train(asked)) == whole


@pytest.mark.slow
@pytest.mark.parametrize("system", ["leebert", *(pytest.param(each, marks=pytest.mark.slow) for each in OTHERS)])
def test_attached_to_a_finished_model(encoder: Path, rows: Path, tmp_path: Path, system: str) -> None:
    full = pfengine.train(config(encoder, rows, tmp_path / "full", system="full-model", epochs=4))
    out = pfengine.attach(full, rows / "train.tsv", tmp_path / "attached", system=system, epochs=3, hold_out=40)
    engine = pfengine.load(out, precision="fp32", criterion="never")
    texts = [line.partition("\t")[0] for line in (rows / "train.tsv").read_text().splitlines()[1:200]]
    np.testing.assert_array_equal(
        engine.predict(texts).logits, pfengine.load(full, precision="fp32").predict(texts).logits
    )
    exits = engine.layer_logits(texts)
    assert np.mean(exits[1].argmax(-1) == exits[-1].argmax(-1)) > 0.9


@pytest.mark.parametrize("system", ["voting", "cosee"])
def test_scores_have_no_labels_to_tell_apart(encoder: Path, tmp_path: Path, system: str) -> None:
    lines = [f"x{i}x {'good ' * (i % 7)}film\t{i % 7 / 2}" for i in range(80)]
    (tmp_path / "train.tsv").write_text("\n".join(["sentence\tscore", *lines]) + "\n")
    with pytest.raises(pfengine.ConfigError, match=f"system '{system}' .*regression"):
        pfengine.train(config(encoder, tmp_path, tmp_path / "ckpt", system=system, labels=None, label_column="score"))


def test_leebert_learns_scores(encoder: Path, tmp_path: Path) -> None:
    lines = [f"x{i}x {'good ' * (i % 7)}film\t{i % 7 / 2}" for i in range(200)]
    (tmp_path / "train.tsv").write_text("\n".join(["sentence\tscore", *lines]) + "\n")
    out = pfengine.train(
        config(encoder, tmp_path, tmp_path / "ckpt", system="leebert", labels=None, label_column="score", epochs=8)
    )
    engine = pfengine.load(out, precision="fp32")
    scores = engine.predict(["film", "good good film", "good good good good good good film"]).logits[:, 0]
    assert scores[0] < scores[1] < scores[2]


def test_each_is_in_the_table() -> None:
    assert set(JOINT) <= set(SYSTEMS)
