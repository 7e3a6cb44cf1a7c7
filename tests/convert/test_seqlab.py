"""Taggers of SENTEE's and TOKEE's authors give their numbers: every golden case that lies in the folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import pfengine

FOLDER = Path(__file__).parents[3] / "shared" / "goldens" / "seqlab-early-exit"
CASES = sorted(case.parent for case in FOLDER.glob("*/config.json"))
TOLERANCE = 1e-4  # the goldens were made by another implementation in fp32, on other kernels

pytestmark = pytest.mark.skipif(not CASES, reason="the goldens are not beside the repository, in shared/goldens")


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture(scope="module")
def engine(case: Path, tmp_path_factory: pytest.TempPathFactory) -> pfengine.Engine:
    """Recognised by its tensors."""
    out = pfengine.convert(case, tmp_path_factory.mktemp("converted") / "ckpt")
    return pfengine.load(out, criterion="never", precision="fp32")


@pytest.fixture(scope="module")
def rows(case: Path) -> list[dict[str, Any]]:
    inputs = load_file(case / "inputs.safetensors")
    counts = zip(inputs["attention_mask"].sum(1), inputs["word_count"], strict=True)
    return [
        {
            "input_ids": inputs["input_ids"][i, :tokens].tolist(),
            "first_pieces": inputs["first_piece_pos"][i, :words].tolist(),
            "pieces": inputs["pieces_per_word"][i, :words].tolist(),
        }
        for i, (tokens, words) in enumerate(counts)
    ]


@pytest.fixture(scope="module")
def expected(case: Path) -> dict[str, np.ndarray]:
    return load_file(case / "expected.safetensors")


def runs(config: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(criterion, name of its exits with {} for `exit_layer` or `final_logits`) of each run that a case has."""
    for pool in ("max", "avg"):
        for k, t in enumerate(config[f"sentence_thresholds_{pool}"]):
            yield f"sentee-{pool}:{t}", f"sentee_{pool}.{{}}.{k}"
    for k, t in enumerate(config["token_thresholds"]):
        yield f"token:{t}", f"token_nohalt.{{}}.{k}"
        for size in config["win_sizes"]:
            yield f"tokee-window:{t},{size}", f"tokee_win.w{size}.{{}}.{k}"
            yield f"tokee:{t},{size}", f"tokee_copy.w{size}.{{}}.{k}"


def test_logits_at_every_layer(engine, rows, expected) -> None:
    logits = engine.layer_logits(rows)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected["logits_per_layer"], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("batch_size", [1, 3, None])
def test_exit_layers_and_answers(case, engine, rows, expected, batch_size: int | None) -> None:
    config, words = json.loads((case / "config.json").read_text()), ~np.isnan(expected["logits_per_layer"][0, ..., 0])
    checked = 0
    for criterion, name in runs(config):
        out = engine.predict(rows, criterion=criterion, batch_size=batch_size)
        layers = expected[name.format("exit_layer")]
        layers = np.where(words, layers[:, None], 0) if layers.ndim == 1 else layers
        np.testing.assert_array_equal(out.exit_layers, layers, err_msg=criterion)
        np.testing.assert_allclose(
            out.logits, expected[name.format("final_logits")], atol=TOLERANCE, rtol=0, err_msg=criterion
        )
        checked += 1
    assert checked == 21


def test_what_it_is(case, engine) -> None:
    config, manifest = json.loads((case / "config.json").read_text()), engine.checkpoint.manifest
    frozen = "renormalised" if config["keep_norm_same"] else "kept"
    assert (manifest.system, manifest.criterion, manifest.threshold) == ("seqlab-early-exit", "tokee", None)
    assert manifest.head == {"type": "tagger", "frozen": frozen, "freezes": "words"}


def changed(case: Path, to: Path, **config: Any) -> Path:
    raw = json.loads((case / "config.json").read_text()) | config
    (to / "config.json").write_text(json.dumps({key: value for key, value in raw.items() if value is not None}))
    save_file(load_file(case / "weights.safetensors"), to / "weights.safetensors")
    return to


def test_first_pieces_alone_are_frozen(rows, tmp_path: Path) -> None:
    """`copy_wordpiece first`: as if every word had one piece, and its others were of no word."""
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    theirs.mkdir()
    pfengine.convert(changed(CASES[0], theirs, copy_wordpiece="first"), ours, system="seqlab-early-exit")
    engine = pfengine.load(ours, criterion="tokee:0.4,1", precision="fp32")
    assert engine.checkpoint.manifest.head["freezes"] == "first-pieces"
    plain = pfengine.load(pfengine.convert(CASES[0], tmp_path / "plain"), criterion="tokee:0.4,1", precision="fp32")
    found = engine.predict(rows)
    one = [row | {"pieces": [1] * len(row["pieces"])} for row in rows]
    np.testing.assert_array_equal(found.logits, plain.predict(one).logits)
    assert not np.array_equal(found.logits, plain.predict(rows).logits, equal_nan=True)


def test_options_that_are_missing_or_wrong(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    changed(CASES[0], tmp_path / "a", keep_norm_same=None, copy_wordpiece=None)
    with pytest.warns(UserWarning, match="lacks keep_norm_same = 1 and copy_wordpiece = 'all'"):
        out = pfengine.convert(tmp_path / "a", tmp_path / "out")
    assert pfengine.load(out).checkpoint.manifest.head["frozen"] == "renormalised"
    changed(CASES[0], tmp_path / "a", keep_norm_same=2, copy_wordpiece="last")
    with pytest.raises(pfengine.CheckpointError, match="'keep_norm_same' is 2; it must be 1 or 0") as error:
        pfengine.convert(tmp_path / "a", tmp_path / "out2")
    assert "'copy_wordpiece' is 'last'; it must be 'all' or 'first'" in str(error.value)
