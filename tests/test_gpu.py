"""The engine on a GPU: what the interpreter cannot show. Skipped where there is none."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pfengine
from pfengine import api, reader
from pfengine.exits import Entropy, Never, Replay
from pfengine.model import build
from pfengine.ops import reference

Make = Callable[..., Path]
HIDDEN = {
    384: {"hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536},
    768: {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072},
}
PAST_FUTURE = {"type": "past-future", "pooler": "per-layer"}
HEADS: dict[str, dict[str, Any]] = {
    "authors": PAST_FUTURE,
    "folded": PAST_FUTURE | {"learner": "linear"},
    "paper": PAST_FUTURE | {"learner": "tanh", "incorporate": "concat", "gate": "row"},
    "max": PAST_FUTURE | {"incorporate": "max", "gate": "row"},
    "attention": PAST_FUTURE | {"incorporate": "attention", "gate": "row"},
    "linear": {"type": "linear", "pooler": "per-layer"},
    "mixed": {"type": "mixed", "layers": [1, 2, 3, 4, 5], "previous": True, "pooler": "shared"},
    "attentive": {"type": "attentive"},
    "attentive, max": {"type": "attentive", "pooling": "max"},
}
pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1", reason="there is no GPU"
)


def lengths(rows: int, most: int = 66) -> list[int]:
    return np.random.default_rng(0).integers(1, most + 1, rows).tolist()


@pytest.fixture(params=["fp32", "bf16", "fp16", "int8"])
def precision(request: pytest.FixtureRequest) -> str:
    return request.param


def plain(path: Path, precision: str) -> pfengine.Engine:
    """Plain torch on the same GPU."""
    engine = pfengine.load(path, device="cuda", precision=precision)
    engine.model = build(reader.read(path), reference, api.DTYPES[precision], engine.device)
    return engine


def same(first: pfengine.Predictions, second: pfengine.Predictions, places: Any = slice(None)) -> None:
    np.testing.assert_array_equal(first.exit_layers, second.exit_layers[places])
    np.testing.assert_array_equal(first.logits, second.logits[places])


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_logits_of_plain_torch(make_checkpoint: Make, random_rows: Any, precision: str, head: dict) -> None:
    path = make_checkpoint("bert", head=head, config=HIDDEN[384])
    rows = random_rows([1, 2, 33, 512, 9, *lengths(20)])
    layers = np.random.default_rng(1).integers(1, 6, len(rows)).tolist()
    ours, beside = pfengine.load(path, device="cuda", precision=precision), plain(path, precision)
    exact = pfengine.load(path, device="cpu", precision="fp32")
    for criterion in (Never(), Replay(layers)):
        expected = exact.predict(rows, criterion=criterion)
        found, torch_s = (each.predict(rows, criterion=criterion) for each in (ours, beside))
        np.testing.assert_array_equal(found.exit_layers, expected.exit_layers)
        error, allowed = (float(np.abs(each.logits - expected.logits).max()) for each in (found, torch_s))
        assert error <= 2 * allowed + 1e-4


@pytest.mark.parametrize("family", ["roberta", "albert"])
def test_families(make_checkpoint: Make, random_rows: Any, family: str) -> None:
    path = make_checkpoint(family)
    rows = random_rows(lengths(30))
    ours = pfengine.load(path, device="cuda", precision="fp32").predict(rows, criterion=Entropy(0.9))
    expected = pfengine.load(path, device="cpu", precision="fp32").predict(rows, criterion=Entropy(0.9))
    np.testing.assert_array_equal(ours.exit_layers, expected.exit_layers)
    np.testing.assert_allclose(ours.logits, expected.logits, atol=2e-4)


@pytest.mark.parametrize("hidden", HIDDEN)
@pytest.mark.parametrize("criterion", [Entropy(0.9), Never()], ids=repr)
@pytest.mark.parametrize("head", ["authors", "attentive", "attentive, max"])
def test_the_same_bits_alone_and_in_batches(
    make_checkpoint: Make, random_rows: Any, precision: str, hidden: int, criterion: Any, head: str
) -> None:
    engine = pfengine.load(
        make_checkpoint("bert", head=HEADS[head], config=HIDDEN[hidden]), device="cuda", precision=precision
    )
    rows = random_rows(lengths(512))
    together = engine.predict(rows, criterion=criterion, batch_size=512, batch_tokens=1 << 20)
    for size in (64, 7):
        same(engine.predict(rows, criterion=criterion, batch_size=size), together)
    for i in range(0, 512, 16):
        same(engine.predict([rows[i]], criterion=criterion), together, [i])


def test_recorded_launches_repeat_what_the_first_time_gave(make_checkpoint: Make, random_rows: Any) -> None:
    engine = pfengine.load(make_checkpoint("bert", head=PAST_FUTURE), device="cuda", precision="bf16")
    batches = [random_rows(lengths(9, most)) for most in (5, 40, 66)]
    for criterion in (Entropy(0.9), Replay([1, 2, 3, 4, 5, 1, 2, 5, 5]), Never()):
        first = [engine.predict(rows, criterion=criterion) for rows in batches]
        for _ in range(3):
            for rows, expected in zip(batches, first, strict=True):
                same(engine.predict(rows, criterion=criterion), expected)
    lane = engine.model.carrier.take()  # type: ignore[union-attr]
    assert any(graph is not None for graph in lane.graphs.known.values())


def test_warmup_and_several_threads(make_checkpoint: Make, random_rows: Any) -> None:
    engine = pfengine.load(make_checkpoint("bert", head=PAST_FUTURE), device="cuda", precision="bf16")
    engine.warmup(rows=(1, 8), tokens=(16, 64))
    batches = [random_rows(lengths(1 + i, 60)) for i in range(12)]
    expected = [engine.predict(rows, criterion=Entropy(0.9)) for rows in batches]
    faults: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(5):
                for rows, answers in zip(batches, expected, strict=True):
                    same(engine.predict(rows, criterion=Entropy(0.9)), answers)
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults


def test_a_long_stream(make_checkpoint: Make, random_rows: Any) -> None:
    engine = pfengine.load(make_checkpoint("bert", head=PAST_FUTURE), device="cuda", precision="bf16")
    rows = random_rows(lengths(3000))
    expected = engine.predict(rows, criterion=Entropy(0.9))
    answers = list(engine.stream(iter(rows), criterion=Entropy(0.9), batch_tokens=512))
    assert [answer["exit_layer"] for answer in answers] == expected.exit_layers.tolist()


def test_other_criteria(make_checkpoint: Make, random_rows: Any) -> None:
    path = make_checkpoint("bert", head=PAST_FUTURE)
    rows = random_rows(lengths(20))
    ours = pfengine.load(path, device="cuda", precision="fp32").predict(rows, criterion="patience:1")
    expected = pfengine.load(path, device="cpu", precision="fp32").predict(rows, criterion="patience:1")
    np.testing.assert_array_equal(ours.exit_layers, expected.exit_layers)


def test_nothing_in_the_forward_pass_waits(make_checkpoint: Make, random_rows: Any) -> None:
    """A segment, launched or replayed, makes no call that synchronises."""
    engine = pfengine.load(make_checkpoint("bert", head=PAST_FUTURE), device="cuda", precision="bf16")
    rows = random_rows(lengths(40))
    model: Any = engine.model.carrier
    engine.predict(rows, criterion=Entropy(0.9))  # compiles
    lane = model.take()
    real = lane.run

    def strict(*arguments: Any) -> None:
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            real(*arguments)
        finally:
            torch.cuda.set_sync_debug_mode(before)

    lane.run = strict
    model.free.put(lane)
    for _ in range(3):
        engine.predict(rows, criterion=Entropy(0.9))


def test_the_command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from pfengine import cli

    monkeypatch.setattr(
        "sys.argv", ["pfengine", "classify", "sst2", "a charming journey", "--device", "cuda", "--json"]
    )
    cli.app(standalone_mode=False)
    assert '"positive"' in capsys.readouterr().out


def test_a_gpu_that_is_not_there(make_checkpoint: Make) -> None:
    with pytest.raises(pfengine.ConfigError, match="torch sees"):
        pfengine.load(make_checkpoint("bert"), device="cuda:99")
