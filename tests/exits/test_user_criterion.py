"""A criterion of the user's own: whatever it does or gives back, answers are right or an error says what is wrong."""

from __future__ import annotations

import copy
import threading
from collections import namedtuple
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pfengine
from pfengine.exits import Criterion, Entropy
from pfengine.exits.calibration import exits_taken

Make = Callable[..., Path]
LENGTHS = [3, 9, 1, 5, 5, 2, 17, 4]
Pair = namedtuple("Pair", "labels count")


@pytest.fixture(scope="module")
def engine(make_checkpoint: Make) -> pfengine.Engine:
    return pfengine.load(make_checkpoint("bert"), criterion="entropy:0.9", precision="fp32")


@pytest.fixture(scope="module")
def rows(random_rows: Any) -> list[dict[str, Any]]:
    return random_rows(LENGTHS)


@pytest.fixture(scope="module")
def alone(engine: pfengine.Engine, rows: list) -> list[bytes]:
    """What the engine's own criterion gives, which must be the same after everything below."""
    return answer(engine, rows)


def answer(engine: pfengine.Engine, rows: list, **options: Any) -> list[bytes]:
    out = engine.predict(rows, **options)
    return [out.logits.tobytes(), out.exit_layers.tobytes()]


def nobody(row_ids: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(row_ids, dtype=torch.bool)


def second(layer: int, logits: torch.Tensor, state: Any, row_ids: torch.Tensor) -> Any:
    """Even rows leave after layer 2."""
    return (row_ids % 2 == 0) & (layer >= 2), state


RESULTS: dict[str, tuple[Callable[[torch.Tensor], Any], str]] = {
    "None": (lambda ids: None, r"gave None after layer 1; it must give \(leave, state\)"),
    "leave alone": (nobody, "gave torch.bool"),
    "one": (lambda ids: (nobody(ids),), "a tuple of 1"),
    "three": (lambda ids: (nobody(ids), None, None), "a tuple of 3"),
    "a list": (lambda ids: [nobody(ids), None], "type list"),
    "a bool": (lambda ids: True, "type bool"),
    "bool for rows": (lambda ids: (True, None), "an object of type bool after layer 1; it must give bool"),
    "no leave": (lambda ids: (None, None), "gave None after layer 1; it must give bool"),
    "numpy": (lambda ids: (nobody(ids).numpy(), None), "type ndarray"),
    "list of bools": (lambda ids: ([False] * len(ids), None), "type list"),
    "integers": (lambda ids: (ids * 0, None), "torch.int64"),
    "floats": (lambda ids: (ids * 0.0, None), "torch.float32"),
    "a column": (lambda ids: (nobody(ids)[:, None], None), r"\[8, 1\]"),
    "a row too many": (lambda ids: (torch.zeros(9, dtype=torch.bool), None), r"\[9\]"),
    "no row": (lambda ids: (torch.zeros(0, dtype=torch.bool), None), r"\[0\]"),
    "scalar": (lambda ids: (torch.tensor(False), None), r"bool \[\]"),
    "elsewhere": (lambda ids: (nobody(ids).to("meta"), None), "on meta"),
    "sparse": (lambda ids: (nobody(ids).to_sparse(), None), "must give bool"),
    "state: list": (lambda ids: (nobody(ids), [ids]), "a state with an object of type list after layer 1; it must"),
    "state: dict": (lambda ids: (nobody(ids), {"seen": ids}), "type dict"),
    "state: number": (lambda ids: (nobody(ids), 3), "type int"),
    "state: number inside": (lambda ids: (nobody(ids), (ids, (ids, 2.5))), "type float"),
    "state: scalar": (lambda ids: (nobody(ids), torch.tensor(1.0)), r"float32 \[\]"),
    "state: other rows": (lambda ids: (nobody(ids), (ids, ids[1:])), r"int64 \[7\]"),
    "state: elsewhere": (lambda ids: (nobody(ids), ids.to("meta")), "on meta"),
    "state: numpy": (lambda ids: (nobody(ids), ids.numpy()), "type ndarray"),
}  # fmt: skip


@pytest.mark.parametrize("name", RESULTS)
def test_results_that_are_none(engine: pfengine.Engine, rows: list, alone: list, name: str) -> None:
    make, message = RESULTS[name]

    def mine(layer: int, logits: torch.Tensor, state: Any, row_ids: torch.Tensor) -> Any:
        return make(row_ids)

    class Mine(Criterion):
        def __call__(self, layer: int, logits: torch.Tensor, state: Any, row_ids: torch.Tensor) -> Any:
            return make(row_ids)

    for criterion in (mine, Mine()):
        with pytest.raises(pfengine.ConfigError, match=message) as caught:
            engine.classify(rows, criterion=criterion)
        assert "\n" not in str(caught.value)
        assert ("Mine" if isinstance(criterion, Criterion) else "mine") in str(caught.value)
    assert answer(engine, rows) == alone


@pytest.mark.parametrize(
    "state",
    [
        lambda ids, labels: (),
        lambda ids, labels: ids,
        lambda ids, labels: (ids, None, (labels, ids)),
        lambda ids, labels: Pair(labels, ids),
        lambda ids, labels: torch.stack([ids, labels], 1).max(1),  # torch's own tuple with names
        lambda ids, labels: torch.nn.Parameter(ids.float()),
        lambda ids, labels: ids.expand(3, -1).T,
    ],
)
def test_states_that_move_with_their_rows(engine: pfengine.Engine, rows: list, state: Callable[..., Any]) -> None:
    def check(layer: int, logits: torch.Tensor, kept: Any, row_ids: torch.Tensor) -> Any:
        if layer > 1:
            found = first_of(kept)
            assert found is None or found.tolist() == before[row_ids].tolist()
            assert not isinstance(kept, tuple) or type(kept) is type(made[0])
        made[:] = [state(row_ids, logits.argmax(-1))]
        now = first_of(made[0])
        before[row_ids] = (row_ids if now is None else now).to(before)
        return row_ids % 4 == layer, made[0]

    def first_of(kept: Any) -> Any:
        while isinstance(kept, tuple):
            kept = kept[0] if kept else None
        return None if kept is None else kept.reshape(len(kept), -1)[:, 0]

    before, made = torch.zeros(len(rows)), [None]
    assert engine.predict(rows, criterion=check).exit_layers.tolist() == [5, 1, 2, 3] * 2


def spoil_ids(layer: int, logits: torch.Tensor, state: Any, row_ids: torch.Tensor) -> Any:
    result = second(layer, logits, state, row_ids)
    row_ids.zero_()
    return result


def spoil_logits(layer: int, logits: torch.Tensor, state: Any, row_ids: torch.Tensor) -> Any:
    logits.fill_(7)
    logits.numpy()[:] = 7
    return second(layer, logits, state, row_ids)


def spoil_later(layer: int, logits: torch.Tensor, state: Any, row_ids: torch.Tensor) -> Any:
    for kept in KEPT:
        kept.zero_()
    result = second(layer, logits, state, row_ids)
    KEPT.extend((logits, row_ids))
    return result


KEPT: list[torch.Tensor] = []


@pytest.mark.parametrize("criterion", [spoil_ids, spoil_logits, spoil_later])
def test_what_it_is_handed_is_its_own(engine: pfengine.Engine, rows: list, alone: list, criterion: Any) -> None:
    expected = answer(engine, rows, criterion=second)
    for options in ({}, {"batch_size": 1}, {"batch_size": 3}):
        assert answer(engine, rows, criterion=criterion, **options) == expected
    assert answer(engine, rows) == alone


def test_what_it_keeps_stays_as_it_was(engine: pfengine.Engine, rows: list) -> None:
    kept: list[tuple[Any, ...]] = []

    def keep(layer: int, logits: torch.Tensor, state: Any, row_ids: torch.Tensor) -> Any:
        kept.append((logits, row_ids, copy.deepcopy(logits.tolist()), row_ids.tolist()))
        return second(layer, logits, state, row_ids)

    engine.predict(rows * 3, criterion=keep, batch_size=5)
    for logits, row_ids, then, ids in kept:
        assert logits.tolist() == then
        assert row_ids.tolist() == ids


def test_calibration_hands_out_copies_too(engine: pfengine.Engine, rows: list) -> None:
    class Spoil(Entropy):
        def __call__(self, layer: int, logits: torch.Tensor, state: Any, row_ids: torch.Tensor) -> Any:
            out = super().__call__(layer, logits, state, row_ids)
            logits.zero_()
            return out

    logits = engine.layer_logits(rows)
    before = logits.copy()
    taken = exits_taken(Spoil(0.9), logits, engine.exit_layers)
    np.testing.assert_array_equal(logits, before)
    np.testing.assert_array_equal(taken, exits_taken(Entropy(0.9), logits, engine.exit_layers))


@pytest.mark.parametrize("error", [ZeroDivisionError("mine"), pfengine.InputError(3, "mine"), KeyError("mine")])
def test_its_own_exception_reaches_the_caller(
    engine: pfengine.Engine, rows: list, alone: list, error: Exception
) -> None:
    def fail(layer: int, logits: torch.Tensor, state: Any, row_ids: torch.Tensor) -> Any:
        if layer == 3:
            raise error
        return second(layer, logits, state, row_ids)

    others: list[Any] = []
    thread = threading.Thread(target=lambda: others.extend(answer(engine, rows) for _ in range(20)))
    thread.start()
    for _ in range(20):
        with pytest.raises(type(error)) as caught:
            engine.classify(rows, criterion=fail)
        assert caught.value is error
        assert error.__notes__[-1] == "raised by the criterion fail after layer 3"
    thread.join()
    assert others == [alone] * 20
    assert answer(engine, rows) == alone
    with pytest.raises(TypeError) as wrong:
        engine.classify(rows, criterion=lambda: None)
    assert wrong.value.__notes__ == ["raised by the criterion <lambda> after layer 1"]


def test_rows_before_the_window_it_fails_in_are_answered(engine: pfengine.Engine, rows: list) -> None:
    def fail(layer: int, logits: torch.Tensor, state: Any, row_ids: torch.Tensor) -> Any:
        return None if bool((row_ids >= 40).any()) else second(layer, logits, state, row_ids)

    expected = engine.classify(rows, criterion=second)
    stream = engine.stream(rows * 9, criterion=fail, batch_tokens=12)
    found = [next(stream) for _ in range(4)]
    assert found == expected[:4]
    with pytest.raises(pfengine.ConfigError, match="gave None"):
        list(stream)


@pytest.mark.parametrize("threads", [8])
def test_threads_with_criteria_of_their_own(engine: pfengine.Engine, rows: list, threads: int) -> None:
    criteria = [
        "entropy:0.5",
        "entropy:0.9",
        "entropy:1.05",
        "patience:1",
        "patience:2",
        "never",
        second,
        "pcee:1.05,2",
    ]
    expected = [answer(engine, rows, criterion=criterion) for criterion in criteria]
    found: list[list[Any]] = [[] for _ in criteria]
    start = threading.Barrier(threads)

    def work(i: int) -> None:
        start.wait()
        for size in (1, 3, None, 2):
            found[i].append(answer(engine, rows, criterion=criteria[i], batch_size=size))

    workers = [threading.Thread(target=work, args=(i,)) for i in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert found == [[each] * 4 for each in expected]


HUGE = 10**400
LONGER = 10**5000  # which Python does not write


@pytest.mark.parametrize(
    "options",
    [
        {"threshold": value}
        for value in (
            float("nan"), float("inf"), -float("inf"), "0.3", True, np.bool_(True), Decimal("0.3"), HUGE, LONGER,
            Fraction(HUGE), 1j, [0.3], np.array(0.3), torch.tensor(0.3), np.float32("nan"), b"0.3",
        )
    ]
    + [{"speedup": value} for value in (float("nan"), "2", True, Decimal(2), HUGE, LONGER, np.float64("inf"), -1, 0)]
    + [
        {"criterion": value}
        for value in (
            "", ":", "entropy:", "entropy:0.3:4", "entropy:nan", "entropy:-inf", "entropy:1e400", "Entropy:0.3",
            "ENTROPY", "entropy 0.3", "entropy:0,3", "entropy:0_3", "entropy:" + "9" * 5000, "replay:...", "replay:1,",
            "replay:1.5", "replay:" + "9" * 5000, "replay:" + "9" * 40, "patience:0", "patience:1.5", "patience:-1",
            "patience:1e300", "x" * 5000, "\0", "никогда", "entropy:0.3\0", b"entropy:0.3", 7,
            HUGE, LONGER, [], {"entropy": 0.3}, Entropy, Criterion, ("entropy", 0.3),
        )
    ],
    ids=lambda options: "".join(f"{key} {type(value).__name__}" for key, value in options.items()),
)  # fmt: skip
def test_options_that_make_no_sense(engine: pfengine.Engine, rows: list, alone: list, options: dict[str, Any]) -> None:
    for call in (engine.classify, engine.stream, engine.predict):
        with pytest.raises(pfengine.ConfigError) as caught:
            call(rows, **options)
        assert len(str(caught.value)) < 450  # it lists all criteria
    with pytest.raises(pfengine.ConfigError):
        pfengine.load(engine.checkpoint.path, **options)
    assert answer(engine, rows) == alone


@pytest.mark.parametrize("value", [np.float32(0.5), np.float64(0.5), np.float16(0.5), Fraction(1, 2), np.int64(1), 1])
def test_numbers_of_all_kinds_are_thresholds(engine: pfengine.Engine, rows: list, value: Any) -> None:
    assert answer(engine, rows, threshold=value) == answer(engine, rows, threshold=float(value))


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.binary(max_size=3),
    st.lists(st.integers(0, 3), max_size=4), st.just(torch.zeros(8, dtype=torch.bool)), st.just(torch.zeros(8)),
    st.just(torch.ones(8, dtype=torch.bool)), st.just(torch.arange(8)), st.just(np.ones(8, bool)), st.just(object()),
    st.just(torch.zeros(8, 3)), st.just(torch.zeros(0)),
)  # fmt: skip
RESULT = st.one_of(VALUES, st.tuples(VALUES, VALUES), st.tuples(VALUES, st.tuples(VALUES, VALUES)), st.tuples(VALUES))


@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(result=RESULT, layer=st.integers(1, 5))
def test_any_result_is_an_answer_or_an_error_of_ours(
    engine: pfengine.Engine, rows: list, alone: list, result: Any, layer: int
) -> None:
    def mine(at: int, logits: torch.Tensor, state: Any, row_ids: torch.Tensor) -> Any:
        return result if at == layer else (nobody(row_ids), None)

    try:
        out = engine.predict(rows, criterion=mine)
    except pfengine.ConfigError:
        pass
    else:
        assert set(out.exit_layers) <= {layer, 5}
        left = out.exit_layers < 5
        assert left.all() or not left.any()
        assert np.isfinite(out.logits).all()


OPTION = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=12), st.integers(10**400, 10**401),
    st.sampled_from(["entropy", "entropy:0.5", "patience:1", "never", "replay:1,2", "replay:" + "3," * 7 + "3"]),
    st.builds("{}:{}".format, st.sampled_from(["entropy", "patience", "replay", "never"]), st.text("012389.,e-: x")),
)  # fmt: skip


@settings(max_examples=400, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    options=st.dictionaries(st.sampled_from(["criterion", "threshold", "speedup", "truncation"]), OPTION, max_size=3)
)
def test_any_options_are_answered_or_an_error_of_ours(
    engine: pfengine.Engine, rows: list, options: dict[str, Any]
) -> None:
    try:
        out = engine.predict(rows, **options)
    except pfengine.ConfigError:
        pass
    else:
        assert out.exit_layers.min() >= 1
        assert np.isfinite(out.logits).all()
