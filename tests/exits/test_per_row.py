"""Thresholds and speed-ups per row: as separate calls with each, bit for bit, and one bad number loses one row."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pfengine

Make = Callable[..., Path]
LENGTHS = [3, 9, 1, 5, 5, 2, 17, 4]
TABLE = tuple({"threshold": t, "layer_speedup": s} for t, s in ((0.3, 1.0), (0.9, 2.0), (1.05, 4.0)))


@pytest.fixture(scope="module")
def engine(make_checkpoint: Make) -> pfengine.Engine:
    return pfengine.load(make_checkpoint("bert", threshold=0.9, calibration=TABLE), precision="fp32")


@pytest.fixture(scope="module")
def rows(random_rows: Any) -> list[dict[str, Any]]:
    return random_rows(LENGTHS)


def same(found: Any, row: int, alone: Any) -> None:
    assert found.logits[row].tobytes() == alone.logits[0].tobytes()
    assert found.exit_layers[row] == alone.exit_layers[0]


CRITERIA = {  # and thresholds that rows differ at
    "entropy": [-1.0, 0.5, 0.9, 1.0, 1.05, 1.09, 2.0],
    "patience": [1, 2, 3, 4, 9],
    "elbert:,2,0.1": [0.0, 0.7, 0.9, 1.1],
    "confidence:,1/2/1/0.5": [0.3, 0.4, 0.5, 0.9, 1.1],
    "voting": [0.9, 1.0, 1.3, 2.5],
    "entropy:0.1/0.5/0.9/1": [0.5, 1.0],  # rows without a number of their own have theirs per exit
}


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_as_separate_calls(engine: pfengine.Engine, rows: list, data: st.DataObject) -> None:
    text = data.draw(st.sampled_from(list(CRITERIA)))
    per_row = data.draw(st.lists(st.sampled_from(CRITERIA[text]), min_size=len(rows), max_size=len(rows)))
    size = data.draw(st.sampled_from([None, 1, 3]))
    tokens = data.draw(st.sampled_from([4096, 8]))  # several windows
    options = {"criterion": text, "batch_size": size, "batch_tokens": tokens}
    how = data.draw(st.sampled_from(["list", "generator", "keys", "array", "tensor"]))
    usual = 1 if text == "patience" else CRITERIA[text][0]
    if how == "keys":
        has = data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows)))
        given_rows = [row | ({"threshold": t} if own else {}) for row, t, own in zip(rows, per_row, has, strict=True)]
        if text.count("/") == 3 and text.startswith("entropy"):
            out = engine.predict(given_rows, **options)  # type: ignore[arg-type]
            per_row = [t if own else None for t, own in zip(per_row, has, strict=True)]
        else:
            out = engine.predict(given_rows, threshold=usual, **options)  # type: ignore[arg-type]
            per_row = [t if own else usual for t, own in zip(per_row, has, strict=True)]
    else:
        make: dict[str, Callable[[Any], Any]] = {
            "list": list, "generator": lambda values: (t for t in values), "array": np.array, "tensor": torch.tensor,
        }  # fmt: skip
        if how == "tensor":
            per_row = torch.tensor(per_row).tolist()  # float32 numbers
        out = engine.predict(iter(rows), threshold=make[how](per_row), **options)  # type: ignore[arg-type]
    for i, (row, threshold) in enumerate(zip(rows, per_row, strict=True)):
        same(out, i, engine.predict(row, criterion=text, threshold=threshold))


def test_speedups(engine: pfengine.Engine, rows: list) -> None:
    speedups = [1, 1.5, 2, 3, 4, 1, 2.5, 4]
    out = engine.predict(rows, speedup=speedups)
    for i, (row, speedup) in enumerate(zip(rows, speedups, strict=True)):
        same(out, i, engine.predict(row, speedup=speedup))
    assert out.exit_layers[[0, 5]].tolist() == [5, 5]
    assert len(set(out.exit_layers)) > 1
    own = [{"speedup": speedup} if i % 2 else {"threshold": 1.05} for i, speedup in enumerate(speedups)]
    mixed = [row | number for row, number in zip(rows, own, strict=True)]
    both = engine.predict(mixed)
    for i, number in enumerate(own):
        same(both, i, engine.predict(rows[i], **number))  # type: ignore[arg-type]


def test_an_engine_at_full_depth_gives_exits_to_rows_that_ask(make_checkpoint: Make, rows: list) -> None:
    engine = pfengine.load(make_checkpoint("bert", threshold=0.9, calibration=TABLE), criterion="never")
    out = engine.predict(
        [rows[0], rows[1] | {"threshold": 99}, rows[2] | {"speedup": 1}, rows[3] | {"threshold": None}]
    )
    assert out.exit_layers.tolist() == [5, 1, 5, 5]
    with pytest.raises(pfengine.InputError, match="row 1: criterion never takes no thresholds per row"):
        engine.predict([rows[0], rows[1] | {"threshold": 99}], criterion="never")


def test_a_bad_number_is_one_rows_error(engine: pfengine.Engine, rows: list) -> None:
    bad = ["0.3", True, math.nan, math.inf, None, [0.3], 1j, 10**400]
    for values in (bad, (value for value in bad)):
        answers = engine.classify([*rows, rows[0]], threshold=itertools.chain(values, [0.9]), on_error="return")
        assert [answer.get("row") for answer in answers] == [*range(8), None]
        assert "threshold is '0.3'; it must be a finite number" in answers[0]["error"]
        assert answers[8] == engine.classify(rows[0], threshold=0.9)[0]
    with pytest.raises(pfengine.InputError, match=r"row 1: the threshold of patience is 1\.5"):
        engine.predict(rows[:3], criterion="patience", threshold=[1, 1.5, 2])
    keyed = [
        rows[0] | {"threshold": "low"},
        rows[1] | {"threshold": 0.5, "speedup": 2},
        rows[2] | {"speedup": 9},
        rows[3],
    ]
    answers = engine.classify(keyed, on_error="return")
    assert [answer.get("row") for answer in answers] == [0, 1, 2, None]
    assert "leave one of them out" in answers[1]["error"]
    assert "covers 1.00 to 4.00" in answers[2]["error"]
    assert answers[3] == engine.classify(rows[3])[0]


def test_too_few_and_too_many(engine: pfengine.Engine, rows: list) -> None:
    for name in ("threshold", "speedup"):
        with pytest.raises(pfengine.ConfigError, match=f"{name} has 7 values for 8 rows; give one per row"):
            engine.classify(rows, **{name: [1.0] * 7})
        with pytest.raises(pfengine.ConfigError, match="has 2 values for 1 rows"):
            engine.classify(rows[0], **{name: (1.0, 2.0)})
    short = engine.classify(iter(rows), threshold=[0.9] * 6, on_error="return")
    assert [answer.get("error") for answer in short[6:]] == [
        "has no threshold: the values given beside the rows ended before it"
    ] * 2
    assert short[:6] == engine.classify(rows[:6], threshold=0.9)
    stream = engine.stream(iter(rows), threshold=iter([0.9] * 9))
    seen = [next(stream) for _ in rows]
    with pytest.raises(pfengine.ConfigError, match="threshold has more values than the 8 rows there are"):
        next(stream)
    assert seen == engine.classify(rows, threshold=0.9)


def test_they_are_read_as_rows_are(engine: pfengine.Engine, rows: list) -> None:
    read = [0, 0]

    def endless(i: int, values: Any) -> Iterator[Any]:
        for value in itertools.cycle(values):
            read[i] += 1
            yield value

    stream = engine.stream(endless(0, rows), threshold=endless(1, [0.5, 0.9, 1.05]), batch_tokens=16)
    answers = list(itertools.islice(stream, 30))
    assert read[0] == read[1] < 100
    expected = [engine.classify(rows[i % 8], threshold=[0.5, 0.9, 1.05][i % 3])[0] for i in range(30)]
    assert answers == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": [0.3] * 8, "speedup": 2}, "not both"),
        ({"threshold": 0.3, "speedup": [2] * 8}, "not both"),
        ({"threshold": [0.3] * 8, "criterion": "never"}, "never takes no thresholds per row"),
        ({"threshold": [0.3] * 8, "criterion": "replay:1,1,1,1,1,1,1,1"}, "takes no thresholds per row"),
        ({"threshold": [0.3] * 8, "criterion": lambda *_: None}, "takes no thresholds per row"),
        ({"speedup": [2] * 8, "criterion": "patience:2"}, "which is of criterion 'entropy'; give threshold= with"),
        ({"speedup": 2, "criterion": "patience:2"}, "which is of criterion 'entropy'; give threshold= with"),
        ({"threshold": [0.3] * 8, "criterion": "learned"}, "needs a head that learns when to exit"),
        ({"threshold": {0.3}}, "finite number"),
        ({"threshold": "abc"}, "finite number"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_be(engine: pfengine.Engine, rows: list, options: dict[str, Any], message: str) -> None:
    for call in (engine.classify, engine.stream, engine.predict):
        with pytest.raises(pfengine.ConfigError, match=message):
            call(rows, **options)
    with pytest.raises(pfengine.ConfigError):
        pfengine.load(engine.checkpoint.path, threshold=[0.3] * 4)  # type: ignore[arg-type]
