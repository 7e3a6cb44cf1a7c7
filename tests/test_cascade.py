"""Cascades: complete models behind one load, and rows that one of them is not sure of enter the next."""

from __future__ import annotations

import copy
import functools
import pickle
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pfengine
from pfengine import api, extension
from pfengine.cascade_runner import CascadeRunner
from pfengine.errors import InputError
from pfengine.exits import Replay
from pfengine.ops import cpu_torch

from .test_overflow import last_layer, spoil

Make = Callable[..., Path]
LENGTHS = [1, 3, 9, 20, 40, 7, 5, 2, 33, 64, 12, 1]
PRECISIONS = ["fp32", pytest.param("int8", marks=pytest.mark.skipif(not extension.has_cpu(), reason="no _C"))]

# The models of each cascade, as arguments of make_checkpoint.
PLAIN: list[dict[str, Any]] = [
    {"family": "bert", "head": "classifier", "config": {"num_hidden_layers": 2}},
    {"family": "bert", "head": "classifier", "seed": 1},
]
OWN_EXITS: list[dict[str, Any]] = [  # other families and widths too, and exits within two of the three models
    {"family": "distilbert", "head": "linear", "criterion": "entropy", "threshold": 0.75, "seed": 2},
    {"family": "roberta", "head": "classifier", "seed": 3},
    {"family": "bert", "head": "past-future", "criterion": "patience:1", "seed": 4},
]
KINDS = {"plain": PLAIN, "own exits": OWN_EXITS}


@pytest.fixture(scope="module")
def make_cascade(make_checkpoint: Make, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """make_cascade(kind, criterion=, threshold=) -> directory, built once each."""
    made: dict[Any, Path] = {}

    def make(kind: str, **options: Any) -> Path:
        key = kind, *sorted(options.items())
        if key not in made:
            parts = [make_checkpoint(**part) for part in KINDS[kind]]
            made[key] = pfengine.cascade(parts, tmp_path_factory.mktemp("cascade") / "out", **options)
        return made[key]

    return make


@pytest.fixture(scope="module")
def rows(random_rows: Callable[..., list[dict[str, Any]]]) -> list[dict[str, Any]]:
    return random_rows(LENGTHS)


@functools.cache
def alone(path: Path, **options: Any) -> list[pfengine.Engine]:
    """The models of a cascade, each loaded by itself."""
    return [pfengine.load(each, **options) for each in sorted((path / "models").iterdir())]


def by_hand(path: Path, rows: list[Any], criterion: Callable[..., Any], **options: Any) -> tuple[Any, ...]:
    """Logits, exit layers and models, one row and one model at a time. criterion: of numpy logits [labels]."""
    engines = alone(path, **options)
    logits, layers, models = [], [], []
    for row in rows:
        spent = 0
        for number, engine in enumerate(engines, 1):
            answer = engine.predict(row)
            spent += int(answer.exit_layers[0])
            if number == len(engines) or criterion(answer.logits[0], number):
                break
        logits.append(answer.logits[0])
        layers.append(spent)
        models.append(number)
    return np.array(logits), np.array(layers), np.array(models)


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits.astype(np.float64))
    return powers / powers.sum()


def confidence(logits: np.ndarray, temperature: float = 1.0) -> float:
    return float(softmax(logits / temperature).max())


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_those_of_its_models_alone(
    make_cascade: Callable[..., Path], rows: list[Any], kind: str, precision: str
) -> None:
    """Bit for bit, whatever is in the batch: at thresholds where all leave the first model, some do, and none does."""
    path = make_cascade(kind)
    engine = pfengine.load(path, precision=precision, criterion="cascadebert:0.5" + (",1/0.3" * (kind != "plain")))
    seen = set()
    for threshold in (0.0, 0.5, 0.8, 1.0):

        def sure(logits: np.ndarray, number: int, threshold: float = threshold) -> bool:
            return confidence(logits, 0.3 if number == 2 else 1.0) > threshold

        wanted = by_hand(path, rows, sure, precision=precision)
        for options in ({}, {"batch_size": 1}, {"batch_size": 3}, {"batch_tokens": 50}):
            out = engine.predict(rows, threshold=threshold, **options)
            np.testing.assert_array_equal(out.models, wanted[2])
            np.testing.assert_array_equal(out.exit_layers, wanted[1])
            np.testing.assert_array_equal(out.logits, wanted[0])
        seen |= set(wanted[2].tolist())
        singly = [engine.predict(row, threshold=threshold).logits for row in rows]
        np.testing.assert_array_equal(np.concatenate(singly), wanted[0])
    assert seen == set(range(1, len(KINDS[kind]) + 1)), "every model answers some row at some threshold"


def test_without_the_extension(make_cascade: Callable[..., Path], rows: list[Any], monkeypatch: Any) -> None:
    monkeypatch.setattr(api, "find_op_set", lambda device: cpu_torch)
    engine = pfengine.load(make_cascade("own exits"), criterion="cascadebert:0.8,1/0.3")
    out = engine.predict(rows)
    assert len(set(out.models)) > 1
    for i, row in enumerate(rows):
        single = engine.predict(row)
        np.testing.assert_array_equal(single.logits[0], out.logits[i])
        assert (single.exit_layers[0], single.models[0]) == (out.exit_layers[i], out.models[i])


def test_what_it_says(make_cascade: Callable[..., Path], rows: list[Any]) -> None:
    engine = pfengine.load(make_cascade("plain", criterion="cascadebert", threshold=0.6))
    out, answers = engine.predict(rows), engine.classify(rows)
    assert (engine.num_layers, engine.exit_layers) == (5, (2, 7))
    assert "bert, 2 layers, then bert, 5 layers" in repr(engine)
    assert "cascadebert:0.6" in repr(engine)
    assert out.models is not None
    assert set(out.exit_layers.tolist()) == {2, 7}
    np.testing.assert_array_equal(out.exit_layers, np.where(out.models == 1, 2, 7))
    assert out.layer_speedup == pytest.approx(5 * len(rows) / out.exit_layers.sum()), "against the last model alone"
    assert [answer["model"] for answer in answers] == out.models.tolist()
    assert [answer["exit_layer"] for answer in answers] == out.exit_layers.tolist()
    assert list(engine.stream(iter(rows))) == answers
    top = engine.classify(rows[:2], top_k=2)
    assert [each[0] for each in top] == answers[:2]
    assert pfengine.load(engine.checkpoint.path / "models" / "1").predict(rows).models is None


@pytest.mark.parametrize("kind", KINDS)
def test_scores_of_every_exit(make_cascade: Callable[..., Path], rows: list[Any], kind: str) -> None:
    path = make_cascade(kind)
    engine = pfengine.load(path)
    logits = engine.layer_logits(rows, batch_tokens=50)
    np.testing.assert_array_equal(logits, np.concatenate([each.layer_logits(rows) for each in alone(path)]))
    assert len(logits) == len(engine.exit_layers)
    if kind == "plain":
        assert logits.shape == (2, len(rows), 3)
    assert engine.layer_scores(rows).learned is None
    assert engine.layer_logits([]).shape == (len(logits), 0, 3)
    deep = engine.predict(rows, criterion="never")
    np.testing.assert_array_equal(deep.logits, logits[-1])


def test_full_depth_is_the_last_model_alone(make_cascade: Callable[..., Path], rows: list[Any]) -> None:
    engine = pfengine.load(make_cascade("own exits", threshold=0.5))
    last = pfengine.load(engine.checkpoint.path / "models" / "3", criterion="never").predict(rows)
    out = engine.predict(rows, criterion="never")
    np.testing.assert_array_equal(out.logits, last.logits)
    assert set(out.exit_layers) == {5}
    assert set(out.models) == {3}
    assert out.layer_speedup == 1


@pytest.mark.parametrize(
    ("text", "decide"),
    [
        ("cascadebert:0.64,2/0.5", lambda x, number: confidence(x, (2, 0.5)[number - 1]) > 0.64),
        (
            "margin:0.65/0.2",
            lambda x, number: np.diff(np.sort(np.exp(x) / np.exp(x).sum()))[-1] >= (0.65, 0.2)[number - 1],
        ),
    ],
)
def test_criteria_with_numbers_per_model(make_cascade: Callable[..., Path], rows: list[Any], text, decide) -> None:
    path = make_cascade("own exits")
    out = pfengine.load(path, criterion=text).predict(rows)
    np.testing.assert_array_equal(out.models, by_hand(path, rows, decide)[2])
    assert len(set(out.models)) == 3


def test_criteria_that_remember_earlier_models(make_cascade: Callable[..., Path], rows: list[Any]) -> None:
    engine = pfengine.load(make_cascade("own exits"))
    layers = np.tile([5, 15, 10], 4)
    np.testing.assert_array_equal(engine.predict(rows, criterion=Replay(layers), batch_size=3).models, layers // 5)
    labels = np.stack([each.predict(rows).label_ids for each in alone(engine.checkpoint.path)])
    out = engine.predict(rows, criterion="patience:1", batch_size=3)
    np.testing.assert_array_equal(out.models, np.where(labels[0] == labels[1], 2, 3))

    def second(layer: int, logits: Any, state: Any, row_ids: Any) -> tuple[Any, Any]:
        """By the rows' numbers and a state: odd rows leave the second model they are asked about."""
        assert layer in (5, 10)
        count = torch.zeros(len(row_ids), 1) if state is None else state + 1
        return (row_ids % 2 == 1) & (count[:, 0] == 1), count

    out = engine.predict(rows, criterion=second, batch_size=3)
    np.testing.assert_array_equal(out.models, np.where(np.arange(len(rows)) % 2, 2, 3))


def test_thresholds_per_row(make_cascade: Callable[..., Path], rows: list[Any]) -> None:
    engine = pfengine.load(make_cascade("own exits", threshold=0.5))
    thresholds = np.linspace(0, 1, len(rows))
    out = engine.predict(rows, threshold=thresholds)
    for i, (row, threshold) in enumerate(zip(rows, thresholds, strict=True)):
        single = engine.predict(row, threshold=float(threshold))
        np.testing.assert_array_equal(single.logits[0], out.logits[i])
        assert (single.exit_layers[0], single.models[0]) == (out.exit_layers[i], out.models[i])
    own = [row | {"threshold": 1.0} if i % 2 else row for i, row in enumerate(rows)]
    mixed = engine.predict(own, threshold=0.0)
    np.testing.assert_array_equal(mixed.models, np.where(np.arange(len(rows)) % 2, 3, 1))
    deep = engine.predict([row | {"speedup": 1} if i % 2 else row for i, row in enumerate(rows)], threshold=0.0)
    np.testing.assert_array_equal(deep.exit_layers[1::2], 5)
    full = engine.predict(rows, criterion="never")
    np.testing.assert_array_equal(deep.logits[1::2], full.logits[1::2])
    np.testing.assert_array_equal(deep.models, np.where(np.arange(len(rows)) % 2, 3, 1))


@pytest.mark.parametrize("criterion", ["never", "cascadebert:0.6"])
def test_bad_rows_leave_others_alone(make_cascade: Callable[..., Path], rows: list[Any], criterion: str) -> None:
    engine = pfengine.load(make_cascade("plain"), criterion=criterion)
    good = engine.classify(rows)
    bad: list[Any] = [{"input_ids": [999]}, 5, {"input_ids": []}, {**rows[0], "threshold": "much"}]
    mixed = [row for pair in zip(rows, bad * 3, strict=True) for row in pair]
    out = engine.classify(mixed, on_error="return", batch_size=3)
    assert out[::2] == good
    assert [sorted(each) for each in out[1::2]] == [["error", "row"]] * len(bad) * 3
    assert [each["row"] for each in out[1::2]] == list(range(1, len(mixed), 2))
    with pytest.raises(InputError, match="row 1: has token id 999"):
        engine.predict(mixed)
    assert engine.classify(bad[:1], on_error="return")[0]["row"] == 0
    assert engine.classify(rows) == good


def test_a_row_that_only_a_later_model_cannot_take(
    make_checkpoint: Make, tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    small = make_checkpoint("bert", head="classifier", seed=1, config={"vocab_size": 50, "num_hidden_layers": 3})
    engine = pfengine.load(pfengine.cascade([make_checkpoint(**PLAIN[0]), small], tmp_path / "out", threshold=1.0))
    given = [{"input_ids": np.minimum(row["input_ids"], 49)} for row in rows]
    given[4] = {"input_ids": [7, 60]}
    out = engine.classify(given, on_error="return")
    assert out[4] == {"error": "has token id 60; this model's are 0 to 49", "row": 4}
    assert [each["model"] for i, each in enumerate(out) if i != 4] == [2] * (len(given) - 1)
    assert engine.classify(given[4], threshold=0.0)[0]["model"] == 1
    with pytest.raises(InputError, match="row 4"):
        engine.layer_logits(given)


def test_no_rows(make_cascade: Callable[..., Path]) -> None:
    engine = pfengine.load(make_cascade("plain"), criterion="cascadebert:0.6")
    assert engine.classify([]) == list(engine.stream(iter(()))) == []
    out = engine.predict([])
    assert out.models is not None
    assert (out.logits.shape, out.exit_layers.shape, out.models.shape) == ((0, 3), (0,), (0,))
    assert out.models.dtype == np.int64
    assert np.isnan(out.layer_speedup)


def test_batches_of_a_model_in_several_threads(make_cascade: Callable[..., Path], rows: list[Any]) -> None:
    """As on a GPU, where each window's batches are computed at the same time."""
    engine = pfengine.load(make_cascade("own exits"), criterion="cascadebert:0.8,1/0.3")
    assert engine.cascade is not None
    wanted = engine.predict(rows)
    runner = CascadeRunner(engine.cascade, engine.precision, 50, 2)
    selection, _ = engine._selected(rows, None, None, None)
    windows = [engine.tokenizer.encode(enumerate(rows[:5])), [], engine.tokenizer.encode(enumerate(rows[5:], 5))]
    with ThreadPoolExecutor(3) as workers:
        parts = list(runner.answer(windows, selection, workers))
    assert [len(part.window) for part in parts] == [5, 0, len(rows) - 5]
    joined = runner.join_answers(parts)
    np.testing.assert_array_equal(joined.logits, wanted.logits)
    np.testing.assert_array_equal(joined.exit_layers, wanted.exit_layers)
    np.testing.assert_array_equal(joined.models, wanted.models)


def test_a_slow_source_is_answered_as_it_goes(make_cascade: Callable[..., Path], rows: list[Any]) -> None:
    engine = pfengine.load(make_cascade("plain"), criterion="cascadebert:0.6")
    given: list[int] = []

    def slowly() -> Iterator[Any]:
        for i, row in enumerate(rows[:4]):
            time.sleep(0.15)
            given.append(i)
            yield row

    seen = []
    for answer in engine.stream(slowly()):
        seen.append((answer["label"], len(given)))
    assert [label for label, _ in seen] == [answer["label"] for answer in engine.classify(rows[:4])]
    assert seen[0][1] < 4, "not all rows were read before the first was answered"


def test_a_row_that_overflows_in_one_model(make_checkpoint: Make, tmp_path: Path, rows: list[Any]) -> None:
    broken = spoil(make_checkpoint(**PLAIN[1]), tmp_path / "broken", last_layer)
    engine = pfengine.load(pfengine.cascade([make_checkpoint(**PLAIN[0]), broken], tmp_path / "out"))
    out = engine.classify(rows, on_error="return", criterion="cascadebert:0.6")
    first = pfengine.load(make_checkpoint(**PLAIN[0])).predict(rows)
    sure = [confidence(logits) > 0.6 for logits in first.logits]
    assert 0 < sum(sure) < len(rows)
    assert ["error" in answer for answer in out] == [not each for each in sure]
    assert all("the model's numbers overflow" in answer["error"] for answer in out if "error" in answer)


def test_it_pickles_copies_and_warms_up(make_cascade: Callable[..., Path], rows: list[Any]) -> None:
    engine = pfengine.load(make_cascade("own exits"), criterion="cascadebert:0.6")
    answers = engine.classify(rows)
    engine.warmup(rows=(1, 2), tokens=(4, 600))
    again = pickle.loads(pickle.dumps(engine))
    assert again.mark == engine.mark
    for other in (again, copy.copy(engine), copy.deepcopy(engine)):
        assert other.classify(rows) == answers
    assert pfengine.load(make_cascade("plain")).mark != engine.mark


def test_a_pickle_knows_when_one_model_has_changed(make_cascade: Callable[..., Path], tmp_path: Path) -> None:
    path = shutil.copytree(make_cascade("plain", threshold=0.6), tmp_path / "out")
    written = pickle.dumps(pfengine.load(path))
    parts = [path / "models" / "1", path / "models" / "1"]
    pfengine.cascade(parts, tmp_path / "other", threshold=0.6)
    shutil.rmtree(path)
    shutil.move(tmp_path / "other", path)
    with pytest.raises(pfengine.CheckpointError, match="has changed since this engine was pickled"):
        pickle.loads(written)
