"""Engines, answers, criteria and errors between processes: pickled, copied, spawned, forked."""

from __future__ import annotations

import concurrent.futures
import copy
import inspect
import json
import multiprocessing
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import pfengine
from pfengine import errors
from pfengine.evaluation import calibrate_checkpoint  # noqa: F401  (errors of all modules)
from pfengine.exits import Entropy, Never, Patience, Replay
from pfengine.ops.cpu_model import CpuFlight, CpuModel

Make = Callable[..., Path]
TEXTS = ["the film is very good", "bleak", "it 's a slow journey and a bad movie"]


def stubborn(layer: int, logits: torch.Tensor, state: Any, row_ids: torch.Tensor) -> Any:
    return torch.full_like(row_ids, layer == 2, dtype=torch.bool), None


def ask(engine: pfengine.Engine) -> list[Any]:
    return engine.classify(TEXTS, top_k=None)


@pytest.fixture(scope="module")
def path(make_text_checkpoint: Make) -> Path:
    return make_text_checkpoint(threshold=0.9)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"precision": "bf16"},
        {"precision": "int8", "threshold": 0.5},
        {"criterion": "patience:2", "max_length": 5},
        {"criterion": "never"},
        {"criterion": Replay([1, 5, 2])},
        {"criterion": stubborn},
        {"device": "cpu", "criterion": Entropy(0.8)},
    ],
    ids=lambda options: " ".join(f"{key}={getattr(value, '__name__', value)}" for key, value in options.items()),
)
def test_an_engine_pickles_as_what_it_was_loaded_from(
    path: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path.parent)
    engine = pfengine.load(path.name, **options)
    written = pickle.dumps(engine)
    assert len(written) < 5000, "weights are not written"
    monkeypatch.chdir("/")
    again = pickle.loads(written)
    assert (again.precision, again.max_length) == (engine.precision, engine.max_length)
    assert repr(again.criterion) == repr(engine.criterion)
    assert ask(again) == ask(engine)
    twice = pickle.loads(pickle.dumps(again))
    assert ask(twice) == ask(engine)


def test_a_bundled_checkpoint_goes_by_its_name() -> None:
    written = pickle.dumps(pfengine.load("sst2"))
    assert str(Path(pfengine.__file__).parent).encode() not in written
    assert ask(pickle.loads(written)) == ask(pfengine.load("sst2"))


def test_a_criterion_that_does_not_pickle_says_so(path: Path) -> None:
    engine = pfengine.load(path, criterion=lambda layer, logits, state, rows: (logits[:, 0] > 9, None))
    with pytest.raises((pickle.PicklingError, AttributeError), match="lambda"):
        pickle.dumps(engine)


def test_an_engine_that_was_not_loaded_says_so(path: Path) -> None:
    loaded = pfengine.load(path)
    engine = pfengine.Engine(
        loaded.checkpoint, loaded.model, loaded.tokenizer, loaded.criterion, loaded.device, loaded.precision
    )
    with pytest.raises(pickle.PicklingError, match=r"not made by pfengine\.load"):
        pickle.dumps(engine)


def other_bias(path: Path) -> None:
    tensors = load_file(path / "model.safetensors")
    key = next(key for key in tensors if key.endswith("output.dense.bias"))
    tensors[key] = tensors[key] + 1
    save_file(tensors, path / "model.safetensors")


def other_threshold(path: Path) -> None:
    fields = json.loads((path / "pfengine.json").read_text())
    (path / "pfengine.json").write_text(json.dumps(fields | {"threshold": 0.1}))


def other_words(path: Path) -> None:
    text = (path / "tokenizer.json").read_text()
    (path / "tokenizer.json").write_text(text.replace('"good"', '"gooood"'))


@pytest.mark.parametrize("change", [other_bias, other_threshold, other_words, shutil.rmtree])
def test_a_checkpoint_that_is_another_by_now(path: Path, tmp_path: Path, change: Callable[[Path], None]) -> None:
    shutil.copytree(path, tmp_path / "checkpoint")
    written = pickle.dumps(pfengine.load(tmp_path / "checkpoint", precision="fp32"))
    assert ask(pickle.loads(written))
    change(tmp_path / "checkpoint")
    with pytest.raises(pfengine.CheckpointError, match="checkpoint: "):
        pickle.loads(written)


def test_copies_share_weights_and_have_criteria_of_their_own(path: Path, tmp_path: Path) -> None:
    shutil.copytree(path, tmp_path / "checkpoint")
    engine = pfengine.load(tmp_path / "checkpoint", criterion=Entropy(0.8))
    shutil.rmtree(tmp_path / "checkpoint")  # which a copy does not need
    expected = ask(engine)
    for other in (copy.copy(engine), copy.deepcopy(engine), copy.deepcopy([engine])[0]):
        assert other is not engine
        assert other.model is engine.model
        assert ask(other) == expected
    other.criterion = other.criterion.with_threshold(-1.0)  # type: ignore[union-attr]
    assert ask(engine) == expected


def all_errors(kind: type = pfengine.PFEngineError) -> list[type]:
    return [kind, *(further for sub in kind.__subclasses__() for further in all_errors(sub))]


def instance(kind: type) -> Any:
    if issubclass(kind, errors.CheckpointError):
        return kind(Path("/some/where"), ["one fault", "another fault"])
    if issubclass(kind, errors.InputError):
        return kind(7, "is no text")
    return kind("a sentence")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_errors(protocol: int) -> None:
    kinds = all_errors()
    assert len(kinds) >= 7
    for kind in kinds:
        error = instance(kind)
        error.add_note("a note")
        for again in (pickle.loads(pickle.dumps(error, protocol)), copy.copy(error), copy.deepcopy(error)):
            assert type(again) is kind
            assert str(again) == str(error)
            assert again.args == error.args
            assert vars(again) == vars(error)
    assert all(inspect.isclass(kind) for kind in kinds)


@pytest.mark.parametrize("rule", [Entropy(0.3), Patience(2), Never(), Replay([1, 2])], ids=repr)
def test_criteria(rule: Any) -> None:
    for again in (pickle.loads(pickle.dumps(rule)), copy.deepcopy(rule)):
        assert type(again) is type(rule)
        assert repr(again) == repr(rule)


def test_predictions(path: Path) -> None:
    out = pfengine.load(path).predict(TEXTS)
    before = pickle.loads(pickle.dumps(out))
    assert out.probabilities.shape == (3, 3)  # which is kept with it
    for again in (before, pickle.loads(pickle.dumps(out)), copy.deepcopy(out)):
        np.testing.assert_array_equal(again.logits, out.logits)
        np.testing.assert_array_equal(again.probabilities, out.probabilities)
        np.testing.assert_array_equal(again.exit_layers, out.exit_layers)


@pytest.mark.timeout(120)
def test_spawned_processes(path: Path) -> None:
    """Arguments, results and errors all cross; one worker, as each imports torch anew."""
    engine = pfengine.load(path, criterion="entropy:0.8")
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        assert pool.submit(engine.classify, TEXTS).result() == engine.classify(TEXTS)
        out = pool.submit(engine.predict, TEXTS).result()
        np.testing.assert_array_equal(out.logits, engine.predict(TEXTS).logits)
        with pytest.raises(pfengine.InputTypeError, match="row 1: ") as caught:
            pool.submit(engine.classify, ["good", 7]).result()
        assert caught.value.row == 1
        with pytest.raises(pfengine.CheckpointError, match="no such checkpoint"):
            pool.submit(pfengine.load, "no such checkpoint").result()


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_joblib(path: Path) -> None:
    joblib = pytest.importorskip("joblib")
    engine = pfengine.load(path, criterion=lambda layer, logits, state, rows: (logits[:, 0] > 0.5, None))
    with joblib.parallel_config("loky", n_jobs=1):  # whose cloudpickle writes functions too
        from joblib.externals.loky import get_reusable_executor

        assert get_reusable_executor(1).submit(engine.classify, TEXTS).result() == engine.classify(TEXTS)
        get_reusable_executor(1).shutdown()


def in_a_child(work: Callable[[], Any]) -> int:
    """Exit code of a forked child that does this."""
    child = os.fork()
    if not child:
        code = 1
        try:
            torch.set_num_threads(1)
            code = 0 if work() else 2
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.timeout(60)
def test_a_round_trip_in_a_forked_child(path: Path) -> None:
    engine = pfengine.load(path)
    expected = ask(engine)
    assert in_a_child(lambda: ask(pickle.loads(pickle.dumps(engine))) == expected) == 0
    assert in_a_child(lambda: ask(engine) == expected) == 0


@pytest.mark.timeout(60)
def test_worker_threads_are_made_anew_after_a_fork(path: Path) -> None:
    """An engine that computes in worker threads, as one on a GPU does, whose threads a child does not have."""
    engine = pfengine.load(path)
    carrier = engine.model.carrier
    assert isinstance(carrier, CpuModel)

    class Lanes(CpuModel):
        worker_threads = 2

        def start(self, *args: Any) -> CpuFlight:
            torch.set_num_threads(1)
            return carrier.start(*args)

    engine.model = replace(engine.model, carrier=Lanes(carrier.native, carrier.parts))
    expected = engine.predict(TEXTS * 9, batch_size=2).logits
    pool = engine._workers
    assert pool is engine._workers
    assert pool is not None

    def work() -> bool:
        same = np.array_equal(engine.predict(TEXTS * 9, batch_size=2).logits, expected)
        return same and engine._workers is not pool

    assert in_a_child(work) == 0
