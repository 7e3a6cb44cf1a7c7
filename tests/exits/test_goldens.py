"""Every criterion that a note of the goldens describes: its values, and the exits it takes over stored logits."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from pfengine.exits import Outputs, parse
from pfengine.exits.calibration import exits_taken
from pfengine.exits.signals import signal

SYSTEMS = {  # what a system's thresholds are of, and its signal
    "past-future": ("entropy:{}", "entropy"),
    "deebert": ("entropy:{}", "entropy"),
    "fastbert": ("fastbert:{}", "normalised_entropy"),
    "righttool": ("confidence:{}", "confidence"),
    "pabee": ("patience:{}", None),
    "elbert": ("elbert:{}", "normalised_entropy"),
    "berxit": ("entropy:{}", "entropy"),
    "elasticbert": ("entropy:{}", "entropy"),
    "cascadebert": ("cascadebert:{}", "confidence"),
    "seqlab-early-exit": ("sentee-max:{}", "normalised_entropy"),
}
WINDOWS = {"bias_1": "elbert", "bias_2": "elbert-trend", "bias_3": "elbert-range"}


def cases(shared: Path, system: str) -> list[Path]:
    return sorted(path.parent for path in (shared / "goldens" / system).glob("*/config.json"))


@pytest.mark.parametrize("system", [system for system, (_, name) in SYSTEMS.items() if name])
def test_values(shared: Path, system: str) -> None:
    vectors = load_file(shared / "goldens" / system / "_criterion" / "vectors.safetensors")
    for key in (key for key in vectors if key.startswith("logits")):
        expected = vectors[key.replace("logits", "criterion")]
        found = signal(SYSTEMS[system][1], torch.from_numpy(vectors[key])).numpy()  # type: ignore[arg-type]
        known = ~np.isnan(expected)
        assert known.sum() > 10
        np.testing.assert_allclose(found[known], expected[known], atol=1e-5)
        assert np.isfinite(found).all(), "where theirs is nan, ours is not"


def runs(system: str, config: dict[str, Any], stored: dict[str, np.ndarray]) -> Iterator[tuple[str, str, str]]:
    """(criterion, key of the exits, key of the logits)."""
    logits = "logits_per_model" if system == "cascadebert" else "logits_per_layer"
    scores = config["num_labels"] == 1
    for k, settings in enumerate(config["runs"] if system == "elbert" else ()):
        threshold, size, rule = settings["exit_thres"], settings["cnt_thres"], settings["thres_name"]
        more = settings["range_tmp"] if rule == "bias_3" else settings["margin"]
        text = f"{WINDOWS[rule]}:{threshold},{size},{more}" if rule in WINDOWS else f"normalised-entropy:{threshold}"
        yield text, f"exit_layer.{k}", logits
    for patience in config.get("patience", ()):
        prefix = "patience_exit_layer" if system == "elasticbert" else "exit_layer"
        if patience and scores:
            for k, tolerance in enumerate(config["regression_thresholds"]):
                yield f"patience:{patience},{tolerance}", f"{prefix}.p{patience}.t{k}", logits
        elif patience:
            yield f"patience:{patience}", f"{prefix}.p{patience}", logits
    for k, threshold in enumerate(config.get("lte_thresholds", ())):
        yield f"learned:{threshold}", f"lte_exit_layer.{k}", logits
        yield f"learned:{'/'.join([str(threshold)] * 5)}", f"lte_exit_layer.{k}", logits
    for k, threshold in enumerate(config.get("thresholds", ())):
        key = "exit_model" if system == "cascadebert" else "exit_layer"
        text = SYSTEMS[system][0].format(threshold)
        yield text, f"{key}.{k}", logits
        if system == "righttool":  # stored logits are divided by their temperatures already
            yield f"{text},{'/'.join(map(str, config['temperatures']))}", f"{key}.{k}", "undivided"


@pytest.mark.parametrize("system", [system for system in SYSTEMS if system != "seqlab-early-exit"])
def test_exits(shared: Path, system: str) -> None:
    checked = 0
    for case in cases(shared, system):
        config, stored = json.loads((case / "config.json").read_text()), load_file(case / "expected.safetensors")
        if system == "righttool":
            temperatures = np.array(config["temperatures"], np.float32)[:, None, None]
            stored["undivided"] = stored["logits_per_layer"] * temperatures
        problem = "regression" if config["num_labels"] == 1 else "single_label_classification"
        for text, key, logits in runs(system, config, stored):
            layers = [i + 1 for i in config.get("layer_indices", range(len(stored[logits])))]
            criterion = parse(text)
            assert criterion.misfit(Outputs(problem, config["num_labels"], "lte_per_layer" in stored)) is None
            found = exits_taken(criterion, stored[logits], layers, learned=stored.get("lte_per_layer"))
            assert found.tolist() == stored[key].tolist(), (case.name, text)
            checked += 1
    assert checked >= 6


def test_tags(shared: Path) -> None:
    for case in cases(shared, "seqlab-early-exit"):
        config, stored = json.loads((case / "config.json").read_text()), load_file(case / "expected.safetensors")
        counts = load_file(case / "inputs.safetensors")["word_count"]
        words = np.arange(stored["logits_per_layer"].shape[2]) < counts[:, None]
        logits = stored["logits_per_layer"][:, words]
        bounds = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        layers = range(1, len(logits) + 1)
        for k in range(3):
            for pool in ("max", "avg"):
                criterion = parse(f"sentee-{pool}", config[f"sentence_thresholds_{pool}"][k])
                found = exits_taken(criterion, logits, layers, bounds=bounds)
                assert found.tolist() == stored[f"sentee_{pool}.exit_layer.{k}"].tolist()
            threshold = config["token_thresholds"][k]
            expected = {f"token:{threshold}": "token_nohalt"}
            expected |= {f"tokee-window:{threshold},{size}": f"tokee_win.w{size}" for size in config["win_sizes"]}
            for text, name in expected.items():
                found = exits_taken(parse(text), logits, layers, bounds=bounds)
                assert found.tolist() == stored[f"{name}.exit_layer.{k}"][words].tolist(), (case.name, text)


def test_thresholds_per_row_are_each_rows_own(shared: Path) -> None:
    """On a golden's logits, with all of its thresholds and full depth in one call."""
    case = cases(shared, "elbert")[0]
    logits = load_file(case / "expected.safetensors")["logits_per_layer"]
    layers = range(1, len(logits) + 1)
    rows = logits.shape[1]
    for text in ("entropy:0.3", "elbert:0.3,3,0.1", "voting:1,0.5", "patience:1", "beem:1.5"):
        values = np.resize([1.0, 3.0, np.nan] if text == "patience:1" else [0.1, np.nan, 0.5, 1.2], rows)
        criterion = parse(text)
        found = exits_taken(criterion, logits, layers, thresholds=values)
        alone = {
            value: exits_taken(criterion.with_threshold(value), logits, layers) for value in set(values[values > 0])
        }
        full = np.full(rows, layers[-1])
        assert found.tolist() == [alone.get(value, full)[row] for row, value in enumerate(values)]
        assert len(set(itertools.chain(found))) > 1
