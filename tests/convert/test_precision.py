"""Weights kept in another precision: smaller on disk, and the same at precision int8."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import pfengine
from pfengine import extension

Make = Callable[..., Path]
ROWS = [{"input_ids": [3 + (7 * n + i * i) % 45 for i in range(n)]} for n in range(1, 41)]


@pytest.mark.parametrize("head", ["past-future", "linear", "attentive", "classifier"])
def test_int8_is_smaller_and_says_the_same_at_int8(make_checkpoint: Make, tmp_path: Path, head: str) -> None:
    path = make_checkpoint("bert", head=head)
    small = pfengine.convert(path, tmp_path / "small", precision="int8")
    sizes = [(p / "model.safetensors").stat().st_size for p in (path, small)]
    assert sizes[1] < 0.4 * sizes[0]
    if extension.has_cpu():
        both = [pfengine.load(p, precision="int8", criterion="never").predict(ROWS).logits for p in (path, small)]
        # the encoder is quantised alike; embeddings and what a head has in float32 are rounded too: over a dozen seeds
        # 1% to 6% of the logits' root mean square, in a model as narrow as this one
        assert np.square(both[0] - both[1]).mean() < 0.1**2 * np.square(both[0]).mean()
    again = pfengine.convert(small, tmp_path / "again", precision="int8")
    assert (again / "model.safetensors").read_bytes() == (small / "model.safetensors").read_bytes()


def test_back_to_float(make_checkpoint: Make, tmp_path: Path) -> None:
    small = pfengine.convert(make_checkpoint("bert"), tmp_path / "small", precision="int8")
    large = pfengine.convert(small, tmp_path / "large")
    both = [pfengine.load(p, precision="fp32", criterion="never").predict(ROWS).logits for p in (small, large)]
    np.testing.assert_array_equal(*both)


def test_a_plain_directory(make_text_checkpoint: Make, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path / "plain")
    small = pfengine.convert(tmp_path / "plain", tmp_path / "small", precision="int8")
    both = [pfengine.load(p, precision="fp32").predict(ROWS).logits for p in (tmp_path / "plain", small)]
    np.testing.assert_allclose(*both, atol=0.02)
    assert not np.array_equal(*both)


def test_unknown_precision(make_checkpoint: Make, tmp_path: Path) -> None:
    with pytest.raises(pfengine.ConfigError, match="precision is 'bf16'; weights are stored in fp32 or int8"):
        pfengine.convert(make_checkpoint("bert"), tmp_path / "out", precision="bf16")
