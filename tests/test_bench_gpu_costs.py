"""What the GPU suite counts: that every launch has a cost, and the costs by hand."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")
sys.path.append(str(Path(__file__).parent.parent))  # at its end: pfengine stays the one that is installed

from bench.gpu import counted
from bench.gpu.costs import COSTS, Cost, Use, cost, name
from bench.gpu.counted import Ceilings, Pass, label, lines
from pfengine import kernels
from pfengine.kernels import shipped as shipping
from pfengine.kernels.answers import answer
from pfengine.kernels.attention import attention
from pfengine.kernels.decide import Decided, ExitTest, Form
from pfengine.kernels.exit_head import exit_head
from pfengine.kernels.imitation_pooled import imitation_pooled
from pfengine.kernels.int8_linear import int8_linear
from pfengine.kernels.launch import Launch, recording
from pfengine.kernels.layer_norm import add_layer_norm, quantised_layer_norm
from pfengine.kernels.linear import linear
from pfengine.kernels.mean import mean
from pfengine.kernels.past_future import Folded, Imitated, past_future
from pfengine.kernels.quantise import Quantised, quantise_rows
from pfengine.kernels.rotate import rotate
from pfengine.kernels.signals import signals

PAST_FUTURE: dict[str, Any] = {"type": "past-future", "pooler": "per-layer"}
PAPER = PAST_FUTURE | {"learner": "linear", "incorporate": "concat", "gate": "row"}
HEADS: dict[str, dict[str, Any]] = {
    "authors": PAST_FUTURE,
    "folded": PAST_FUTURE | {"learner": "linear"},
    "paper, tanh": PAPER | {"learner": "tanh"},
    "no gate": PAST_FUTURE | {"gate": "none"},
    "past only": PAST_FUTURE | {"states": "past", "gate": "none"},
    "linear": {"type": "linear", "pooler": "per-layer"},
    "mean": {"type": "linear", "pooler": "none", "reads": "mean"},
    "classifier": {"type": "classifier"},
}
LENGTHS = Use((3, 1, 5))  # 9 tokens


def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


COUNT, WEIGHT = meta(1, dtype=torch.int32), meta(64, dtype=torch.float32)


@pytest.mark.parametrize("labels", [2, 100])
@pytest.mark.parametrize("every", [False, True])
@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_every_launch_of_a_pass_has_a_cost(head: dict[str, Any], every: bool, labels: int) -> None:
    weights = counted.prepare(96, head, layers=3, labels=labels)
    once = Pass(weights, [3, 1, 5], counted.tested(weights, every))
    found = once.noted()
    assert {name(launch) for launch in found} >= {"embed", "linear", "attention", "add_layer_norm"}
    for launch in found:
        least = cost(launch, once.use)
        assert least.bytes > 0
        assert least.flops >= 0
        everything = sum(x.numel() * x.element_size() for x in launch.arguments.values() if isinstance(x, Tensor))
        assert least.bytes <= everything
    assert sum(line.launches for line in lines(found, once.use, counted.LEADS)) == len(found)


def test_every_launch_in_int8_has_a_cost() -> None:
    weights = counted.prepare(96, {"type": "classifier"}, layers=2, dtype=torch.int8)
    once = Pass(weights, [3, 1, 5], counted.tested(weights, False))
    found = lines(once.noted(), once.use, counted.LEADS)
    assert all(line.cost.bytes > 0 for line in found)
    launches = {line.label: line.launches for line in found if "int8" in line.label or "quantise" in line.label}
    assert launches == {
        "quantise_rows": 3, "int8_linear 288 x 96": 2, "int8_linear 96 x 96, + add": 1, "int8_linear 384 x 96, gelu": 1,
        "int8_linear 96 x 384, + add": 1, "quantise_rows, first tokens": 2,
        "int8_linear 96 x 96, + add, first tokens": 1, "int8_linear 384 x 96, gelu, first tokens": 1,
        "int8_linear 96 x 384, + add, first tokens": 1,
    }  # fmt: skip


def test_every_kernel_has_a_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipping, "variant", name)  # one launch per kernel; what it was needs kernels that are compiled
    found = set()
    for module in pkgutil.iter_modules(kernels.__path__):
        inside = vars(importlib.import_module(f"pfengine.kernels.{module.name}"))
        found |= {key.strip("_").removesuffix("_kernel") for key in inside if key.endswith("_kernel")}
    assert found == set(COSTS) == {name(launch) for launch in shipping.shipped()}


def launched(call: Any, processors: int = 0) -> Launch:
    with recording(processors=processors) as launches:
        call()
    (launch,) = launches
    return launch


def test_costs_by_hand() -> None:
    x, bias = meta(9, 64), meta(96, dtype=torch.float32)
    launch = launched(lambda: linear(x, meta(96, 64), bias, "gelu", COUNT))
    assert cost(launch, LENGTHS) == Cost(2 * 9 * 96 * 64, 2 * (9 * 64 + 96 * 64 + 9 * 96) + 4 * 96 + 4)
    assert label(launch, LENGTHS) == "linear 96 x 64, gelu"

    launch = launched(lambda: linear(meta(300, 64), meta(96, 64), bias, "gelu", COUNT), processors=132)
    assert name(launch) == "tma_linear"
    assert cost(launch, LENGTHS) == Cost(2 * 300 * 96 * 64, 2 * (300 * 64 + 96 * 64 + 300 * 96) + 4 * 96 + 4)
    assert label(launch, LENGTHS) == "linear 96 x 64, gelu"

    rows = meta(3, dtype=torch.int32)  # 3 of 9 rows; 64 of the 80 columns of what is added
    launch = launched(
        lambda: linear(
            x, meta(64, 64), WEIGHT, "none", COUNT,
            source_rows=rows, add=meta(9, 80), add_source_rows=rows, add_from=16,
        )
    )  # fmt: skip
    moved = 2 * (3 * 64 + 64 * 64 + 3 * 64 + 3 * 64) + 4 * (64 + 3 + 3 + 1)
    assert cost(launch, LENGTHS) == Cost(2 * 3 * 64 * 64, moved)
    assert label(launch, LENGTHS) == "linear 64 x 64, + add, first tokens"

    launch = launched(lambda: add_layer_norm(x, x, WEIGHT, WEIGHT, 1e-12, COUNT))
    assert cost(launch, LENGTHS) == Cost(8 * 9 * 64, 2 * 3 * 9 * 64 + 4 * 2 * 64 + 4)

    bounds = meta(4, dtype=torch.int32)
    launch = launched(lambda: attention(meta(9, 192), bounds, 4, 0.25, 5, COUNT))
    assert cost(launch, LENGTHS) == Cost(4 * 64 * (9 + 1 + 25), 2 * (9 * 192 + 9 * 64) + 4 * 4 + 4)
    launch = launched(lambda: attention(meta(9, 192), bounds, 4, 0.25, 5, COUNT, "first"))
    assert cost(launch, LENGTHS) == Cost(4 * 64 * 9, 2 * ((2 * 9 + 3) * 64 + 3 * 64) + 4 * 4 + 4)


def test_costs_of_exits_by_hand() -> None:
    """Three rows of two labels, each with a gate of its own: a past of 4 columns, to which another is added."""
    fp32: dict[str, Any] = {"dtype": torch.float32}
    past, gate, add = (meta(4, 64, **fp32), meta(4, **fp32)), (meta(2, 2, **fp32), meta(2, **fp32)), meta(9, 6, **fp32)
    arrived, used = meta(5, dtype=torch.int32), {"test": ExitTest(3), "count": COUNT}
    options: dict[str, Any] = used | {"arrived": arrived, "add": add, "add_source_rows": meta(3, dtype=torch.int32)}
    kept = 3 * 4 + 3 * 2 + 3 / 4 + 1 + 1  # what is written: the past, the scores, who leaves; and the two counts
    read = 2 * 3 * 64 + 4 * (4 * 64 + 4 + 3 * 4 + 3 + kept)
    imitated = Imitated(meta(128, 64), meta(128, **fp32), "tanh", meta(2, 128, **fp32), meta(2, **fp32))
    x, guesses = meta(3, 64), 2 * 3 * 128 * 64 + 2 * 3 * 128 * 2
    launch = launched(lambda: past_future(x, past, 2, 2, "authors", future=imitated, gate=gate, **options))
    weighed = 2 * 3 * 2 * 2 + 3 * 2  # one chunk of 128 columns
    moved = read + 2 * 128 * 64 + 4 * (128 + 2 * 128 + 2 + 4 + 2)
    assert cost(launch, LENGTHS) == Cost(2 * 3 * 4 * 64 + guesses + weighed, moved)
    folded = Folded(meta(2, 64, **fp32), meta(2, **fp32))
    launch = launched(lambda: past_future(x, past, 2, 2, "paper", future=folded, **options))
    assert cost(launch, LENGTHS) == Cost(2 * 3 * (4 + 2) * 64 + 3 * 2, read + 4 * (2 * 64 + 2))
    learned = ExitTest(3, learned=meta(3, **fp32))
    launch = launched(
        lambda: past_future(
            x, past, 2, 0, "none", learned=(meta(1, 64, **fp32), meta(1, **fp32)), **options | {"test": learned}
        )
    )
    assert cost(launch, LENGTHS) == Cost(2 * 3 * (4 + 1) * 64, read + 4 * (64 + 1 + 3))


def test_costs_of_an_exit_of_many_labels_by_hand() -> None:
    fp32: dict[str, Any] = {"dtype": torch.float32}
    imitated = Imitated(meta(256, 64), meta(256, **fp32), "tanh", meta(40, 256, **fp32), meta(40, **fp32))
    past, gate = (meta(41, 64, **fp32), meta(41, **fp32)), (meta(1, 1, **fp32), meta(1, **fp32))
    arrived = meta(5, dtype=torch.int32)
    with recording() as launches:
        past_future(meta(3, 64), past, 40, 1, "authors", ExitTest(3), COUNT, arrived, future=imitated, gate=gate)
    parts, merged = (cost(launch, LENGTHS) for launch in launches)
    written = 4 * (3 * 41 + 2 * 3 * 40)  # the past, and shares of two chunks
    read = 2 * (3 * 64 + 256 * 64) + 4 * (41 * 64 + 41 + 256 + 40 * 256 + 1 + 1)
    assert parts == Cost(2 * 3 * (41 + 256) * 64 + 2 * 3 * 256 * 40, read + written)
    assert merged == Cost(3 * (2 * 40 + 2 * 1 * 40), written + 4 * (40 + 1 + 1 + 1 + 3 * 40) + 3)


def test_costs_of_int8_by_hand() -> None:
    x, fp32 = Quantised.empty(9, 64, COUNT.device), {"dtype": torch.float32}
    weights = meta(96, 64, dtype=torch.int8), meta(96, **fp32), meta(96, dtype=torch.int32), meta(96, **fp32)
    launch = launched(lambda: int8_linear(x, *weights, "gelu", COUNT, torch.bfloat16))
    moved = 9 * (64 + 4 + 4) + 96 * (64 + 4 + 4 + 4) + 2 * 9 * 96 + 4
    assert cost(launch, LENGTHS) == Cost(2 * 9 * 96 * 64, moved)
    assert label(launch, LENGTHS) == "int8_linear 96 x 64, gelu"

    rows = meta(3, dtype=torch.int32)
    launch = launched(lambda: int8_linear(x, *weights, "none", COUNT, torch.bfloat16, source_rows=rows))
    moved = 3 * (64 + 4 + 4) + 96 * (64 + 4 + 4 + 4) + 2 * 3 * 96 + 3 * 4 + 4
    assert cost(launch, LENGTHS) == Cost(2 * 3 * 96 * 64, moved)

    launch = launched(lambda: quantise_rows(meta(9, 64), COUNT, source_rows=rows))
    assert cost(launch, LENGTHS) == Cost(0, 2 * 3 * 64 + 3 * (64 + 4 + 4) + 3 * 4 + 4)
    launch = launched(lambda: quantised_layer_norm(meta(9, 64), WEIGHT, WEIGHT, 1e-12, COUNT))
    assert cost(launch, LENGTHS) == Cost(7 * 9 * 64, 2 * 9 * 64 + 9 * (64 + 4 + 4) + 4 * 2 * 64 + 4)


def test_costs_of_modernbert_by_hand() -> None:
    """A window of one token either way, rotary positions of half of each head, and gates."""
    bounds = meta(4, dtype=torch.int32)
    launch = launched(lambda: attention(meta(9, 192), bounds, 4, 0.25, 5, COUNT, window=1))
    assert cost(launch, LENGTHS).flops == 4 * 64 * ((2 + 3 + 2) + 1 + (2 + 3 + 3 + 3 + 2))
    launch = launched(lambda: attention(meta(9, 192), bounds, 4, 0.25, 5, COUNT, "first", window=1))
    assert cost(launch, LENGTHS).flops == 4 * 64 * (2 + 1 + 2)
    launch = launched(lambda: rotate(meta(9, 192), bounds, meta(512, 8, dtype=torch.float32), 8, 16, 5, COUNT))
    assert cost(launch, LENGTHS) == Cost(3 * 9 * 8 * 8, 2 * 2 * 9 * 8 * 8 + 4 * 5 * 8 + 2 * 4 * 4 + 4)
    bias = meta(128, dtype=torch.float32)
    launch = launched(lambda: linear(meta(9, 64), meta(128, 64), bias, "gelu", COUNT, gated=True))
    assert cost(launch, LENGTHS) == Cost(2 * 9 * 128 * 64, 2 * (9 * 64 + 128 * 64 + 9 * 64) + 4 * 128 + 4)


def test_costs_of_other_reads_by_hand() -> None:
    """Attention of listed queries, means, signals, and the answers of rows that are gone."""
    bounds, asked = meta(4, dtype=torch.int32), LENGTHS._replace(queries=(2, 0, 1))
    keys_values, queries = meta(9, 128), meta(3, 64)
    launch = launched(lambda: attention(keys_values, bounds, 4, 0.25, 5, COUNT, (queries, bounds)))
    moved = 2 * (9 * 128 + 3 * 64 + 3 * 64) + 2 * 4 * 4 + 4
    assert cost(launch, asked) == Cost(4 * 64 * (2 * 3 + 0 * 1 + 1 * 5), moved)

    launch = launched(lambda: mean(meta(9, 64), bounds, COUNT))
    assert cost(launch, LENGTHS) == Cost((9 + 3) * 64, 2 * 9 * 64 + 4 * 3 * 64 + 4 * 4 + 4)

    scores = meta(3, 2, dtype=torch.float32)
    launch = launched(lambda: signals("margin", scores))
    assert cost(launch, LENGTHS) == Cost(0, 4 * (3 * 2 + 3))

    to_logits, to_layers = meta(50, 2, dtype=torch.float32), meta(50, dtype=torch.int64)
    gone, slots = meta(3, dtype=torch.bool), meta(3, dtype=torch.int64)
    launch = launched(
        lambda: answer(
            gone, to_logits, slots, COUNT, 3, to_logits, to_layers, source_rows=meta(3, dtype=torch.int32)
        )
    )  # fmt: skip
    assert cost(launch, LENGTHS) == Cost(0, 3 + 3 * 8 + 2 * 4 * 3 * 2 + 3 * 8 + 3 * 4 + 4)


@pytest.mark.parametrize(
    ("forms", "numbers"),
    [  # read of the clauses' numbers, and per row: of numbers by slot, of what it remembers, read and written
        ((Form("entropy", "<"),), (1, 0, 0, 0)),
        ((Form("confidence", ">", "side", 3, tempered=True), Form("layer", ">=", threshold=0)), (2, 1, 2, 3)),
        ((Form("label_repeats", ">=", "running", times=0), Form("learned", "<")), (2, 2, 2, 2)),
        ((Form("label_repeats", ">=", "running"), Form("label", ">", "votes")), (3, 0, 4, 4)),
    ],
)
def test_costs_of_clauses_by_hand(forms: tuple[Form, ...], numbers: tuple[int, int, int, int]) -> None:
    """Three rows of 50 slots: of what there is per slot, their own."""
    rows, labels, slots, width = 3, 2, 50, sum(form.width(2) for form in forms)
    fp32: dict[str, Any] = {"dtype": torch.float32}
    state = meta(slots, width, **fp32) if width else None
    test = ExitTest(
        3, forms, meta(len(forms), 3, **fp32), meta(1, slots, **fp32), state, state, meta(rows, **fp32),
        meta(rows, dtype=torch.int64), meta(slots, labels, **fp32), meta(slots, dtype=torch.int64),
    )  # fmt: skip
    shared, per_row, read, written = numbers
    for again in (test, test._replace(once=True)):
        launch = launched(
            lambda test=again: exit_head(
                meta(rows, 64), meta(labels, 64, **fp32), meta(labels, **fp32), test, COUNT,
                out=Decided.empty(rows, labels, COUNT.device),
            )
        )  # fmt: skip
        product = 2 * rows * 64 + 4 * (labels * 64 + labels) + 4
        decides = 4 * rows * labels + rows + 8 * rows + 8 * rows * again.once
        assert cost(launch, LENGTHS) == Cost(
            2 * rows * labels * 64, product + decides + 4 * (shared + rows * (per_row + read + written))
        )


def test_costs_of_pooled_futures_by_hand() -> None:
    rows, size, ahead, labels, chunks = 3, 128, 4, 2, 2
    state, learners, bias = meta(rows, size), meta(ahead * size, size), meta(ahead * size, dtype=torch.float32)
    projection = meta(labels, size, dtype=torch.float32)
    with recording() as launches:
        for pooling in ("max", "attention"):
            imitation_pooled(state, learners, bias, projection, "tanh", pooling, COUNT)
    assert [name(launch) for launch in launches] == ["imitation_max", "imitation_attend", "imitation_weigh"]
    largest, attend, weigh = (cost(launch, LENGTHS) for launch in launches)
    products = 2 * rows * ahead * size * size
    read = 2 * (rows * size + ahead * size * size) + 4 * (ahead * size + labels * size + 1)
    parts = 4 * chunks * ahead * rows * (1 + labels)  # of attention: products with the last guess, and shares
    assert largest == Cost(products + 2 * rows * size * labels, read + 4 * chunks * rows * labels)
    assert attend == Cost(products + 2 * rows * ahead * size * (1 + labels), read + parts)
    weighed = rows * ahead * (chunks * (1 + labels) + 2 * labels)
    assert weigh == Cost(weighed, parts + 4 * (rows * labels + 1))


def test_flops_of_a_pass_are_those_of_the_encoder() -> None:
    """By the book: 24 H^2 a token and layer, 4 H a pair; the last layer computes one token a row, but all keys."""
    rows, hidden = [3, 9, 20], 384
    weights = counted.meta_weights(hidden, "classifier")
    once = Pass(weights, rows, counted.tested(weights, False))
    found = sum(cost(launch, once.use).flops for launch in once.noted() if name(launch) in ("linear", "attention"))
    tokens, pairs = sum(rows), sum(length**2 for length in rows)
    book = 11 * (24 * hidden**2 * tokens + 4 * hidden * pairs)
    book += 6 * hidden**2 * tokens + 18 * hidden**2 * len(rows) + 4 * hidden * tokens
    pooler = 2 * hidden**2 * len(rows)
    assert found == book + pooler


def test_the_floor_is_the_longer_of_two_times() -> None:
    assert Ceilings(10.0, 5.0, False).seconds(Cost(20, 5)) == 2
    assert Ceilings(10.0, 5.0, False).seconds(Cost(20, 15)) == 3
