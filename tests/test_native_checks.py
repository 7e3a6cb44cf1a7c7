"""Nonsense that is handed to pfengine._C is an exception, whatever it is: every argument of every entry point."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from pfengine import extension

if not extension.has_cpu():
    pytest.skip(extension.status(), allow_module_level=True)

from .native_arguments import (
    GOOD,
    HEADS,
    HIDDEN,
    LABELS,
    LAYERS,
    Arguments,
    at,
    attentive_arguments,
    block,
    clause_arguments,
    distances_arguments,
    embedding_arguments,
    exit_arguments,
    flight_arguments,
    kept,
    linear,
    merge,
    model_arguments,
    room,
    rule,
)  # fmt: skip

C = extension._C
HUGE = [1 << 31, 1 << 40, (1 << 62) + 1, (1 << 63) - 1]
ONE_BYTE = {"stay", "leave", "tokens", "new_tokens"}  # which lie at any address
EIGHT_BYTES = {"row_ids", "new_row_ids", "ids", "positions", "types", "slots"}
OPTIONAL = {("run_block", "targets"), ("run_block", "kept"), ("run_block", "sums"),
            ("run_linear", "add"), ("run_exit", "add"), ("run_exit", "learned"), ("run_decide", "learned"),
            ("run_merge", "future"), ("Distances", "bias"), ("Distances", "keys"),
            ("Distances", "queries")}  # fmt: skip
OPTIONAL_PARTS = {"exit", "gate", "pooler", "pooler_norm", "learners", "projection", "folded", "learned", "distances",
                  "rotary", "final_norm"}  # fmt: skip
SIZES = {"rows", "tokens", "labels", "width_bytes", "columns", "first_column", "first", "inputs", "outputs", "words",
         "positions", "token_types", "size", "heads", "head_size", "width", "queries", "out_rows",
         "window", "layer", "most", "half"}  # fmt: skip
AT_LEAST_ONE = {"labels", "inputs", "outputs", "size", "heads", "head_size", "window", "layer", "most", "half"}


def is_address(name: str, argument: str, value: Any) -> bool:
    not_numbers = isinstance(value, bool) or not isinstance(value, int)
    if not_numbers or argument in ("threads", "stride", "add_stride", "adds_from", "count"):
        return False
    return argument not in SIZES or value > 1 << 20  # "tokens" and "positions" are both


def nonsense(name: str, argument: str, value: Any) -> Iterator[tuple[Any, type[Exception]]]:
    """Wrong values of one argument, and what each raises."""
    if argument == "threads":
        yield from ((wrong, ValueError) for wrong in (0, -1, -(2**31), 10**6))
        yield from ((wrong, TypeError) for wrong in (None, 1.5, "2", 2**40))
    elif is_address(name, argument, value):
        if (name, argument) not in OPTIONAL | {("Linear", "scale"), ("Linear", "weight_sum")}:
            yield 0, ValueError
        if argument == "weight_sum":
            yield 0, ValueError  # without the scale
        one_byte = argument in ONE_BYTE
        if not one_byte:
            yield value + 1, ValueError
            if argument in EIGHT_BYTES:
                yield value + 4, ValueError
        if argument not in ("weights", "weight", "bias") or name == "Linear":
            yield (1 << 64) - (8 if argument in EIGHT_BYTES else 1 if one_byte else 4), ValueError
        yield from ((wrong, TypeError) for wrong in (None, -8, 1.5, "x", 1 << 64))
    elif argument in SIZES and isinstance(value, int):
        yield -1, ValueError
        yield from ((wrong, ValueError) for wrong in HUGE)
        if argument in AT_LEAST_ONE:
            yield 0, ValueError
        yield from ((wrong, TypeError) for wrong in (None, 1.5, "2", 1 << 64))
    elif isinstance(value, np.ndarray):
        unaligned = np.frombuffer(bytes(value.nbytes + 1), np.uint8)[1:].view(value.dtype)
        if argument not in ("logits", "layers"):  # those are not writeable besides
            yield unaligned.reshape(value.shape), ValueError
        of_another_size = (value[:0], value[0]) if name == "Clause" else (value[:1], value[:0], np.repeat(value, 2, 0))
        yield from ((wrong, ValueError) for wrong in of_another_size)
        yield from ((wrong, TypeError) for wrong in (value.astype(np.int16), np.repeat(value, 2, 0)[::2], list(value)))
        yield None, TypeError
    elif isinstance(value, str):
        yield "x", ValueError
        yield from ((wrong, TypeError) for wrong in (None, 1, object()))
    elif isinstance(value, list):
        yield from ((wrong, TypeError) for wrong in (None, "x", 1, [None], [object()]))
        if name != "ExitRule":
            yield [], ValueError
    elif not isinstance(value, (bool, int, float, bytes)) and value is not None:
        yield from ((wrong, TypeError) for wrong in ("x", object(), C.Norm if "norm" not in argument else C.Linear))
        if argument == "attention_norm":
            yield None, ValueError  # only where norms come first
        elif argument not in OPTIONAL_PARTS or name == "run_exit":
            yield None, TypeError


@pytest.fixture(autouse=True)
def _let_go() -> Iterator[None]:
    yield
    kept.clear()


@pytest.mark.parametrize("name", GOOD)
def test_every_argument(name: str) -> None:
    call, arguments = getattr(C, name), GOOD[name]()
    call(**arguments)
    tried = 0
    for argument, value in arguments.items():
        for wrong, error in nonsense(name, argument, value):
            tried += 1
            print(f"{name}({argument}={wrong!r})")  # which one is taken
            with pytest.raises(error):
                call(**arguments | {argument: wrong})
    assert tried
    call(**arguments)


@pytest.mark.parametrize("number", [0, -1])
@pytest.mark.parametrize("name", [name for name in GOOD if name.startswith(("run", "keys", "output", "co"))])
def test_nothing_at_all(name: str, number: int) -> None:
    """All numbers 0: no rows at null addresses are no work, or an exception. All of them -1: an exception."""
    arguments = GOOD[name]()
    numbers = {key: number for key, value in arguments.items() if type(value) is int}
    try:
        getattr(C, name)(**arguments | numbers)
    except (ValueError, TypeError):
        return
    assert number == 0


def wrong_borders() -> list[list[int]]:
    return [[0, 2, 4], [1, 2, 5], [0, 9, 5], [0, -2, 5], [0, 0, 5], [0, 5, 5], [2**31 - 1, 0, 5], [0, -(2**31), 5]]


@pytest.mark.parametrize(
    "name", ["keys_values", "run_block", "count_kept", "compact", "run_mean", "run_decide", "Flight"]
)
@pytest.mark.parametrize("borders", wrong_borders(), ids=str)
def test_borders_of_rows(name: str, borders: list[int]) -> None:
    arguments = GOOD[name]()
    empty_rows_are_fine = name in ("count_kept", "compact")
    tensor = torch.tensor(borders).int()
    arguments["cu_seqlens"] = tensor.numpy() if name == "Flight" else at(tensor)
    if (empty_rows_are_fine and borders in ([0, 0, 5], [0, 5, 5])) or (name, borders) == ("compact", [0, 2, 4]):
        getattr(C, name)(**arguments)
        return
    with pytest.raises(ValueError, match="cu_seqlens"):
        getattr(C, name)(**arguments)


LINEAR = {"inputs": 8, "outputs": 96}
OTHERS: dict[str, tuple[str, Callable[[], Arguments]]] = {
    "no exit at the end": ("Model", lambda: {"layers": [C.Layer(blocks=[block()], exit=None, adds_from=-1)]}),
    "another hidden size": ("Model", lambda: {"embedding": C.Embedding(**embedding_arguments() | {"size": 31})}),
    "projection to another size": ("Model", lambda: {"projection": linear(HIDDEN, 31)}),
    "more past than there is": ("Model", lambda: {"layers": [
        C.Layer(blocks=[block()], exit=C.Exit(**exit_arguments()), adds_from=1)] * 2}),
    "exits with other labels": ("Model", lambda: {"layers": [
        C.Layer(blocks=[block()], exit=C.Exit(**exit_arguments() | {
            "past": linear(HIDDEN, 4, row_major=True), "learners": None, "projection": None,
            "merge": C.Merge(kind=C.Gate.none, labels=4, width=0, gate=None, gate_states=1)}), adds_from=-1),
        *model_arguments()["layers"]]}),
    "adds from before the start": ("Layer", lambda: {"adds_from": -2}),
    "a gate that is missing": ("Merge", lambda: {"gate": None}),
    "a gate of another width": ("Merge", lambda: {"gate": linear(2, 2)}),
    "gates neither one nor a label's": ("Merge", lambda: {"width": 2, "gate": linear(2, 2)}),
    "gates of no state": ("Merge", lambda: {"gate_states": 0.0}),
    "gates of no number of states": ("Merge", lambda: {"gate_states": float("nan")}),
    "a past too narrow": ("Exit", lambda: {"past": linear(HIDDEN, LABELS)}),
    "a past of another size": ("Exit", lambda: {"past": linear(31, 2 * LABELS)}),
    "a past in int8": ("Exit", lambda: {"past": linear(HIDDEN, 2 * LABELS, torch.int8)}),
    "learners without projection": ("Exit", lambda: {"projection": None}),
    "projection without learners": ("Exit", lambda: {"learners": None}),
    "two futures": ("Exit", lambda: {"folded": linear(HIDDEN, LABELS)}),
    "learners of another precision": ("Exit", lambda: {"learner_precision": C.Precision.int4}),
    "a projection in panels": ("Exit", lambda: {"projection": linear(64, LABELS)}),
    "a projection of other learners": ("Exit", lambda: {"projection": linear(63, LABELS, row_major=True)}),
    "a pooler of another size": ("Exit", lambda: {"pooler": linear(HIDDEN, 31)}),
    "a block in int4": ("Block", lambda: {"precision": C.Precision.int4}),
    "a block of another precision": ("Block", lambda: {"precision": C.Precision.fp32}),
    "distances of other heads": ("Block", lambda: {"distances": C.Distances(**distances_arguments(heads=1))}),
    "distances of other sizes": ("Block", lambda: {"distances": C.Distances(**distances_arguments(words=2))}),
    "distances of nothing": ("Distances", lambda: {"bias": 0, "keys": 0, "queries": 0}),
    "an odd head": ("Block", lambda: {"heads": 32, "head_size": 1}),
    "other heads": ("Block", lambda: {"heads": 4}),
    "an inner size of its own": ("Block", lambda: {"output": linear(41, HIDDEN, torch.int8)}),
    "row-major weights in a block": ("Block", lambda: {
        "precision": C.Precision.fp32, "qkv": linear(32, 96, row_major=True)}),
    "a scale that is no number": ("Block", lambda: {"scale": float("nan")}),
    "an epsilon below 0": ("Norm", lambda: {"eps": -1.0}),
    "row-major and quantised": ("Linear", lambda: {"row_major": True}),
    "columns from within a panel": ("columns_of", lambda: {"first": 1}),
    "columns beyond the last": ("columns_of", lambda: {"first": 128}),
    "columns of row-major weights": ("columns_of", lambda: {"linear": linear(8, 128, row_major=True)}),
    "a first column within a panel": ("run_linear", lambda: {"first_column": 1, "columns": 8}),
    "columns past the end": ("run_linear", lambda: {"columns": 65}),
    "rows closer than they are long": ("run_linear", lambda: {"stride": 7}),
    "rows on each other": ("run_linear", lambda: {"stride": 0}),
    "rows backwards": ("run_linear", lambda: {"stride": -8}),
    "added rows closer than they are long": ("run_linear", lambda: {"add_stride": 63}),
    "rows apart beyond all memory": ("run_linear", lambda: {"stride": 1 << 60}),
    "weights of another precision": ("run_linear", lambda: {"precision": C.Precision.int8}),
    "part of row-major weights": ("run_linear", lambda: {"linear": linear(8, 96, row_major=True)}),
    "other weights for a learned score": ("Exit", lambda: {"learned": linear(HIDDEN, 2, row_major=True)}),
    "a learned score of another size": ("Exit", lambda: {"learned": linear(31, 1, row_major=True)}),
    "a learned score that is not there": ("run_exit", lambda: {"exit": C.Exit(**exit_arguments() | {"learned": None})}),
    "exits that read what others do not": ("Model", lambda: {"layers": [
        C.Layer(blocks=[block()], exit=C.Exit(**exit_arguments() | {"reads": C.Reads.all}), adds_from=-1),
        *model_arguments()["layers"]]}),
    "attention in int4": ("Attentive", lambda: {"precision": C.Precision.int4}),
    "attention of another precision": ("Attentive", lambda: {"precision": C.Precision.int8}),
    "attention of other heads": ("Attentive", lambda: {"heads": 4}),
    "attention that is not as narrow": ("Attentive", lambda: {"narrow": linear(HIDDEN, 10)}),
    "attention that gives more than it reads": ("Attentive", lambda: {"output": linear(4 * HEADS, 10)}),
    "an attentive exit that reads first tokens": ("Exit", lambda: {
        "attentive": C.Attentive(**attentive_arguments() | {"qkv": linear(HIDDEN, 24), "narrow": linear(HIDDEN, HIDDEN),
                                                            "output": linear(8, HIDDEN)})}),
    "queries that do not divide the channels": ("QueryMean", lambda: {"count": 3}),
    "an exit by queries without any": ("Exit", lambda: {"reads": C.Reads.query}),
    "queries that nobody reads by": ("Exit", lambda: {
        "queries": C.QueryMean(queries=room(HIDDEN, 16), count=4, size=HIDDEN)}),
    "queries of another size": ("Exit", lambda: {
        "reads": C.Reads.query, "queries": C.QueryMean(queries=room(31, 16), count=1, size=31)}),
    "an exit of another size than it attends in": ("Exit", lambda: {
        "reads": C.Reads.all, "attentive": C.Attentive(**attentive_arguments())}),
    "tokens renormalised that nobody reads": ("Model", lambda: {"renormalises": True}),
    "a slot that is not there": ("Flight", lambda: {"slots": np.array([0, 2])}),
    "rows without a token": ("Flight", lambda: {"cu_seqlens": np.array([0, 5, 5], np.int32)}),
    "tokens without rows": ("Flight", lambda: {"cu_seqlens": np.zeros(1, np.int32), "slots": np.zeros(0, np.int64)}),
    "answers that may not be written": ("Flight", lambda: {
        "logits": np.frombuffer(bytes(24), np.float32).reshape(2, LABELS)}),
    "votes of no labels": ("Clause", lambda: {"memory": "votes", "size": 0}),
    "numbers of other layers": ("ExitRule", lambda: {"tested": bytes(LAYERS + 1), "clauses": [
        C.Clause(**clause_arguments() | {"threshold": np.ones((LAYERS, 1), np.float32)})]}),
    "an even window": ("TokenRule", lambda: {"window": 4}),
    "a signal of several exits": ("run_signal", lambda: {"signal": "change"}),
    "a rule for rows": ("run_decide", lambda: {"rule": C.ExitRule(
        bytes(LAYERS), [C.Clause(**clause_arguments() | {"signal": "learned"})], None), "learned": 0}),
}  # fmt: skip


@pytest.mark.parametrize("case", OTHERS)
def test_what_does_not_fit(case: str) -> None:
    name, change = OTHERS[case]
    good = GOOD[name]()
    getattr(C, name)(**good)
    with pytest.raises((ValueError, TypeError)) as caught:
        getattr(C, name)(**good | change())
    assert str(caught.value)


@pytest.mark.parametrize(
    ("argument", "named"), {"ids": "token id", "positions": "position", "types": "token type"}.items()
)
@pytest.mark.parametrize("wrong", [-1, 9, 1 << 40, -(1 << 63)])
@pytest.mark.parametrize("name", ["run_embed", "Flight"])
def test_ids_outside_their_table(name: str, argument: str, named: str, wrong: int) -> None:
    arguments, ids = GOOD[name](), torch.zeros(5, dtype=torch.int64)
    ids[3] = wrong
    arguments[argument] = at(ids) if name == "run_embed" else ids.numpy()
    with pytest.raises(IndexError, match=f"{named} {wrong} of token 3 is outside its table"):
        getattr(C, name)(**arguments)


def test_parts_outlive_what_they_were_made_of() -> None:
    """Python may let go of a part's own object once it is part of another; of the tensors it may not."""
    rules, arguments = rule(), flight_arguments()
    assert not C.Flight(**arguments).advance(rules, LAYERS, True, 1)
    before = arguments["logits"].copy()
    for _ in range(50):
        linear(8, 8), merge(), block(), rule()
    del arguments["model"]
    flight = C.Flight(**arguments, model=C.Model(**model_arguments()))
    logits = arguments.pop("logits")
    del arguments
    for _ in range(50):
        linear(8, 8), merge(), block(), rule()
    flight.advance(rules, LAYERS, True, 1)
    assert np.isfinite(before).all()
    assert np.isfinite(logits).all()
