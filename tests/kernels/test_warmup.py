"""After `warmup` no request waits for a kernel to be compiled, however its batch shrinks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pfengine.exits import Entropy, Replay
from pfengine.kernels.launch import Launch, recording
from pfengine.ops import cuda_flight
from pfengine.ops.cuda_buffers import Bucket
from pfengine.ops.cuda_graphs import MOST_GRAPHS, Left
from pfengine.ops.cuda_warmup import smaller

from .conftest import INTERPRETED
from .stand_ins import on_device

Make = Callable[..., Path]
SMALL = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 1, "intermediate_size": 24}


@settings(max_examples=300)
@given(st.lists(st.tuples(st.integers(1, 70), st.booleans(), st.integers(0, 70)), min_size=1, max_size=40))
def test_every_bucket_of_a_batch_that_shrinks_is_among_the_smaller_ones(rows: list[tuple[int, bool, int]]) -> None:
    lengths = [length for length, _, _ in rows]
    longest = max(lengths)
    buckets = set(smaller(Left(len(rows), sum(lengths), sum(lengths)), longest, frozen=False))
    staying = [length for length, stays, _ in rows if stays]
    if staying:
        assert Bucket.of(len(staying), sum(staying), longest) in buckets
        asking = sum(min(length, asks) for length, stays, asks in rows if stays)
        frozen = set(smaller(Left(len(rows), sum(lengths), sum(lengths)), longest, frozen=True))
        assert Bucket.of(len(staying), sum(staying), longest, asking) in frozen


def launched(call: Callable[[], Any]) -> dict[str, Launch]:
    with recording(run=True) as launches:
        call()
    return {variant(launch): launch for launch in launches}


def variant(launch: Launch) -> str:
    """What triton compiles a launch as: constants, types, and which numbers and addresses are 1 or multiples of 16."""
    kernel = launch.kernel
    plain = kernel.kwargs["do_not_specialize"] if INTERPRETED else kernel.do_not_specialize
    seen = {}
    for name in kernel.arg_names:
        value = launch.arguments.get(name)
        if isinstance(value, torch.Tensor):
            seen[name] = f"{value.dtype}, {value.data_ptr() % 16 == 0}"
        elif isinstance(value, int) and name not in (plain or ()):
            seen[name] = f"{value == 1}, {value % 16 == 0}"
        else:
            seen[name] = type(value).__name__
    return repr((kernel.__name__, seen, launch.constants, launch.options))


@pytest.mark.slow
@pytest.mark.parametrize("head", ["past-future", "tagger"])
def test_no_variant_is_missing_after_warmup(
    make_checkpoint: Make, random_rows: Any, device: torch.device, head: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_flight, "OVERLAP_TOKENS", 16)
    kind = "tagger" if head == "tagger" else {"type": head, "pooler": "per-layer"}
    engine, _ = on_device(make_checkpoint("bert", head=kind, config=SMALL, labels=3), device)
    engine.criterion = engine.choose("tokee:0.5,1") if head == "tagger" else Entropy(0.9)
    rows, tokens = (3, 88) if head == "tagger" else (34, 8)  # the tiles of 256 tokens are others than those of 512
    warm = launched(lambda: engine.warmup(rows=(rows,), tokens=(tokens,)))
    generator = np.random.default_rng(0)
    for _ in range(2):
        given_rows = random_rows([tokens] * rows)
        if head == "tagger":
            found = launched(lambda rows=given_rows: engine.predict(rows, criterion=f"tokee:{generator.random()},1"))
        else:
            layers = generator.integers(1, 3, rows).tolist()
            found = launched(lambda rows=given_rows: engine.predict(rows, criterion=Entropy(generator.random())))
            engine.predict(given_rows, criterion=Replay(layers))
        missing = [name for name in found if name not in warm]
        assert not missing, missing[0]


def test_a_varied_stream_needs_fewer_graphs_than_are_kept() -> None:
    """3,000 batches of 1 to 128 rows of 4 to 66 tokens, of which half to a twentieth leave after each of 12 layers."""
    generator = np.random.default_rng(0)
    keys = set()
    for _ in range(3000):
        rows = round(np.exp(generator.uniform(0, np.log(128))))
        lengths, share = generator.integers(4, 67, rows), generator.uniform(0.05, 0.5)
        there, sizes = np.ones(rows, bool), [(rows, int(lengths.sum()))]
        for layer in range(1, 13):
            keys.add((layer, Bucket.of(*sizes[max(0, layer - 2)], int(lengths.max()))))
            there &= generator.random(rows) > share
            if not there.any():
                break
            sizes.append((int(there.sum()), int(lengths[there].sum())))
    assert 100 < len(keys) < MOST_GRAPHS / 2
