"""The CUDA op set by itself: a layer is a function of queries over a context, and equal whatever else is asked."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pfengine.ops import Block, Norm, Queries, cuda, reference

from ..ops.modern import modern

HIDDEN, INNER, HEADS, SCALE = 32, 48, 2, 0.3
LENGTHS = [4, 1, 19, 6]


def parts(draw: Any) -> Block:
    def linear(out: int, into: int) -> tuple[Tensor, Tensor]:
        return draw(out, into, scale=into**-0.5), draw(out, scale=0.3)

    norms = [Norm(1 + draw(HIDDEN, scale=0.1), draw(HIDDEN), 1e-6) for _ in range(2)]
    return Block(linear(3 * HIDDEN, HIDDEN), linear(HIDDEN, HIDDEN), norms[0], linear(INNER, HIDDEN),
                 linear(HIDDEN, INNER), norms[1], HEADS, SCALE, "gelu")  # fmt: skip


def check_queries(x: Tensor, bounds: Tensor, weights: Any, every: Tensor) -> Queries:
    """Any choice of queries, with keys and values given or not, has the bits of all queries; returns a choice."""
    kept = cuda.keys_values(x, bounds, weights)
    tokens = torch.tensor([1, 3, 4, 5, 20, 23], dtype=torch.int32, device=x.device)
    queries = Queries(tokens, torch.tensor([0, 2, 3, 6, 6], dtype=torch.int32, device=x.device))
    for keys_values in (None, kept):
        assert torch.equal(cuda.block(x, bounds, weights, "all", keys_values), every)
        assert torch.equal(cuda.block(x, bounds, weights, "first", keys_values), every[bounds[:-1]])
        assert torch.equal(cuda.block(x, bounds, weights, queries, keys_values), every[tokens])
    return queries


def formula(x: Tensor, block: Block) -> tuple[Tensor, Tensor]:
    """The block of one row, and the sums before its last norm."""
    q, k, v = F.linear(x, *block.qkv).unflatten(1, (3, HEADS, -1)).permute(1, 2, 0, 3)
    attended = (torch.softmax(q @ k.mT * SCALE, -1) @ v).transpose(0, 1).flatten(1)
    x = x + F.linear(attended, *block.attention_output)
    x = F.layer_norm(x, (HIDDEN,), *block.attention_norm)
    sums = x + F.linear(F.gelu(F.linear(x, *block.intermediate)), *block.output)
    return F.layer_norm(sums, (HIDDEN,), *block.output_norm), sums


def test_queries(draw: Any, device: torch.device, dtype: torch.dtype) -> None:
    block, x = parts(draw), draw(sum(LENGTHS), HIDDEN)
    bounds = torch.tensor([0, 4, 5, 24, 30], dtype=torch.int32, device=device)
    weights, given = cuda.prepare_block(block, dtype), x.to(dtype)
    every, sums = cuda.block_sums(given, bounds, weights)
    exact = [formula(row, block) for row in x.split(LENGTHS)]
    # sums of numbers up to 4, rounded to 24, 11 or 8 bits some ten times on the way
    tolerance = {torch.float32: 2e-5, torch.float16: 2e-2, torch.bfloat16: 8e-2}[dtype]
    torch.testing.assert_close(every.float(), torch.cat([y for y, _ in exact]), atol=tolerance, rtol=0)
    torch.testing.assert_close(sums.float(), torch.cat([s for _, s in exact]), atol=tolerance, rtol=0)
    assert torch.equal(cuda.output_norm(sums, weights), every)
    queries = check_queries(given, bounds, weights, every)
    some, some_sums = cuda.block_sums(given, bounds, weights, queries)
    assert torch.equal(some, every[queries.tokens])
    assert torch.equal(some_sums, sums[queries.tokens])


@pytest.mark.parametrize("first_layer", [True, False])
def test_norms_first(draw: Any, device: torch.device, dtype: torch.dtype, first_layer: bool) -> None:
    def linear(out: int, into: int) -> tuple[Tensor, Tensor]:
        return draw(out, into, scale=into**-0.5), draw(out, scale=0.3)

    block, x = modern(parts(draw), linear, 19, first_layer), draw(sum(LENGTHS), HIDDEN)
    bounds = torch.tensor([0, 4, 5, 24, 30], dtype=torch.int32, device=device)
    weights, given = cuda.prepare_block(block, dtype), x.to(dtype)
    every, sums = cuda.block_sums(given, bounds, weights)
    exact = reference.block(x, bounds, reference.prepare_block(block, torch.float32))
    # sums of numbers up to 8, rounded to 24, 11 or 8 bits some ten times on the way
    tolerance = {torch.float32: 2e-5, torch.float16: 3e-2, torch.bfloat16: 0.2}[dtype]
    torch.testing.assert_close(every.float(), exact, atol=tolerance, rtol=0)
    assert torch.equal(sums, every)
    check_queries(given, bounds, weights, every)


@pytest.mark.parametrize(
    "family", ["BERT", *(pytest.param(f"ModernBERT{where}", marks=pytest.mark.slow) for where in ("", ", first layer"))]
)
def test_int8(draw: Any, device: torch.device, dtype: torch.dtype, family: str) -> None:
    def linear(out: int, into: int) -> tuple[Tensor, Tensor]:
        return draw(out, into, scale=into**-0.5), draw(out, scale=0.3)

    block, x = parts(draw), draw(sum(LENGTHS), HIDDEN)
    if family != "BERT":
        block = modern(block, linear, 19, first_layer=family.endswith("first layer"))
    bounds = torch.tensor([0, 4, 5, 24, 30], dtype=torch.int32, device=device)
    weights, given = cuda.prepare_block(block, torch.int8), x.to(dtype)
    every, sums = cuda.block_sums(given, bounds, weights)
    full, rounded = (
        reference.block_sums(x, bounds, reference.prepare_block(block, kind)) for kind in (torch.float32, torch.int8)
    )
    for ours, exact, in_int8 in zip((every, sums), full, rounded, strict=True):
        # numbers that differ in the last bits are rounded to another of 255 steps, now and then
        assert (ours - exact).abs().max() <= 2 * (in_int8 - exact).abs().max()
        if dtype == torch.float32 and device.type == "cpu":  # interpreted, none of these is
            torch.testing.assert_close(ours, in_int8, atol=2e-5, rtol=0)
    queries = check_queries(given, bounds, weights, every)
    some, some_sums = cuda.block_sums(given, bounds, weights, queries)
    assert torch.equal(some, every[queries.tokens])
    assert torch.equal(some_sums, sums[queries.tokens])


def test_nobody_asks(draw: Any, device: torch.device) -> None:
    weights, bounds = cuda.prepare_block(parts(draw), torch.float32), torch.tensor([0, 3], device=device).int()
    none = Queries(bounds[:0], bounds * 0)
    assert cuda.block(draw(3, HIDDEN), bounds, weights, none).shape == (0, HIDDEN)


@pytest.mark.parametrize("name", ["entropy", "label"])
def test_signal_and_means(draw: Any, device: torch.device, name: Any) -> None:
    scores, bounds = draw(5, 3), torch.tensor([0, 2, 5], device=device).int()
    assert cuda.signal(name, scores, 1.0).shape == (5,)
    torch.testing.assert_close(cuda.mean(scores, bounds)[1], scores[2:].mean(0))
    queries = draw(3, 3)
    ours = cuda.query_mean(scores, bounds, cuda.prepare_queries(queries))
    theirs = reference.query_mean(scores, bounds, reference.prepare_queries(queries))
    torch.testing.assert_close(ours, theirs)
