"""The whole exit loop on the device: it leaves where plain torch does, with the same logits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pfengine
from pfengine.exits import Entropy, Learned, Never, Replay
from pfengine.ops import cuda_flight, cuda_segment
from pfengine.ops.cuda_model import MAX_FLIGHTS

from .stand_ins import beside_torch

Make = Callable[..., Path]
PAST_FUTURE: dict[str, Any] = {"type": "past-future", "pooler": "per-layer"}
PAPER = PAST_FUTURE | {"learner": "linear", "incorporate": "concat", "gate": "row"}
SHALLOW = {"num_hidden_layers": 3}  # what is interpreted takes its time
HEADS: dict[str, dict[str, Any]] = {
    "authors": PAST_FUTURE,
    "folded": PAST_FUTURE | {"learner": "linear"},
    "paper": PAPER,
    "paper, tanh": PAPER | {"learner": "tanh"},
    "no gate": PAST_FUTURE | {"gate": "none"},
    "past only": PAST_FUTURE | {"states": "past", "gate": "none"},
    "linear": {"type": "linear", "pooler": "per-layer"},
    "classifier": {"type": "classifier"},
    "mixed": {"type": "mixed", "layers": [2, 3], "previous": True, "pooler": "shared"},
    "learned": {"type": "linear", "pooler": "none", "learned": True},
    "attentive": {"type": "attentive", "width": 24},
    "attentive, max": {"type": "attentive", "width": 15, "heads": 3, "pooling": "max"},
}

QUICK = ("authors", "classifier", "mixed", "attentive")


def engines(path: Path, device: torch.device) -> tuple[pfengine.Engine, pfengine.Engine]:
    """On the device, and plain torch in float32."""
    return beside_torch(path, device, torch.float32)


def check(ours: pfengine.Engine, plain: pfengine.Engine, rows: list, criterion: Any, size: int | None = None) -> None:
    answers = ours.predict(rows, criterion=criterion, batch_size=size)
    expected = plain.predict(rows, criterion=criterion)
    np.testing.assert_array_equal(answers.exit_layers, expected.exit_layers)
    np.testing.assert_allclose(answers.logits, expected.logits, atol=2e-5, rtol=1e-4)


@pytest.fixture(params=[0, 512], ids=["rows leave", "rows stay"])
def overlap_tokens(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small batches go on whole, or are treated as large ones."""
    monkeypatch.setattr(cuda_flight, "OVERLAP_TOKENS", request.param)


@pytest.mark.slow
@pytest.mark.parametrize(
    "head",
    [pytest.param(head, id=name, marks=[] if name in QUICK else pytest.mark.slow) for name, head in HEADS.items()],
)
def test_every_head(
    make_checkpoint: Make, random_rows: Any, device: torch.device, head: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_flight, "OVERLAP_TOKENS", 0)
    ours, plain = engines(make_checkpoint("bert", head=head, config=SHALLOW), device)
    rows = random_rows([1, 2, 9, 19, 5, 14])
    replay = Replay([max(ours.exit_layers[0], layer) for layer in (3, 1, 2, 2, 1, 3)])
    exiting = [Entropy(0.9), replay, *([Learned(0.5)] if head.get("learned") else [])]
    for criterion in [Never()] if head["type"] == "classifier" else exiting:
        check(ours, plain, rows, criterion)


@pytest.mark.parametrize(
    ("family", "head"),
    [
        ("roberta", "authors"),
        pytest.param("albert", "authors", marks=pytest.mark.slow),
        pytest.param("distilbert", "authors", marks=pytest.mark.slow),
        pytest.param("distilbert", "classifier", marks=pytest.mark.slow),
        pytest.param("electra", "authors", marks=pytest.mark.wide),
        ("mpnet", "authors"),
        ("modernbert", "authors"),
        pytest.param("modernbert", "classifier", marks=pytest.mark.wide),
        ("deberta-v2", "authors"),
        pytest.param("electra", "classifier", marks=pytest.mark.wide),
    ],
)
def test_every_family(make_checkpoint: Make, random_rows: Any, device: torch.device, family: str, head: str) -> None:
    options = HEADS[head] | ({"pooler": "shared"} if family == "albert" else {})
    ours, plain = engines(make_checkpoint(family, head=options), device)
    check(ours, plain, random_rows([1, 17, 40]), Entropy(0.9) if head == "authors" else Never())


@pytest.mark.slow
@pytest.mark.usefixtures("overlap_tokens")
@pytest.mark.parametrize("layers", [pytest.param([1] * 5, marks=pytest.mark.slow), [1, 2, 3, 4, 5]])
def test_rows_leave_everywhere(
    make_checkpoint: Make, random_rows: Any, device: torch.device, layers: list[int]
) -> None:
    ours, plain = engines(make_checkpoint("bert", head=PAST_FUTURE, exit_layers=(1, 2, 4, 5)), device)
    check(ours, plain, random_rows([3, 20, 1, 7, 64]), Replay(layers))


@pytest.mark.slow
@pytest.mark.parametrize(
    "head", ["authors", *(pytest.param(name, marks=pytest.mark.slow) for name in ("linear", "attentive"))]
)
def test_an_exit_beside_a_layer_may_run_as_late_as_that_layer_ends(
    make_checkpoint: Make, random_rows: Any, device: torch.device, monkeypatch: pytest.MonkeyPatch, head: str
) -> None:
    """Elsewhere it runs before the layer: on a GPU it is anything between."""
    waiting: list[Callable[[], None]] = []

    def fork(_: Any, launches: Callable[[], None]) -> None:
        assert not waiting
        waiting.append(launches)

    monkeypatch.setattr(cuda_segment, "_fork", fork)
    monkeypatch.setattr(cuda_segment, "_join", lambda _: waiting.pop()())
    monkeypatch.setattr(cuda_flight, "OVERLAP_TOKENS", 512)
    ours, plain = engines(make_checkpoint("bert", head=HEADS[head], exit_layers=(1, 3, 5)), device)
    rows = random_rows([3, 9, 1, 7])
    for criterion in (Entropy(0.9), Replay([3, 1, 5, 3])):
        check(ours, plain, rows, criterion)
    assert not waiting


@pytest.mark.parametrize(
    "head", ["authors", *(pytest.param(f"attentive{kind}", marks=pytest.mark.slow) for kind in ("", ", max"))]
)
def test_a_row_is_the_same_bits_alone_and_in_batches(
    make_checkpoint: Make, random_rows: Any, device: torch.device, monkeypatch: pytest.MonkeyPatch, head: str
) -> None:
    monkeypatch.setattr(cuda_flight, "OVERLAP_TOKENS", 32)  # so that both kinds of batches are there
    ours, _ = engines(make_checkpoint("bert", head=HEADS[head], config=SHALLOW), device)
    rows = random_rows([3, 20, 40])
    together = ours.predict(rows, criterion=Entropy(0.9))
    for i, row in enumerate(rows):
        alone = ours.predict([row], criterion=Entropy(0.9))
        assert alone.exit_layers[0] == together.exit_layers[i]
        np.testing.assert_array_equal(alone.logits[0], together.logits[i])
    some = ours.predict(rows, criterion=Entropy(0.9), batch_size=2)
    np.testing.assert_array_equal(some.logits, together.logits)


@pytest.mark.slow
@pytest.mark.parametrize(("hidden", "heads", "lengths"), [(384, 12, [512, 3]), (768, 12, [1, 9, 20])])
def test_real_sizes(
    make_checkpoint: Make, random_rows: Any, device: torch.device, hidden: int, heads: int, lengths: list[int]
) -> None:
    config = {
        "hidden_size": hidden, "num_attention_heads": heads, "intermediate_size": 4 * hidden, "num_hidden_layers": 2,
    }  # fmt: skip
    ours, plain = engines(make_checkpoint("bert", head=PAST_FUTURE, config=config), device)
    check(ours, plain, random_rows(lengths), Replay([2, 1, 2][: len(lengths)]))


@pytest.mark.parametrize("criterion", ["patience:1", None], ids=["patience", "a callable"])
def test_criteria_with_a_memory(make_checkpoint: Make, random_rows: Any, device: torch.device, criterion: Any) -> None:
    def own(layer: int, logits: torch.Tensor, state: Any, row_ids: torch.Tensor) -> Any:
        seen = logits if state is None else state[0] + logits
        return (seen.amax(1) > 0.6) & (row_ids != 2), (seen,)

    ours, plain = engines(make_checkpoint("bert", head=PAST_FUTURE, config=SHALLOW), device)
    check(ours, plain, random_rows([3, 20, 1, 7]), criterion or own)


def test_a_callable_that_fails_leaves_the_model_usable(
    make_checkpoint: Make, random_rows: Any, device: torch.device
) -> None:
    ours, _ = engines(make_checkpoint("bert", head=PAST_FUTURE, config=SHALLOW), device)
    failures = []

    def fails(*_: Any) -> Any:
        raise KeyError("mine")

    for _ in range(MAX_FLIGHTS + 1):
        with pytest.raises(KeyError, match="mine") as info:
            ours.predict(random_rows([3]), criterion=fails)
        failures.append(info.value)  # whose traceback holds the flight
