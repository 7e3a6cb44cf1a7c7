"""The attentive head: saved, loaded, equal to the oracle, alone as in batches, in every precision."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pfengine
from pfengine import extension, reader
from pfengine.config import BackboneConfig
from pfengine.engine import run_reference
from pfengine.exits import parse
from pfengine.heads import Attentive
from pfengine.model import build
from pfengine.ops import cpu_torch, reference
from pfengine.ops.cpu_model import CpuModel
from pfengine.tokenization import pack

Make = Callable[..., Path]
HEADS: list[dict[str, Any]] = [
    {"type": "attentive"},  # the authors'
    {"type": "attentive", "width": 15, "heads": 3, "pooling": "max"},
]
LENGTHS = [1, 2, 2, 3, 5, 8, 8, 13, 21, 34]
PRECISIONS = ["fp32", "bf16", *(["int8"] if extension.has_cpu() else [])]


def threshold_of(logits: np.ndarray, share: float) -> float:
    """Far from every signal; at the first exit, more or less so many are below."""
    p = torch.from_numpy(logits[:-1]).softmax(-1)
    signals = (-(p * p.log()).sum(-1) / np.log(p.shape[-1])).numpy()
    low, high = np.quantile(signals[0], [share - 0.2, share + 0.2])
    near = np.unique([low, *signals[(low < signals) & (signals < high)], high])
    widest = np.diff(near).argmax()
    return float(near[widest : widest + 2].mean())


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("head", HEADS, ids=["first", "max"])
def test_same_alone_and_in_batches(make_checkpoint: Make, random_rows: Any, head: dict, precision: str) -> None:
    path = make_checkpoint("bert", head=head, criterion="fastbert")
    engine = pfengine.load(path, precision=precision, threshold=0.0)
    assert isinstance(engine.model.carrier, CpuModel) == extension.has_cpu()
    rows = random_rows(LENGTHS, types=2)
    alone = np.concatenate([engine.layer_logits([row]) for row in rows], axis=1)
    assert np.isfinite(alone).all()
    for share, batch_size in ((0.3, None), (0.6, 3)):
        speed = threshold_of(alone, share)
        out = engine.predict(rows, threshold=speed, batch_size=batch_size)
        one = [engine.predict([row], threshold=speed) for row in rows]
        np.testing.assert_array_equal(out.exit_layers, [each.exit_layers[0] for each in one])
        np.testing.assert_array_equal(out.logits, alone[out.exit_layers - 1, range(len(rows))])
        assert len(set(out.exit_layers)) > 1


@pytest.mark.parametrize("head", HEADS, ids=["first", "max"])
def test_equal_to_the_oracle(make_checkpoint: Make, random_rows: Any, head: dict) -> None:
    """`run_reference` runs over plain torch; the carriers over `_C` and over torch without it leave where it does."""
    path, rows = make_checkpoint("bert", head=head, criterion="fastbert"), random_rows(LENGTHS, types=2)
    engine = pfengine.load(path, precision="fp32", threshold=0.0)
    speed = threshold_of(engine.layer_logits(rows), 0.4)
    rule = parse("fastbert", speed).exit_rule(engine.num_layers, engine.exit_layers)  # type: ignore[attr-defined]
    inputs = [pack([row], engine.model.config).to() for row in engine.tokenizer.encode(enumerate(rows))]
    logits, exits = run_reference(build(reader.read(path), reference, torch.float32), inputs, rule)
    for model in (engine.model, build(reader.read(path), cpu_torch, torch.float32)):
        engine.model = model
        out = engine.predict(rows, threshold=speed)
        np.testing.assert_array_equal(out.exit_layers, exits)
        np.testing.assert_allclose(out.logits, logits, atol=2e-4, rtol=0)


@pytest.mark.parametrize("precision", PRECISIONS[1:])
def test_other_precisions_say_nearly_the_same(make_checkpoint: Make, random_rows: Any, precision: str) -> None:
    """As narrow as this model is; the last product and the logits are float32."""
    path, rows = make_checkpoint("bert", head=HEADS[0], criterion="fastbert"), random_rows(LENGTHS, types=2)
    exact, other = (pfengine.load(path, precision=p, threshold=0.0) for p in ("fp32", precision))
    wanted, found = exact.layer_logits(rows), other.layer_logits(rows)
    assert found.dtype == np.float32
    assert np.square(found - wanted).mean() < 0.15**2 * np.square(wanted).mean()
    assert not np.array_equal(found, wanted)


def test_shapes(make_checkpoint: Make) -> None:
    config: BackboneConfig = reader.read(make_checkpoint("bert", head=HEADS[0])).backbone
    n, hidden, labels = config.num_layers, config.hidden_size, config.num_labels
    shapes = {key.removeprefix("exit_head."): shape for key, shape in Attentive.shapes(config, HEADS[0]).items()}
    assert len(shapes) == 14
    assert shapes["narrow.weight"] == (n, 128, hidden)
    assert shapes["value.weight"] == shapes["output.weight"] == shapes["dense.weight"] == (n, 128, 128)
    assert shapes["classifiers.weight"] == (n, labels, 128)
    assert shapes["query.bias"] == (n, 128)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"width": 0}, "'head.width' is 0; it must be an integer >= 1"),
        ({"heads": True}, "'head.heads' is True; it must be an integer >= 1"),
        ({"width": 10, "heads": 3}, "'head.width' is 10, which the 3 heads do not divide"),
        ({"pooling": "mean"}, "'head.pooling' is 'mean'; it must be one of first, max"),
        ({"reads": "all"}, "'head.reads' is not an option of this head"),
        ({"width": 16}, "exit_head.narrow.weight"),
    ],
)
def test_faults_are_said(make_checkpoint: Make, tmp_path: Path, change: dict[str, Any], said: str) -> None:
    path = make_checkpoint("bert", head={"type": "attentive", "width": 12})
    for file in path.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    written = json.loads((path / "pfengine.json").read_text())
    written["head"] |= change
    (tmp_path / "pfengine.json").write_text(json.dumps(written))
    with pytest.raises(pfengine.CheckpointError, match=re.escape(said)):
        pfengine.load(tmp_path)
