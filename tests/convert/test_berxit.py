"""BERxiT's checkpoints have the encoder twice; one of its names is enough."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import pfengine

FOLDER = Path(__file__).parents[3] / "shared" / "goldens" / "berxit"
pytestmark = pytest.mark.skipif(
    not FOLDER.is_dir(), reason="the goldens are not beside the repository, in shared/goldens"
)
ROWS = [{"input_ids": [5, 9, 30]}, {"input_ids": [7]}]


def part(path: Path, case: str, alias: bool, **fields: object) -> Path:
    """A copy of a case with the encoder under its alias only, or under its own name only."""
    raw, tensors = (
        json.loads((FOLDER / case / "config.json").read_text()),
        load_file(FOLDER / case / "weights.safetensors"),
    )
    kept = {key: t for key, t in tensors.items() if key.startswith("core.") == alias or key.startswith("classifier.")}
    (path / "config.json").write_text(json.dumps({**raw, **fields}))
    save_file(kept, path / "weights.safetensors")
    return path


@pytest.mark.parametrize("alias", [True, False])
@pytest.mark.parametrize("case", ["bert_n2", "roberta_n3", "albert_n3"])
def test_either_name_will_do(tmp_path: Path, case: str, alias: bool) -> None:
    system = "auto" if alias or case != "albert_n3" else "berxit"  # without alias and score it is like DeeBERT's
    source = part(tmp_path, case, alias)
    half = pfengine.load(pfengine.convert(source, tmp_path / "half", system=system), criterion="never")
    whole = pfengine.load(pfengine.convert(FOLDER / case, tmp_path / "whole"), criterion="never")
    assert half.checkpoint.manifest.system == "berxit"
    assert half.checkpoint.manifest.criterion == ("entropy" if case == "albert_n3" else "learned")
    np.testing.assert_array_equal(half.layer_logits(ROWS), whole.layer_logits(ROWS))


def test_an_alias_alone_does_not_say_which_encoder_it_is(tmp_path: Path) -> None:
    with pytest.raises(pfengine.CheckpointError, match=r"'model_type' is 'bort'; it must say"):
        pfengine.convert(part(tmp_path, "bert_n2", alias=True, model_type="bort"), tmp_path / "out")
