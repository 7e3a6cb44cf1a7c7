"""A checkpoint with the keys that COSEE's training script saves, against a model of transformers with such exits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import BertConfig, BertModel

import pfengine

LAYERS, LABELS, HIDDEN = 4, 3, 32


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray, np.ndarray]:
    """The directory, its rows [rows, tokens], and the logits of every layer."""
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=40, hidden_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=16, initializer_range=0.2,
    )  # fmt: skip
    model = BertModel(config).eval()
    tensors = {f"bert.{key}": value for key, value in model.state_dict().items() if "position_ids" not in key}
    classifiers = [torch.nn.Linear(HIDDEN, LABELS) for _ in range(LAYERS)]
    for i, classifier in enumerate(classifiers):
        name = f"bert.encoder.highway.{i}.classifier" if i < LAYERS - 1 else "classifier"
        tensors |= {f"{name}.{kind}": value.detach() for kind, value in classifier.named_parameters()}
    ids = torch.randint(40, (6, 9))
    with torch.no_grad():
        states = model(ids, output_hidden_states=True).hidden_states[1:]
        expected = torch.stack(
            [classify(model.pooler(state)) for classify, state in zip(classifiers, states, strict=True)]
        )
    path = tmp_path_factory.mktemp("cosee")
    (path / "config.json").write_text(json.dumps(config.to_dict() | {"num_labels": LABELS}))
    save_file({key: value.clone() for key, value in tensors.items()}, path / "model.safetensors")
    return path, ids.numpy(), expected.numpy()


def test_recognised_and_answers_alike(theirs: tuple[Path, np.ndarray, np.ndarray], tmp_path: Path) -> None:
    path, ids, expected = theirs
    engine = pfengine.load(pfengine.convert(path, tmp_path / "out"), precision="fp32", threshold=-2.0)
    manifest = engine.checkpoint.manifest
    assert (manifest.system, manifest.criterion, manifest.exit_layers) == ("cosee", "energy", (1, 2, 3, 4))
    rows = [{"input_ids": row} for row in ids]
    np.testing.assert_allclose(engine.layer_logits(rows), expected, atol=2e-5, rtol=0)

    signals = 1 / (1 + np.exp(expected).sum(-1))  # theirs, with T = 1
    for s in np.quantile(signals, (0.2, 0.5, 0.8)):
        found = engine.predict(rows, criterion=f"energy:{np.log(s / (1 - s))}")
        first = np.argmax(np.concatenate([signals[:-1] < s, np.ones((1, len(rows)), bool)]), 0)
        np.testing.assert_array_equal(found.exit_layers, first + 1)
