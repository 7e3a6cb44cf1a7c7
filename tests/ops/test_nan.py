"""A number that is none stays none, through every op: it must not become an answer."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pfengine.ops import Block, Exit, Norm, Queries, cpu, cpu_torch, reference

BOUNDS = torch.tensor([0, 3, 8, 9], dtype=torch.int32)
QUERIES = Queries(torch.tensor([1, 2, 4, 5, 6, 7, 8]).int(), torch.tensor([0, 2, 6, 7]).int())
TOKEN, ROW = 5, 1  # of which a number is spoilt
DTYPES = [torch.float32, torch.bfloat16, torch.int8]
WRONG = [float("nan"), float("inf"), -float("inf")]


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape)


def linear(outputs: int, inputs: int) -> tuple[torch.Tensor, torch.Tensor]:
    return random(outputs, inputs) / inputs**0.5, random(outputs)


def spoilt(x: torch.Tensor, row: int, wrong: float, places: Any = 7) -> torch.Tensor:
    x = x.clone()
    x[row, places] = wrong
    return x


def check(clean: torch.Tensor, found: torch.Tensor, bad: list[int]) -> None:
    assert torch.isfinite(clean).all()
    good = [i for i in range(len(clean)) if i not in bad]
    assert torch.equal(found[good], clean[good])
    assert not torch.isfinite(found[bad]).any(-1).all()


def skip_where_missing(ops: Any, dtype: torch.dtype) -> None:
    if dtype == torch.int8 and ops is not cpu:
        pytest.skip("int8 is for the compiled kernels")


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "relu", "tanh"])
def test_block(op_set: Any, activation: Any, dtype: torch.dtype, wrong: float) -> None:
    skip_where_missing(op_set, dtype)
    torch.manual_seed(0)
    heads, size, hidden = 3, 16, 48
    norm = Norm(random(hidden), random(hidden), 1e-12)
    weights = op_set.prepare_block(
        Block(
            qkv=linear(3 * hidden, hidden), attention_output=linear(hidden, hidden), attention_norm=norm,
            intermediate=linear(100, hidden), output=linear(hidden, 100), output_norm=norm, num_heads=heads,
            scale=size**-0.5, activation=activation,
        ),
        dtype,
    )  # fmt: skip
    x = random(9, hidden)
    x = x if op_set is cpu else x.to(dtype)
    bad = spoilt(x, TOKEN, wrong)
    tokens = list(range(3, 8))
    clean, found = op_set.block(x, BOUNDS, weights), op_set.block(bad, BOUNDS, weights)
    assert torch.isnan(found[tokens]).all()
    check(clean.float(), found.float(), tokens)
    kept = op_set.keys_values(bad, BOUNDS, weights)
    first = op_set.block(bad, BOUNDS, weights, "first", kept)
    assert torch.isnan(first[ROW]).all()
    some = op_set.block(bad, BOUNDS, weights, QUERIES, kept)
    assert torch.isnan(some[2:6]).all()
    assert torch.isfinite(some[[0, 1, 6]]).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scores_that_overflow(op_set: Any, dtype: torch.dtype) -> None:
    """Finite numbers in, and a head's scores too large for float32."""
    skip_where_missing(op_set, dtype)
    if op_set is cpu_torch:
        pytest.skip("torch's own fused attention, as in transformers, answers with what it makes of such scores")
    torch.manual_seed(0)
    hidden = 48
    norm = Norm(random(hidden), random(hidden), 1e-12)
    qkv, bias = linear(3 * hidden, hidden)
    qkv[:16], qkv[hidden : hidden + 16] = qkv[:16].sign() * 1e25, qkv[hidden : hidden + 16].sign() * 1e25
    block = Block(
        (qkv, bias), linear(hidden, hidden), norm, linear(100, hidden), linear(hidden, 100), norm, 3, 0.25, "gelu"
    )
    x = random(9, hidden)
    found = op_set.block(x if op_set is cpu else x.to(dtype), BOUNDS, op_set.prepare_block(block, dtype))
    assert torch.isnan(found).all(1).any()
    assert (torch.isnan(found).all(1) | torch.isfinite(found).all(1)).all()


@pytest.mark.parametrize("wrong", WRONG[:1])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ["none", "gelu", "gelu_tanh", "relu", "tanh"])
@pytest.mark.parametrize("outputs", [3, 40])
def test_linear(op_set: Any, activation: Any, dtype: torch.dtype, outputs: int, wrong: float) -> None:
    skip_where_missing(op_set, dtype)
    torch.manual_seed(0)
    weights = op_set.prepare_linear(*linear(outputs, 37), dtype)
    x = random(5, 37)
    clean, found = (op_set.linear(rows, weights, activation) for rows in (x, spoilt(x, 2, wrong)))
    assert torch.isnan(found[2]).all()
    check(clean.float(), found.float(), [2])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["none", "paper", "authors"])
@pytest.mark.parametrize("learner", ["tanh", "none"])
@pytest.mark.parametrize("pooler", ["tanh", "relu", None])
def test_exit(op_set: Any, kind: Any, dtype: torch.dtype, learner: Any, pooler: Any) -> None:
    skip_where_missing(op_set, dtype)
    torch.manual_seed(0)
    hidden, labels, layers = 48, 3, 4
    projections = [linear(labels, (layers - i) * hidden) for i in range(1, layers)]
    imitation = op_set.prepare_imitation(random(3, hidden, hidden) / 7, random(3, hidden), learner, projections, dtype)
    exit = op_set.prepare_exit(
        Exit(
            labels,
            past=op_set.prepare_linear(*linear(2 * labels, hidden), torch.float32),
            pooler=op_set.prepare_linear(*linear(hidden, hidden), dtype) if pooler else None,
            pooler_activation=pooler or "tanh",
            imitation=(imitation, 2),
            gate_kind=kind,
            width=0 if kind == "none" else labels,
            gate=op_set.prepare_linear(*linear(labels, labels), torch.float32) if kind == "authors" else None,
        )
    )
    x = random(4, hidden)
    clean, past, _ = op_set.exit(x, exit, None, True)
    found, spoilt_past, _ = op_set.exit(spoilt(x, 3, float("nan")), exit, None, True)
    assert torch.isnan(found[3]).all()
    check(clean, found, [3])
    check(past, spoilt_past, [3])


def test_reference_is_what_torch_does() -> None:
    for activation in ("gelu", "gelu_tanh", "relu", "tanh"):
        assert reference.activate(torch.tensor(float("nan")), activation).isnan()  # type: ignore[arg-type]
