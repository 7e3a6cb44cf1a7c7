"""Checkpoints of other systems' authors give their numbers: every golden case that lies in the folders."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import pfengine

FOLDER = Path(__file__).parents[3] / "shared" / "goldens"
SYSTEMS = ("berxit", "deebert", "fastbert", "pabee", "elbert", "elasticbert", "righttool")
CASES = sorted(case.parent for system in SYSTEMS for case in (FOLDER / system).glob("*/config.json"))
# the goldens were made by another implementation in fp32, on other kernels
TOLERANCE = 1e-4
OF_THRESHOLDS = {"righttool": "confidence", "fastbert": "fastbert"}  # the criterion, where it is not entropy
WINDOWS = {"entropy": "normalised-entropy", "bias_1": "elbert", "bias_2": "elbert-trend", "bias_3": "elbert-range"}

pytestmark = pytest.mark.skipif(not CASES, reason="the goldens are not beside the repository, in shared/goldens")


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case.parent.name}-{case.name}")
def case(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture(scope="module")
def engine(case: Path, tmp_path_factory: pytest.TempPathFactory) -> pfengine.Engine:
    """Recognised by its tensors."""
    out = pfengine.convert(case, tmp_path_factory.mktemp("converted") / "ckpt")
    return pfengine.load(out, criterion="never")


@pytest.fixture(scope="module")
def rows(case: Path) -> list[dict[str, np.ndarray]]:
    inputs = load_file(case / "inputs.safetensors")
    lengths = inputs["attention_mask"].sum(1)
    return [
        {"input_ids": inputs["input_ids"][i, :n], "token_type_ids": inputs["token_type_ids"][i, :n]}
        for i, n in enumerate(lengths)
    ]


@pytest.fixture(scope="module")
def expected(case: Path) -> dict[str, np.ndarray]:
    found = load_file(case / "expected.safetensors")
    if case.parent.name == "deebert":
        # Ours answers by the ordinary classifier after the last layer, theirs in places by a highway that its recipe
        # never trains.
        last = found["final_head_logits"]
        found["logits_per_layer"] = np.concatenate([found["logits_per_layer"][:-1], last[None]])
        for key in [key for key in found if key.startswith("final_logits.")]:
            layers = found[key.replace("final_logits", "exit_layer")]
            found[key] = np.where((layers == len(found["logits_per_layer"]))[:, None], last, found[key])
    return found


def runs(case: Path, config: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(criterion, begin and end of the names of its exits and answers) of each run that a case has."""
    system = case.parent.name
    for k, run in enumerate(config["runs"] if system == "elbert" else ()):
        rule, more = WINDOWS[run["thres_name"]], run["range_tmp"] if run["thres_name"] == "bias_3" else run["margin"]
        window = "" if rule == "normalised-entropy" else f",{run['cnt_thres']},{more}"
        yield f"{rule}:{run['exit_thres']}{window}", "", f".{k}"
    for k, threshold in enumerate(config.get("thresholds", ())):
        yield f"{OF_THRESHOLDS.get(system, 'entropy')}:{threshold}", "", f".{k}"
    for k, threshold in enumerate(config.get("lte_thresholds", ())):
        yield f"learned:{threshold}", "lte_", f".{k}"
    for patience in config.get("patience", ()):
        if not patience:  # the authors' name for full depth
            continue
        before = "patience_" if system == "elasticbert" else ""
        if config["num_labels"] > 1:
            yield f"patience:{patience}", before, f".p{patience}"
        else:
            for k, tolerance in enumerate(config["regression_thresholds"]):
                yield f"patience:{patience},{tolerance}", before, f".p{patience}.t{k}"


def test_scores_at_every_layer(engine, rows, expected) -> None:
    """The last layer's learned score is not tested, and not computed."""
    logits, learned = engine.layer_scores(rows)
    np.testing.assert_allclose(logits, expected["logits_per_layer"], atol=TOLERANCE, rtol=0)
    assert (learned is not None) == ("lte_per_layer" in expected)
    if learned is not None:
        np.testing.assert_allclose(learned[:-1], expected["lte_per_layer"][:-1], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("batch_size", [1, 3, None])
def test_exit_layers_and_answers(case, engine, rows, expected, batch_size: int | None) -> None:
    checked = 0
    for criterion, before, end in runs(case, json.loads((case / "config.json").read_text())):
        out = engine.predict(rows, criterion=criterion, batch_size=batch_size)
        np.testing.assert_array_equal(out.exit_layers, expected[f"{before}exit_layer{end}"], err_msg=criterion)
        np.testing.assert_allclose(out.logits, expected[f"{before}final_logits{end}"], atol=TOLERANCE, rtol=0)
        checked += 1
    assert checked


def test_what_it_is(case, engine) -> None:
    assert engine.checkpoint.manifest.system == case.parent.name


def test_elbert_brings_its_criterion(tmp_path: Path) -> None:
    case = next(case for case in CASES if case.parent.name == "elbert")
    config = json.loads((case / "config.json").read_text())
    manifest = pfengine.load(pfengine.convert(case, tmp_path / "out")).checkpoint.manifest
    assert manifest.criterion == f"elbert:,{config['cnt_thres']},{config['margin']}"
    assert manifest.threshold == config["exit_thres"]


CHANGES = {
    "bias": (lambda t: t.pop("bert.encoder.highway.0.classifier.bias"), "highway.0.classifier.bias' is missing"),
    "classifier": (lambda t: t.pop("classifier.weight"), "'classifier.weight' is missing"),
    "shape": (
        lambda t: t.update({"bert.pooler.dense.weight": np.zeros((3, 48), np.float32)}),
        r"'bert.pooler.dense.weight' has shape \[3, 48\]; it must have that of 'bert.encoder.highway.0",
    ),
    "gap": (
        lambda t: [t.pop(key) for key in list(t) if ".highway.2." in key],
        r"highway\.2\.classifier\.weight' is missing; a DeeBERT checkpoint has it",
    ),
    "none": (
        lambda t: [t.pop(key) for key in list(t) if ".highway." in key],
        r"highway\.0\.classifier\.weight' is missing; a DeeBERT checkpoint has it",
    ),
}


@pytest.mark.parametrize(("change", "said"), CHANGES.values(), ids=CHANGES)
def test_damaged(tmp_path: Path, change, said: str) -> None:
    case = next(case for case in CASES if (case.parent.name, case.name[:4]) == ("deebert", "bert"))
    tensors = load_file(case / "weights.safetensors")
    change(tensors)
    (tmp_path / "config.json").write_text((case / "config.json").read_text())
    save_file(tensors, tmp_path / "weights.safetensors")
    with pytest.raises(pfengine.CheckpointError, match=said):
        pfengine.convert(tmp_path, tmp_path / "out", system="deebert")
