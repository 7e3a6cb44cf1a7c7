"""Models of any shape: a row's logits at every layer are the same bits alone and in any batch, and the oracle's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pfengine
from pfengine import checkpoint, extension
from pfengine.config import parse_backbone
from pfengine.engine import layer_logits, run_reference
from pfengine.exits import Replay
from pfengine.families import FAMILIES
from pfengine.heads import HEADS
from pfengine.manifest import Manifest
from pfengine.model import build
from pfengine.ops import cpu_torch, reference
from pfengine.tokenization import Row, batches, pack

from .conftest import SIZES, own_names

Make = Callable[..., Path]


@st.composite
def architectures(draw: st.DrawFn) -> tuple[dict[str, Any], int]:
    heads, head_size = draw(st.integers(1, 6)), draw(st.sampled_from([1, 3, 8, 12, 16, 20, 32, 33]))
    layers = draw(st.integers(1, 4))
    kind = draw(st.sampled_from(list(SIZES)))
    config = {
        "model_type": kind,
        "hidden_size": heads * head_size, "num_attention_heads": heads, "num_hidden_layers": layers,
        "intermediate_size": draw(st.sampled_from([1, 7, 16, 50, 64, 129])), "vocab_size": 50,
        "max_position_embeddings": 90, "hidden_act": draw(st.sampled_from(["gelu", "gelu_new", "relu"])),
        "num_labels": draw(st.sampled_from([2, 3, 5, 8, 16, 17, 33])),
        "embedding_size": draw(st.sampled_from([1, 16, 37])),
        "num_hidden_groups": draw(st.integers(1, layers)), "inner_group_num": draw(st.integers(1, 2)),
    }  # fmt: skip
    if kind == "deberta-v2":
        config |= {
            "relative_attention": True, "share_att_key": draw(st.booleans()),
            "pos_att_type": draw(st.sampled_from(["c2p", "p2c", "c2p|p2c"])),
            "position_buckets": draw(st.sampled_from([-1, 4, 60])), "norm_rel_ebd": "layer_norm",
            "position_biased_input": draw(st.booleans()), "type_vocab_size": draw(st.integers(0, 2)),
        }  # fmt: skip
    if kind == "modernbert":  # rotary positions take numbers in pairs
        config |= {"hidden_size": heads * (head_size + head_size % 2), "pad_token_id": 0}
        config |= {"local_attention": draw(st.sampled_from([2, 16, 128])), "norm_bias": draw(st.booleans())}
    return own_names(config), draw(st.integers(0, 10**6))


def random_checkpoint(config: dict[str, Any], seed: int) -> checkpoint.Checkpoint:
    faults: list[str] = []
    backbone = parse_backbone(config, faults)
    assert backbone is not None
    assert not faults
    head = {"type": "past-future", "pooler": "shared" if backbone.family.shares_pooler else "per-layer"}
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        key: torch.randn(shape, generator=generator) / (shape[-1] ** 0.5 if len(shape) > 1 else 1)
        for key, shape in (backbone.encoder_shapes() | HEADS["past-future"].shapes(backbone, head)).items()
    }
    engine = Manifest("past-future", head, exit_layers=tuple(range(1, backbone.num_layers + 1)))
    return checkpoint.Checkpoint(Path(), backbone, engine, tensors, None)


@pytest.mark.parametrize(
    "dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow), torch.int8], ids=str
)
@settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(architectures(), st.integers(1, 3))
def test_same_bits_alone_and_in_any_batch(cpu_ops: Any, dtype: torch.dtype, architecture: tuple, threads: int) -> None:
    if dtype == torch.int8 and cpu_ops is cpu_torch:
        pytest.skip("int8 is for the compiled kernels")
    config, seed = architecture
    ckpt = random_checkpoint(config, seed)
    model, backbone = build(ckpt, cpu_ops, dtype), ckpt.backbone
    draw = np.random.default_rng(seed)
    lengths = [1, 1, 2, 3, 3, 7, 8, 8, 8, 9, 15, 16, 17, 31, 33, 33, 64, 80]
    rows = [Row(i, draw.integers(0, 50, n), draw.integers(0, 2, n), False) for i, n in enumerate(lengths)]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            alone = np.concatenate([layer_logits(model, pack([row], backbone)) for row in rows], axis=1)
            assert np.isfinite(alone).all()
            for tokens, size in ((4096, None), (100, None), (4096, 2), (4096, 5)):
                shuffled = [rows[i] for i in draw.permutation(len(rows))]
                for batch in batches(shuffled, tokens, size):
                    packed = pack(batch, backbone)
                    assert np.array_equal(layer_logits(model, packed), alone[:, packed.row_ids]), (tokens, size)
            if dtype == torch.float32:
                oracle = build(ckpt, reference, dtype)
                layers = draw.integers(1, backbone.num_layers + 1, len(rows)).tolist()
                inputs = [pack([row], backbone).to() for row in rows]
                logits, exits = run_reference(oracle, inputs, Replay(layers))
                assert exits.tolist() == layers
                np.testing.assert_allclose(alone[exits - 1, range(len(rows))], logits, atol=2e-4, rtol=1e-4)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("family", SIZES)
@pytest.mark.parametrize("lacking", ["the extension", "both"])
def test_same_bits_on_lesser_machines(
    make_checkpoint: Make, random_rows: Any, monkeypatch: pytest.MonkeyPatch, family: str, lacking: str
) -> None:
    """Without pfengine._C, and without oneDNN's packed products too: slower, and as independent of the batch."""
    path = make_checkpoint(family)
    rows = random_rows([1, 2, 3, 3, 8, 17, 31, 33, 33, 100], types=2)
    full = pfengine.load(path, criterion="never").layer_logits(rows)
    if lacking == "both":
        monkeypatch.setattr(cpu_torch, "has_packed_linear", lambda _: False)
    monkeypatch.setattr(extension, "has_cpu", lambda: False)
    engine = pfengine.load(path, criterion="never")
    alone = np.concatenate([engine.layer_logits([row]) for row in rows], axis=1)
    np.testing.assert_array_equal(engine.layer_logits(rows), alone)
    np.testing.assert_allclose(alone, full, atol=1e-4)
    layers = [1, 5, 2, 4, 3, 3, 1, 2, 5, 4]
    for size in (None, 2, 4):
        out = engine.predict(rows, criterion=Replay(layers), batch_size=size)
        np.testing.assert_array_equal(out.exit_layers, layers)
        np.testing.assert_array_equal(out.logits, alone[np.array(layers) - 1, range(10)])


@pytest.mark.parametrize("rows", [1, 2, 31, 33, 400, 3000])
def test_batches_of_one_token_rows(make_checkpoint: Make, rows: int) -> None:
    engine = pfengine.load(make_checkpoint("bert"), criterion="never")
    inputs = [{"input_ids": [i % 90]} for i in range(rows)]
    single = np.concatenate([engine.layer_logits(inputs[i]) for i in range(min(rows, 90))], axis=1)
    out = engine.layer_logits(inputs)
    np.testing.assert_array_equal(out, single[:, [i % 90 for i in range(rows)]])


@pytest.mark.slow
def test_longest_rows(make_checkpoint: Make, random_rows: Any) -> None:
    for family in SIZES:
        longest = 518 if FAMILIES[family].positions_after_pad else 520
        engine = pfengine.load(make_checkpoint(family), criterion="never")
        assert engine.max_length == longest
        rows = random_rows([longest, 1, longest - 1, longest])
        alone = np.concatenate([engine.layer_logits(row) for row in rows], axis=1)
        for tokens in (1, longest, 4096):
            np.testing.assert_array_equal(engine.layer_logits(rows, batch_tokens=tokens), alone)
