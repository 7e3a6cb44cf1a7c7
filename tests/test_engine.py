"""The exit loop: a row's answer is the same alone and in any batch, bit for bit, and agrees with the oracle."""

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
from pfengine import extension, reader
from pfengine.engine import run_reference
from pfengine.exits import Entropy
from pfengine.exits.criteria import entropy
from pfengine.model import build
from pfengine.ops import reference
from pfengine.tokenization import Row, pack

from .conftest import SIZES

Make = Callable[..., Path]
FAMILIES = [*zip(SIZES, (2, 3, 7, 4, 5), strict=False)]
LENGTHS = [1, 1, 2, 3, 5, 5, 5, 8, 13, 21, 34, 34, 55, 89, 144, 512]


PRECISIONS = ["fp32", "bf16", "int8"] if extension.has_cpu() else ["fp32", "bf16"]


@pytest.fixture(scope="module", params=PRECISIONS)
def precision(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module", params=FAMILIES, ids=[name for name, _ in FAMILIES])
def alone(
    request: pytest.FixtureRequest, make_checkpoint: Make, random_rows: Any, precision: str
) -> tuple[pfengine.Engine, list[dict[str, Any]], np.ndarray, np.ndarray]:
    """An engine, rows, and for every row run alone its logits and entropies at every layer."""
    family, labels = request.param
    engine = pfengine.load(make_checkpoint(family, labels=labels), precision=precision, criterion="never")
    rows = random_rows(LENGTHS, types=2)
    logits = np.concatenate([engine.layer_logits([row]) for row in rows], axis=1)
    return engine, rows, logits, entropy(torch.from_numpy(logits)).numpy()


def exits_of(entropies: np.ndarray, threshold: float) -> np.ndarray:
    """First layer below the threshold, the last where there is none: [layers, rows] -> [rows], by a plain loop."""
    layers = []
    for row in entropies.T:
        below = [i + 1 for i, value in enumerate(row[:-1]) if value < np.float32(threshold)]
        layers.append(below[0] if below else len(row))
    return np.array(layers)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_batch_composition_gives_the_same_answers(alone: tuple, data: st.DataObject) -> None:
    engine, rows, logits, entropies = alone
    order = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=24), label="rows")
    # thresholds at and right beside a row's own entropy are where one changed bit moves an exit
    layer, row = data.draw(st.integers(0, len(entropies) - 2)), data.draw(st.sampled_from(order))
    own = entropies[layer, row]
    beside = st.sampled_from([own, np.nextafter(own, np.float32(9)), np.nextafter(own, np.float32(-9))])
    threshold = float(data.draw(st.one_of(beside, st.floats(0, 2, width=32)), label="threshold"))
    batch_size = data.draw(st.sampled_from([None, 1, 2, 3, 7]))
    batch_tokens = data.draw(st.sampled_from([1, 64, 600, 4096]))
    out = engine.predict(
        [rows[i] for i in order], threshold=threshold, batch_size=batch_size, batch_tokens=batch_tokens
    )
    expected = exits_of(entropies[:, order], threshold)
    np.testing.assert_array_equal(out.exit_layers, expected)
    np.testing.assert_array_equal(out.logits, logits[expected - 1, order])


@pytest.mark.parametrize("threads", [1, 2, pytest.param(3, marks=pytest.mark.slow)])
def test_any_number_of_threads(alone: tuple, threads: int) -> None:
    engine, rows, _, entropies = alone
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        single = np.concatenate([engine.layer_logits([row]) for row in rows], axis=1)
        np.testing.assert_array_equal(engine.layer_logits(rows), single)
        threshold = float(np.median(entropies))
        one_by_one = [engine.predict([row], threshold=threshold).exit_layers[0] for row in rows]
        np.testing.assert_array_equal(engine.predict(rows, threshold=threshold).exit_layers, one_by_one)
    finally:
        torch.set_num_threads(before)


def test_everyone_and_nobody_exits(alone: tuple) -> None:
    engine, rows, logits, _ = alone
    out = engine.predict(rows, threshold=100.0)
    assert (out.exit_layers == 1).all()
    np.testing.assert_array_equal(out.logits, logits[0])
    for out in (engine.predict(rows, threshold=-1.0), engine.predict(rows)):
        assert (out.exit_layers == engine.num_layers).all()
        np.testing.assert_array_equal(out.logits, logits[-1])


def as_inputs(engine: pfengine.Engine, rows: list[dict[str, Any]]) -> list[Any]:
    config = engine.model.config
    return [
        pack([Row(i, row["input_ids"], row.get("token_type_ids"), False)], config).to() for i, row in enumerate(rows)
    ]


@pytest.mark.parametrize(("family", "labels"), FAMILIES)
def test_agrees_with_the_oracle(make_checkpoint: Make, random_rows: Any, family: str, labels: int) -> None:
    path = make_checkpoint(family, labels=labels)
    engine = pfengine.load(path, criterion="never")
    oracle = build(reader.read(path), reference, torch.float32)
    rows = random_rows(LENGTHS, seed=4, types=2)
    values = np.unique(entropy(torch.from_numpy(engine.layer_logits(rows))).numpy())
    gaps = values[1:] - values[:-1]
    wide = np.flatnonzero(gaps > 1e-3)  # thresholds in wide gaps: the two op sets differ in the last bits
    assert len(wide) > 5
    for i in wide[:: max(1, len(wide) // 8)]:
        threshold = float(values[i] + gaps[i] / 2)
        with torch.inference_mode():
            logits, exits = run_reference(oracle, as_inputs(engine, rows), Entropy(threshold))
        out = engine.predict(rows, threshold=threshold)
        np.testing.assert_array_equal(out.exit_layers, exits)
        np.testing.assert_allclose(out.logits, logits, atol=2e-5, rtol=1e-5)  # fp32, other kernels


@pytest.mark.parametrize("exit_layers", [(5,), (2, 5), (1, 3, 4, 5)])
def test_only_exits_in_use_are_tested(make_checkpoint: Make, random_rows: Any, exit_layers: tuple[int, ...]) -> None:
    every = pfengine.load(make_checkpoint("bert"), criterion="never")
    some = pfengine.load(make_checkpoint("bert", exit_layers=exit_layers), criterion="never")
    rows = random_rows(LENGTHS)
    logits = every.layer_logits(rows)
    np.testing.assert_array_equal(some.layer_logits(rows), logits[[i - 1 for i in exit_layers]])
    if len(exit_layers) == 1:
        with pytest.raises(pfengine.ConfigError, match="no exit before its last layer"):
            some.predict(rows, threshold=0.5)
        return
    entropies = entropy(torch.from_numpy(logits)).numpy()
    threshold = float(np.quantile(entropies, 0.4))
    blind = entropies.copy()
    blind[[i for i in range(5) if i + 1 not in exit_layers]] = np.inf
    out = some.predict(rows, threshold=threshold)
    assert len(set(out.exit_layers)) > 1
    np.testing.assert_array_equal(out.exit_layers, exits_of(blind, threshold))


class Patience:
    """Leave once the label has been the same for `patience` layers: a user's own criterion with state."""

    def __init__(self, patience: int) -> None:
        self.patience = patience

    def __call__(self, layer: int, logits: torch.Tensor, state: Any, row_ids: torch.Tensor) -> Any:
        labels = logits.argmax(-1)
        if state is None:
            run = torch.zeros_like(labels)
        else:
            run = torch.where(labels == state[0], state[1] + 1, torch.zeros_like(labels))
        return run >= self.patience, (labels, run)


@pytest.mark.parametrize("patience", [1, 2, 3])
def test_state_of_a_users_criterion_moves_with_its_rows(alone: tuple, patience: int) -> None:
    engine, rows, logits, _ = alone
    expected = []
    for labels in logits.argmax(-1).T:
        run, exit_layer = 0, len(labels)
        for i in range(1, len(labels) - 1):
            run = run + 1 if labels[i] == labels[i - 1] else 0
            if run >= patience:
                exit_layer = i + 1
                break
        expected.append(exit_layer)
    out = engine.predict(rows, criterion=Patience(patience), batch_size=5)
    np.testing.assert_array_equal(out.exit_layers, expected)


def test_criterion_that_returns_nonsense(alone: tuple) -> None:
    engine, rows, *_ = alone
    with pytest.raises(pfengine.ConfigError, match="must give bool"):
        engine.predict(rows, criterion=lambda layer, logits, state, ids: (logits[:, 0], state))
    with pytest.raises(pfengine.ConfigError, match="must give bool"):
        engine.predict(rows, criterion=lambda layer, logits, state, ids: (torch.tensor(True), state))
    assert len(engine.predict(rows).exit_layers) == len(rows)


def test_replay_follows_row_ids_through_sorting_and_windows(alone: tuple) -> None:
    engine, rows, logits, _ = alone
    draw = np.random.default_rng(1)
    many = [rows[i] for i in draw.integers(0, 12, 300)]
    layers = draw.integers(1, engine.num_layers + 1, 300)
    out = engine.predict(iter(many), criterion=pfengine.exits.Replay(layers.tolist()), batch_tokens=200)
    np.testing.assert_array_equal(out.exit_layers, layers)
    assert out.layer_speedup == pytest.approx(engine.num_layers * 300 / layers.sum())
    single = engine.predict(rows[:2], criterion="replay:2,4")
    np.testing.assert_array_equal(single.logits, logits[[1, 3], [0, 1]])
    with pytest.raises(pfengine.ConfigError, match="exit layers for 2 rows, and the input has more"):
        engine.predict(rows[:3], criterion="replay:2,4")


@pytest.mark.slow
def test_real_size_any_batch(make_checkpoint: Make, random_rows: Any) -> None:
    sizes = {"hidden_size": 384, "num_attention_heads": 12, "num_hidden_layers": 12, "intermediate_size": 1536}
    path = make_checkpoint("bert", labels=2, config=sizes, exit_layers=tuple(range(1, 13)))
    rows = random_rows(np.random.default_rng(0).integers(1, 70, 40))
    for precision in PRECISIONS:
        engine = pfengine.load(path, precision=precision, criterion="never")
        single = np.concatenate([engine.layer_logits([row]) for row in rows], axis=1)
        entropies = entropy(torch.from_numpy(single)).numpy()
        for threshold in np.quantile(entropies[:-1], [0.05, 0.2, 0.5]):  # exactly one row's entropy, often
            for batch_size in (2, 7, None):
                out = engine.predict(rows, threshold=float(threshold), batch_size=batch_size)
                expected = exits_of(entropies, float(threshold))
                np.testing.assert_array_equal(out.exit_layers, expected)
                np.testing.assert_array_equal(out.logits, single[expected - 1, range(len(rows))])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_alone_and_in_batches_of_2_7_64_and_500(make_checkpoint: Make, random_rows: Any, precision: str) -> None:
    sizes = {"hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 256}
    path = make_checkpoint("bert", labels=2, config=sizes)
    rows = random_rows(np.random.default_rng(0).integers(1, 70, 500))
    engine = pfengine.load(path, precision=precision, criterion="never")
    single = np.concatenate([engine.layer_logits([row]) for row in rows], axis=1)
    entropies = entropy(torch.from_numpy(single)).numpy()
    threshold = float(np.quantile(entropies[:-1], 0.1))
    expected = exits_of(entropies, threshold)
    for batch_size in (2, 7, 64, 500):
        out = engine.predict(rows, threshold=threshold, batch_size=batch_size, batch_tokens=100_000)
        np.testing.assert_array_equal(out.exit_layers, expected)
        np.testing.assert_array_equal(out.logits, single[expected - 1, range(len(rows))])
