"""How many launches a tested exit is, whatever the head: counted on the meta device, where nothing runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

sys.path.append(str(Path(__file__).parents[2]))  # at its end: pfengine stays the one that is installed

from bench.gpu.costs import name
from bench.gpu.counted import prepare
from pfengine.kernels.decide import Form
from pfengine.kernels.launch import Launch, recording
from pfengine.kernels.scratch import Scratch
from pfengine.ops import cuda_segment
from pfengine.ops.cuda_buffers import Bucket, Buffers, PreparedModel, RuleForm, Sizes
from pfengine.ops.cuda_segment import Position, run_segment, segments
from pfengine.ops.rule import TokenRule

LAYERS, BUCKET = 4, Bucket(8, 64, 16, 64)
PAST_FUTURE: dict[str, Any] = {"type": "past-future", "pooler": "per-layer"}
PAPER = PAST_FUTURE | {"learner": "linear", "incorporate": "concat", "gate": "row"}
LINEAR: dict[str, Any] = {"type": "linear", "pooler": "per-layer"}
POOLED = ["linear", "past_future", "survivors"]
HEADS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "authors": (PAST_FUTURE, POOLED),
    "authors, no pooler": (PAST_FUTURE | {"pooler": "none"}, POOLED[1:]),
    "folded": (PAST_FUTURE | {"learner": "linear"}, POOLED),
    "paper": (PAPER, POOLED),
    "paper, tanh": (PAPER | {"learner": "tanh"}, POOLED),
    "future only": (PAPER | {"learner": "tanh", "states": "future"}, POOLED),
    "no gate": (PAST_FUTURE | {"gate": "none"}, POOLED),
    "past only": (PAST_FUTURE | {"states": "past", "gate": "none"}, POOLED),
    "linear": (LINEAR, ["linear", "exit_head", "survivors"]),
    "learned": (LINEAR | {"learned": True}, POOLED),
    "mixed": ({"type": "mixed", "layers": [2, 3, 4], "previous": True, "pooler": "shared"}, POOLED),
    "tagger": ({"type": "tagger"}, ["exit_head", "decide_tokens", "survivors"]),
    "mean": (LINEAR | {"pooler": "none", "reads": "mean"}, ["mean", "exit_head", "survivors"]),
    # one more: what is read of a row's tokens, and then a pooler
    "authors, mean": (PAST_FUTURE | {"reads": "mean"}, ["mean", *POOLED]),
    "linear, query": (LINEAR | {"reads": "query"}, ["query_mean", "linear", "exit_head", "survivors"]),
}


def made_for(weights: PreparedModel) -> Buffers:
    words, device = torch.zeros(LAYERS + 1, 4, dtype=torch.int64), torch.device("meta")
    return Buffers(weights, Sizes(BUCKET.rows, BUCKET.tokens, 64, 8), words, (Scratch(device), Scratch(device)))


def exit_launches(head: dict[str, Any], monkeypatch: pytest.MonkeyPatch, labels: int = 2) -> list[Launch]:
    """Of the exit after layer 2 of 4, in bf16."""
    weights = prepare(96, head, LAYERS, labels)
    rule = RuleForm((Form("entropy", "<"),), tokens=TokenRule("token") if weights.tags else None)
    buffers = made_for(weights)

    def layer(*_: Any) -> Tensor:  # whatever layers launch does not count
        return buffers.states[0][: BUCKET.tokens]

    monkeypatch.setattr(cuda_segment, "_run_layer", layer)
    monkeypatch.setattr(cuda_segment, "_embed", layer)
    way = segments(weights, Position(), rule, bytes([0, 1, 0, 0]), LAYERS, scores=True, overlap=False)
    with recording() as found:
        run_segment(weights, buffers, way[0]._replace(at=way[0].at._replace(layer=1)), BUCKET)
    return found


@pytest.mark.parametrize("head", HEADS)
def test_launches_of_a_tested_exit(head: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options, expected = HEADS[head]
    assert [name(launch) for launch in exit_launches(options, monkeypatch)] == expected


@pytest.mark.parametrize("head", ["authors", "folded", "paper", "mixed"])
def test_many_labels_are_decided_by_one_more(head: str, monkeypatch: pytest.MonkeyPatch) -> None:
    launches = exit_launches(HEADS[head][0], monkeypatch, labels=150)
    assert [name(launch) for launch in launches] == [*POOLED[:-1], "gate_merge", "survivors"]


def test_guesses_read_states_of_their_own_size(monkeypatch: pytest.MonkeyPatch) -> None:
    read = {head: exit_launches(HEADS[head][0], monkeypatch)[1].arguments["x"].dtype for head in ("authors", "folded")}
    assert read == {"authors": torch.bfloat16, "folded": torch.float32}


def test_an_exit_that_is_not_tested_keeps_its_past(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = prepare(96, PAST_FUTURE, LAYERS)
    buffers = made_for(weights)
    monkeypatch.setattr(cuda_segment, "_run_layer", lambda *_: buffers.states[0][: BUCKET.tokens])
    (way,) = segments(weights, Position(1), RuleForm(), bytes(LAYERS), 2, scores=False, overlap=False)
    with recording() as found:
        run_segment(weights, buffers, way, BUCKET)
    assert [name(launch) for launch in found] == ["linear", "thin_linear"]
