"""RightTool: which layers have classifiers, what is learned of them, and their temperatures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch.nn.functional as F
from safetensors.torch import load_file

import pfengine
from pfengine.exits.temperature import fit_temperature
from pfengine.training.righttool import righttool_head

from .test_train import config

FOLDER = Path(__file__).parents[3] / "shared" / "goldens" / "righttool"
CASES = sorted(file.parent for file in FOLDER.glob("*/config.json"))
FLAT = 1e-4  # of the likelihood, where far temperatures do as well


@pytest.mark.parametrize("mixing", ["learned", "fixed"])
def test_layers_above_the_last_exit_are_dropped(encoder: Path, rows: Path, tmp_path: Path, mixing: str) -> None:
    """Of three layers the first and the second have an exit."""
    options = {"exits": (1, 2), "mixing": mixing}
    out = pfengine.train(config(encoder, rows, tmp_path / "out", system="righttool", options=options, epochs=5))
    engine = pfengine.load(out)
    manifest = engine.checkpoint.manifest
    assert (engine.num_layers, engine.exit_layers) == (2, (1, 2))
    assert manifest.head == {"type": "mixed", "layers": [1, 2], "pooler": "shared"}
    assert (manifest.training["exits"], manifest.training["mixing"]) == ([1, 2], mixing)
    tensors = load_file(out / "model.safetensors")
    assert not any("layer.2." in key for key in tensors)
    mix = tensors["exit_head.mix.weight"]
    norms = mix.norm(dim=1)
    assert mix[0, 1] == 0
    assert (norms - 1).abs().max() < 1e-6 if mixing == "fixed" else (norms - 1).abs().min() > 1e-4
    assert tensors["exit_head.log_temperatures"].abs().min() > 1e-3


def test_temperatures_are_those_of_the_held_out_rows(encoder: Path, rows: Path, tmp_path: Path) -> None:
    """The stored logits are calibrated: on these rows no other temperature does better."""
    (tmp_path / "held-out.tsv").write_text("".join((rows / "train.tsv").read_text().splitlines(True)[:101]))
    made = config(
        encoder, rows, tmp_path / "out", system="righttool", epochs=1, learning_rate=1e-3,
        held_out=str(tmp_path / "held-out.tsv"),
    )  # fmt: skip
    engine = pfengine.load(pfengine.train(made), precision="fp32")
    held_out = [line.split("\t") for line in (tmp_path / "held-out.tsv").read_text().splitlines()[1:]]
    labels = np.array([int(label) for _, label in held_out])
    for logits in engine.layer_logits([text for text, _ in held_out]):
        assert fit_temperature(logits, labels) == pytest.approx(1, abs=1e-3)


@pytest.mark.skipif(not CASES, reason="the goldens are not beside the repository, in shared/goldens")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_calibration_of_the_authors(case: Path) -> None:
    """As near to the least loss as ten runs of Adam, and nearer than their other way, LBFGS."""
    expected, given = load_file(case / "expected.safetensors"), load_file(case / "labels.safetensors")
    labels = given["calib_labels"]
    for exit, logits in enumerate(given["calib_logits"]):
        found = fit_temperature(logits.numpy(), labels.numpy())
        loss = float(F.cross_entropy(logits / found, labels))
        theirs = float(expected["calib_nll_after_adam"][exit])
        assert theirs - FLAT <= loss <= theirs + 1e-6
        if loss > theirs - 1e-5:
            assert found == pytest.approx(float(expected["calibrated_temperatures_adam"][exit]), abs=1e-2)
        by_lbfgs = logits / float(expected["calibrated_temperatures_lbfgs"][exit])
        assert loss <= float(F.cross_entropy(by_lbfgs, labels))


@pytest.mark.parametrize(
    ("layers", "expected"), [(12, [3, 6, 9, 12]), (6, [2, 3, 5, 6]), (4, [1, 2, 3, 4]), (3, [1, 2, 3]), (1, [1])]
)
def test_exits_are_spread_evenly(layers: int, expected: list[int]) -> None:
    assert righttool_head({"exits": None, "layers": layers}, False)["layers"] == expected


@pytest.mark.parametrize(
    ("exits", "said"),
    [
        ((2, 2), r"exits is \(2, 2\); each must be larger than the one before"),
        ((1, 4), r"exits is \(1, 4\); the encoder has 3 layers"),
        (4, "exits is 4; each must be an integer > 0"),
    ],
)
def test_exits_that_do_not_fit(encoder: Path, rows: Path, tmp_path: Path, exits: Any, said: str) -> None:
    with pytest.raises(pfengine.ConfigError, match=said):
        pfengine.train(config(encoder, rows, tmp_path / "out", system="righttool", options={"exits": exits}))
