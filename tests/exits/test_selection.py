"""Which criterion runs: the call's, the engine's, or the checkpoint's own."""

from __future__ import annotations

import json
import logging
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

import pfengine
from pfengine.exits import Entropy, Never, Replay

Make = Callable[..., Path]
TABLE = (
    {"threshold": 0.2, "layer_speedup": 1.5},
    {"threshold": 0.6, "layer_speedup": 2.5},
    {"threshold": 0.4, "layer_speedup": 2.0, "accuracy": 0.9, "rows": 7},
)


@pytest.fixture(scope="module")
def calibrated(make_checkpoint: Make) -> Path:
    return make_checkpoint("bert", threshold=0.5, calibration=TABLE)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "entropy:0.5"),
        ({"threshold": 0.7}, "entropy:0.7"),
        ({"threshold": 0}, "entropy:0"),
        ({"speedup": 2.0}, "entropy:0.4"),
        ({"speedup": 1.75}, f"entropy:{float(np.interp(1.75, [1.5, 2.0], [0.2, 0.4]))!r}"),
        ({"speedup": 1.5}, "entropy:0.2"),
        ({"speedup": 2.5}, "entropy:0.6"),
        ({"speedup": 1}, "never"),
        ({"criterion": "never"}, "never"),
        ({"criterion": "entropy:0.1"}, "entropy:0.1"),
        ({"criterion": "entropy", "threshold": 0.1}, "entropy:0.1"),
        ({"criterion": Entropy(0.1)}, "entropy:0.1"),
        ({"criterion": Entropy(0.1), "threshold": 0.9}, "entropy:0.9"),
        ({"criterion": Never()}, "never"),
        ({"criterion": "replay:2,1"}, "replay:2,1"),
        ({"criterion": Replay([2, 1])}, "replay:2,1"),
    ],
    ids=repr,
)
def test_choices(calibrated: Path, options: dict[str, Any], expected: str) -> None:
    assert repr(pfengine.load(calibrated, **options).criterion) == expected
    at_full_depth = pfengine.load(calibrated, criterion="never")
    if options:  # the same in a call
        assert repr(at_full_depth.choose(**options)) == expected
        assert repr(at_full_depth.criterion) == "never"


def test_a_call_changes_nothing_for_the_next(calibrated: Path) -> None:
    mine = Entropy(0.1)
    engine = pfengine.load(calibrated, criterion=mine)
    engine.classify({"input_ids": [3]}, threshold=0.9)
    assert (engine.criterion, mine.threshold) == (mine, 0.1)
    assert repr(engine.choose(threshold=0.9)) == "entropy:0.9"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 0.3, "speedup": 2.0}, "not both"),
        ({"criterion": "entropy:0.3", "threshold": 0.3, "speedup": 2.0}, "not both"),
        ({"speedup": 1.49}, "1.50 to 2.50"),
        ({"speedup": 2.51}, "1.50 to 2.50"),
        ({"speedup": float("nan")}, "nan"),
        ({"speedup": float("inf")}, "inf"),
        ({"speedup": -2.0}, "-2.0"),
        ({"speedup": "2"}, "'2'"),
        ({"speedup": True}, "True"),
        ({"threshold": float("nan")}, "nan"),
        ({"threshold": "0.3"}, "'0.3'"),
        ({"criterion": "replay:1,2", "threshold": 0.3}, "no threshold"),
        ({"criterion": Replay([1, 2]), "threshold": 0.3}, "no threshold"),
        ({"criterion": lambda *_: None, "threshold": 0.3}, "no threshold"),
        ({"criterion": "anger"}, "anger"),
        ({"criterion": 0.3}, "float"),
        ({"criterion": ["entropy:0.3"]}, "list"),
    ],
    ids=lambda value: re.sub(r" at 0x\w+", "", str(value))[:40],  # workers must agree on names
)
def test_choices_that_contradict_themselves(calibrated: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(pfengine.ConfigError, match=message):
        pfengine.load(calibrated, **options)
    engine = pfengine.load(calibrated)
    for call in (engine.classify, engine.stream, engine.predict):
        with pytest.raises(pfengine.ConfigError, match=message):
            call({"input_ids": [3]}, **options)


def test_without_a_table_there_is_no_speedup(make_checkpoint: Make) -> None:
    path = make_checkpoint("bert", threshold=0.5)
    with pytest.raises(pfengine.ConfigError, match="no calibration table; give threshold="):
        pfengine.load(path, speedup=2.0)
    assert repr(pfengine.load(path, speedup=1).criterion) == "never"


def test_without_a_threshold_full_depth_and_said_once(make_checkpoint: Make, caplog: Any) -> None:
    path = make_checkpoint("bert")
    with caplog.at_level(logging.WARNING, logger="pfengine"):
        engine = pfengine.load(path)
        said = [record for record in caplog.records if "no threshold" in record.getMessage()]
        assert len(said) == 1
        assert str(path) in said[0].getMessage()
        assert (engine.predict([{"input_ids": [3, 4]}] * 3).exit_layers == 5).all()
        assert (engine.predict({"input_ids": [3]}, threshold=99).exit_layers == 1).all()
    assert len([record for record in caplog.records if "no threshold" in record.getMessage()]) == 1


def rewritten(path: Path, out: Path, **fields: Any) -> Path:
    """A copy with other fields in pfengine.json."""
    out.mkdir()
    for file in path.iterdir():
        (out / file.name).write_bytes(file.read_bytes())
    raw = json.loads((out / "pfengine.json").read_text())
    (out / "pfengine.json").write_text(json.dumps(raw | fields))
    return out


def test_the_checkpoint_may_hold_the_text_form(calibrated: Path, tmp_path: Path) -> None:
    path = rewritten(calibrated, tmp_path / "b", criterion=" entropy ")
    assert (
        repr(pfengine.load(path).criterion) == repr(pfengine.load(path, criterion="entropy").criterion) == "entropy:0.5"
    )
    path = rewritten(calibrated, tmp_path / "c", criterion="elbert:,2,0.1")
    assert repr(pfengine.load(path).criterion) == repr(pfengine.load(path, criterion="elbert").criterion)
    assert repr(pfengine.load(path, speedup=2.0).criterion) == "elbert:0.4,2,0.1"
    assert repr(pfengine.load(path, criterion="elbert", threshold=0.7).criterion) == "elbert:0.7,2,0.1"
    assert repr(pfengine.load(path, criterion="elbert:0.7").criterion) == "elbert:0.7"
    with pytest.raises(pfengine.ConfigError, match=r"of criterion 'elbert:,2,0\.1'; give threshold="):
        pfengine.load(path, criterion="elbert:0.7", speedup=2.0)
    path = rewritten(calibrated, tmp_path / "a", criterion="entropy:0.3", threshold=None)
    assert repr(pfengine.load(path).criterion) == "entropy:0.3"
    assert repr(pfengine.load(path, threshold=0.7).criterion) == "entropy:0.7"
    assert repr(pfengine.load(path, speedup=2.0).criterion) == "entropy:0.4"


@pytest.mark.parametrize(
    "fields",
    [
        {"criterion": "anger", "threshold": None},
        {"criterion": "entropy:low", "threshold": None},
        {"criterion": "replay:x", "threshold": None},
        {"criterion": "never", "threshold": 0.3},
        {"criterion": None, "threshold": 0.3},
    ],
    ids=repr,
)
def test_a_criterion_of_the_checkpoint_that_makes_no_sense(calibrated: Path, tmp_path: Path, fields: Any) -> None:
    path = rewritten(calibrated, tmp_path / "a", **fields)
    with pytest.raises(pfengine.CheckpointError, match=r"pfengine\.json: '(criterion|threshold)'"):
        pfengine.load(path)


@pytest.mark.parametrize("problem", ["regression", "multi_label_classification"])
def test_entropy_needs_single_labels(make_checkpoint: Make, problem: str) -> None:
    path = make_checkpoint("bert", config={"problem_type": problem}, criterion="never")
    for criterion in ("entropy:0.3", Entropy(0.3)):
        with pytest.raises(pfengine.ConfigError, match=problem):
            pfengine.load(path, criterion=criterion)
        with pytest.raises(pfengine.ConfigError, match=problem):
            pfengine.load(path).predict([], criterion=criterion)
    assert pfengine.load(path).predict({"input_ids": [3]}, criterion="replay:2").exit_layers.tolist() == [2]
    own = make_checkpoint("bert", config={"problem_type": problem}, criterion="entropy", threshold=0.3)
    with pytest.raises(pfengine.PFEngineError, match=problem):
        pfengine.load(own)


def test_a_model_without_exits(make_checkpoint: Make) -> None:
    path = make_checkpoint("bert", head="classifier")
    engine = pfengine.load(path)
    assert repr(engine.criterion) == "never"
    assert repr(pfengine.load(path, criterion="never").criterion) == "never"
    for options in ({"threshold": 0.3}, {"speedup": 2.0}, {"criterion": "entropy:0.3"}, {"criterion": "replay:1"}):
        with pytest.raises(pfengine.ConfigError):
            pfengine.load(path, **options)  # type: ignore[arg-type]
        with pytest.raises(pfengine.ConfigError):
            engine.classify([], **options)  # type: ignore[arg-type]
    assert engine.predict({"input_ids": [3]}).exit_layers.tolist() == [5]


def test_a_users_function(calibrated: Path) -> None:
    seen: list[tuple[int, list[int]]] = []

    def even_rows(layer: int, logits: torch.Tensor, state: Any, row_ids: torch.Tensor) -> tuple[torch.Tensor, Any]:
        assert logits.dtype == torch.float32
        assert logits.shape == (len(row_ids), 3)
        seen.append((layer, sorted(row_ids.tolist())))
        return (row_ids % 2 == 0) & (layer == 2), state

    out = pfengine.load(calibrated, criterion=even_rows).predict([{"input_ids": [3] * n} for n in (4, 3, 2, 1)])
    np.testing.assert_array_equal(out.exit_layers, [2, 5, 2, 5])
    assert seen == [(1, [0, 1, 2, 3]), (2, [0, 1, 2, 3]), (3, [1, 3]), (4, [1, 3])]


class Seen(NamedTuple):
    """State in any shape of tuples; every tensor leads with rows."""

    total: torch.Tensor
    inner: tuple[torch.Tensor, None]


def test_state_of_a_users_criterion_may_be_named_and_nested(calibrated: Path) -> None:
    rows = [{"input_ids": [3] * n} for n in (4, 3, 2, 1)]

    def sums(layer: int, logits: torch.Tensor, state: Any, row_ids: torch.Tensor) -> tuple[torch.Tensor, Seen]:
        total = row_ids if state is None else state.total + row_ids
        if state is not None:
            assert torch.equal(state.inner[0], row_ids)  # moved with its rows
        return total >= 6, Seen(total, (row_ids, None))

    out = pfengine.load(calibrated, criterion=sums).predict(rows)
    np.testing.assert_array_equal(out.exit_layers, [5, 5, 3, 2])


def test_a_criterion_that_raises_leaves_the_engine_usable(calibrated: Path) -> None:
    def broken(layer: int, *_: Any) -> Any:
        raise LookupError(f"at layer {layer}")

    engine = pfengine.load(calibrated)
    before = engine.classify({"input_ids": [3, 4]})
    with pytest.raises(LookupError, match="at layer 1"):
        engine.classify({"input_ids": [3, 4]}, criterion=broken)
    assert engine.classify({"input_ids": [3, 4]}) == before


def test_the_checkpoints_own_criterion_by_name_has_its_threshold() -> None:
    engine = pfengine.load("sst2", criterion="entropy")
    assert repr(engine.criterion) == repr(pfengine.load("sst2").criterion)
    assert repr(engine.choose(criterion="entropy", threshold=0.5)) == "entropy:0.5"
    assert repr(engine.choose(criterion="patience:3")) == "patience:3"
    with pytest.raises(pfengine.ConfigError, match="needs a threshold"):
        engine.choose(criterion="patience")
    with pytest.raises(pfengine.ConfigError, match="ndarray; give an object"):
        engine.choose(criterion=np.array([1, 2]))


def test_a_speedup_with_little_agreement_warns_with_the_figure(make_checkpoint: Make) -> None:
    table = tuple({"threshold": s / 9, "layer_speedup": s, "agreement": 1.1 - s / 20} for s in (1.0, 2.0, 4.0))
    path = make_checkpoint("bert", threshold=0.1, calibration=table)
    row = {"input_ids": [2, 5, 3]}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine = pfengine.load(path, speedup=2.5)
        engine.predict([row], speedup=2)
        engine.predict([row], threshold=0.9)
    for call in (
        lambda: pfengine.load(path, speedup=3.4),
        lambda: engine.predict([row], speedup=3.4),
        lambda: engine.predict([row, row], speedup=[3.4, 1]),
    ):
        with pytest.warns(UserWarning, match=r"at a layer speed-up of 3\.4, .* answers 93% of the rows") as seen:
            call()
        assert [Path(each.filename).name for each in seen] == ["test_selection.py"]
