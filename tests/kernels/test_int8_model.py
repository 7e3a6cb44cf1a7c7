"""int8 on the device: the large products of a layer as the reference has them, all else in 16 bits, in tests in 32."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import pfengine
from pfengine import devices, reader
from pfengine.exits import Entropy, Never, Replay
from pfengine.kernels.launch import recording
from pfengine.manifest import Manifest
from pfengine.model import build
from pfengine.ops import cuda, cuda_flight, cuda_linear, reference
from pfengine.ops.cuda_linear import Int8Linear, Linear
from pfengine.ops.cuda_model import CudaModel
from pfengine.ops.flight import Answers
from pfengine.ops.rule import ExitRule

from . import test_flight as flights
from .stand_ins import beside_torch
from .test_ops import HIDDEN, LENGTHS, parts

Make = Callable[..., Path]
PAST_FUTURE: dict[str, Any] = {"type": "past-future", "pooler": "per-layer"}
SHALLOW = {"num_hidden_layers": 3}  # what is interpreted takes its time


def in_float32(name: str) -> Any:
    """A function of the reference that prepares, in float32 in the place of int8."""
    prepare = getattr(reference, name)
    return lambda *arguments: prepare(*arguments[:-1], torch.float32)


BLOCKS_ALONE: Any = SimpleNamespace(
    **vars(reference)
    | {name: in_float32(name) for name in ("prepare_linear", "prepare_imitation", "prepare_attentive")}
)
"""The reference op set, which in int8 has only the products of blocks in int8."""


@pytest.fixture(autouse=True)
def all_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_linear, "BESIDE_INT8", torch.float32)  # the interpreter's bf16 is wrong


def engines(path: Path, device: torch.device) -> tuple[pfengine.Engine, pfengine.Engine]:
    """On the device, and in plain torch."""
    return beside_torch(path, device, torch.int8, BLOCKS_ALONE)


def check(ours: pfengine.Engine, plain: pfengine.Engine, rows: list, criterion: Any) -> None:
    answers, expected = (engine.predict(rows, criterion=criterion) for engine in (ours, plain))
    np.testing.assert_array_equal(answers.exit_layers, expected.exit_layers)
    off = np.abs(answers.logits - expected.logits)
    # a number in the middle of two steps may be rounded to either, here in few rows; int8 itself is off by more
    assert off.max() < 5e-2
    if ours.device.type == "cpu":
        assert np.median(off) < 1e-5


@pytest.mark.parametrize(
    "family",
    [
        "bert",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("modernbert", "deberta-v2", "albert")),
        pytest.param("roberta", marks=[pytest.mark.slow, pytest.mark.wide]),
    ],
)
def test_families(make_checkpoint: Make, random_rows: Any, device: torch.device, family: str) -> None:
    options = PAST_FUTURE | ({"pooler": "shared"} if family == "albert" else {})
    path, rows = make_checkpoint(family, head=options), random_rows([1, 9, 20])
    ours, plain = engines(path, device)
    check(ours, plain, rows, Entropy(0.9))
    fp32 = pfengine.load(path, precision="fp32").predict(rows, criterion="never").logits
    off = np.abs(ours.predict(rows, criterion="never").logits - fp32).max() / np.ptp(fp32)
    assert 1e-4 < off < 0.05  # int8 rounds, and not much


@pytest.mark.slow
@pytest.mark.parametrize("overlap", [0, 512])
def test_rows_leave(
    make_checkpoint: Make, random_rows: Any, device: torch.device, monkeypatch: pytest.MonkeyPatch, overlap: int
) -> None:
    monkeypatch.setattr(cuda_flight, "OVERLAP_TOKENS", overlap)
    ours, plain = engines(make_checkpoint("bert", head=PAST_FUTURE, exit_layers=(1, 2, 4, 5)), device)
    for layers in ([1, 2, 4, 5, 5], [1] * 5):
        check(ours, plain, random_rows([3, 20, 1, 7, 40]), Replay(layers))


@pytest.mark.slow
def test_a_row_is_the_same_bits_alone_and_in_batches(
    make_checkpoint: Make, random_rows: Any, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_flight, "OVERLAP_TOKENS", 32)  # so that both kinds of batches are there
    ours, _ = engines(make_checkpoint("bert", head=PAST_FUTURE, config=SHALLOW), device)
    rows = random_rows([3, 20, 70])
    together = ours.predict(rows, criterion=Entropy(0.9))
    for i, row in enumerate(rows):
        alone = ours.predict([row], criterion=Entropy(0.9))
        assert alone.exit_layers[0] == together.exit_layers[i]
        np.testing.assert_array_equal(alone.logits[0], together.logits[i])


@pytest.mark.slow
@pytest.mark.parametrize("layer", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_flights_join(layer: int) -> None:
    """States that are copied have the int8 rows that the layer before had made of them."""
    made = flights.make("first", of_blocks=torch.int8)
    rule, answers = ExitRule(flights.TESTED, flights.RULES["layers"]), Answers(0, 7, flights.LABELS)
    chosen = [[1, 3], [0, 2, 4]]
    one, other = (made.carrier.start(flights.packed_of(rows), flights.SLOTS[rows], answers) for rows in chosen)
    for flight in (one, other):
        flight.advance(rule, layer)
    one.join(other)
    one.advance(rule, flights.N)
    flights.check(made, answers, flights.expected(made, rule.clauses))


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_launches(make_checkpoint: Make, random_rows: Any, device: torch.device, family: str) -> None:
    """Rows are quantised after attention and between the two products of the feed-forward network, and once after the
    embedding. LayerNorm writes all others."""
    head = {"type": "classifier"}
    ours, _ = engines(make_checkpoint(family, head=head, config=SHALLOW), device)
    with recording(run=True) as launches:
        ours.predict(random_rows([3, 9]), criterion=Never())
    names = Counter(launch.kernel.__name__ for launch in launches)
    assert names["_int8_linear_kernel"] == 4 * 3
    assert names["_quantise_rows_kernel"] == 2 * 3 + 1
    written = [launch for launch in launches if launch.arguments.get("numbers") is not None]
    assert len(written) == 4 * 3


def test_what_is_in_int8(make_checkpoint: Make, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    ours = build(reader.read(make_checkpoint("bert", head=PAST_FUTURE)), cuda, torch.int8, device).carrier
    assert isinstance(ours, CudaModel)
    (block,), (exit, _) = ours.weights.layers[0], ours.weights.exit(1)
    for part in (block.qkv, block.attention_output, block.intermediate, block.output):
        assert isinstance(part, Int8Linear)
    assert isinstance(exit.pooler, Linear)
    assert exit.imitation is not None
    bf16 = {exit.pooler.weight.dtype, exit.imitation[0].learners.dtype, ours.weights.embedding.tables[0].dtype}
    assert bf16 == {torch.bfloat16}
    assert exit.past.weight.dtype == torch.float32


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_what_is_not_finite_spoils_its_row_alone(draw: Any, device: torch.device, wrong: float) -> None:
    x, weights = draw(sum(LENGTHS), HIDDEN), cuda.prepare_block(parts(draw), torch.int8)
    bounds = torch.tensor([0, 4, 5, 24, 30], dtype=torch.int32, device=device)
    clean = cuda.block(x, bounds, weights)
    x[7, 3] = wrong
    found = cuda.block(x, bounds, weights)
    assert found[5:24].isnan().all()
    for place in (slice(0, 5), slice(24, 30)):
        assert torch.equal(found[place], clean[place])


def test_it_must_be_asked_for() -> None:
    gpu, check = torch.device("cuda"), {"agreement": 1.0, "full_depth_agreement": 1.0, "layer_speedup_ratio": 1.0}
    manifest = Manifest("past-future", PAST_FUTURE, "entropy", (1,), precisions={"int8": check, "bf16": check})
    assert devices.auto_precision(manifest, gpu) == "fp32"
    assert devices.find_dtype("int8", gpu) == torch.int8
