"""Whatever a layer's queries are, each is the same to the last bit as when all tokens are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from pfengine import extension
from pfengine.ops import Block, Norm, Queries, Rotary, cpu, cpu_torch, reference
from pfengine.ops.rotary import angles

from .distances import random_distances
from .modern import modern

LENGTHS = [1, 3, 1, 17, 64, 2, 33, 1, 130, 5]
BOUNDS = torch.tensor([0, *LENGTHS]).cumsum(0).int()
TOKENS = int(BOUNDS[-1])
ROW = torch.arange(len(LENGTHS)).repeat_interleave(torch.tensor(LENGTHS))  # of each token
PLACE = torch.arange(TOKENS) - BOUNDS[:-1].long()[ROW]  # of each token in its row
STAY = torch.arange(len(LENGTHS)) % 3 != 1
LISTS: dict[str, Tensor] = {  # is the token a query?
    "none": torch.zeros(TOKENS, dtype=torch.bool),
    "all": torch.ones(TOKENS, dtype=torch.bool),
    "first tokens": PLACE == 0,
    "the others of rows that stay": (PLACE > 0) & STAY[ROW],
    "one row": ROW == 8,
    "the first and last row": (ROW == 0) | (ROW == 9),
    "last tokens": torch.arange(TOKENS) == BOUNDS[1:].long()[ROW] - 1,
    "every second token": torch.arange(TOKENS) % 2 == 1,
    "a third, at random": torch.rand(TOKENS, generator=torch.Generator().manual_seed(0)) < 0.3,
}
needs_native = pytest.mark.skipif(not extension.has_cpu(), reason=extension.status())


KINDS = ("plain", "distant", "modern", "modern, first layer")


def make_block(hidden: int, heads: int, size: int, inner: int, kind: str = "plain") -> Block:
    torch.manual_seed(hidden)

    def linear(outputs: int, inputs: int) -> tuple[Tensor, Tensor]:
        return torch.randn(outputs, inputs) / inputs**0.5, 0.1 * torch.randn(outputs)

    norms = [Norm(1 + 0.1 * torch.randn(hidden), 0.1 * torch.randn(hidden), 1e-12) for _ in range(2)]
    block = Block(
        linear(3 * heads * size, hidden), linear(hidden, heads * size), norms[0], linear(inner, hidden),
        linear(hidden, inner), norms[1], heads, size**-0.5, "gelu",
        distances=random_distances(heads, size, max(LENGTHS)) if kind == "distant" else None,
    )  # fmt: skip
    if not kind.startswith("modern"):
        return block
    return modern(block, linear, max(LENGTHS), first_layer=kind.endswith("first layer"))


def listed(chosen: Tensor) -> Queries:
    before = torch.nn.functional.pad(chosen.cumsum(0), (1, 0))  # queries before each token
    return Queries(chosen.nonzero().squeeze(1).int(), before[BOUNDS.long()].int())


def at(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def run_block(
    block: Any, x: Tensor, queries: Queries, kept: Tensor | None, targets: Tensor | None, out: Tensor,
    sums: Tensor | None = None,
) -> None:  # fmt: skip
    C = extension._C
    C.run_block(
        kernels=cpu.kernels(), block=block, x=at(x), tokens=TOKENS, cu_seqlens=at(BOUNDS), rows=len(LENGTHS),
        kind=C.Queries.list, queries=len(queries.tokens), query_tokens=at(queries.tokens),
        query_bounds=at(queries.bounds), targets=at(targets), kept=at(kept), out=at(out), out_rows=len(out),
        sums=at(sums), threads=extension.threads(),
    )  # fmt: skip


@pytest.fixture(params=["plain", "avx2", "avx512", "avx512_bf16"])
def instructions(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if not extension.has_cpu() or extension._C.find_kernels(request.param) is None:
        pytest.skip(f"this processor has no {request.param}")
    monkeypatch.setenv("PFENGINE_ISA", request.param)
    cpu.kernels.cache_clear()
    yield request.param
    cpu.kernels.cache_clear()


@pytest.fixture(params=[1, 2, 5])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("kind", KINDS)
def test_op_sets(op_set: Any, kind: str) -> None:
    sizes = (48, 3, 16, 77) if op_set is cpu_torch else (40, 5, 8, 77)
    block, x = make_block(*sizes, kind), torch.randn(TOKENS, sizes[0])
    weights, plain = op_set.prepare_block(block, torch.float32), reference.prepare_block(block, torch.float32)
    whole, kept = op_set.block(x, BOUNDS, weights), op_set.keys_values(x, BOUNDS, weights)
    torch.testing.assert_close(whole, reference.block(x, BOUNDS, plain), atol=2e-5, rtol=0)
    # plain torch multiplies other numbers of rows in another order
    tolerance = {"atol": 1e-5 if op_set is reference else 0.0, "rtol": 0.0}
    for keys_values in (None, kept):
        first = op_set.block(x, BOUNDS, weights, "first", keys_values)
        torch.testing.assert_close(first, whole[BOUNDS[:-1].long()], **tolerance)
        for chosen in LISTS.values():
            found = op_set.block(x, BOUNDS, weights, listed(chosen), keys_values)
            torch.testing.assert_close(found, whole[chosen], **tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8], ids=str)
def test_every_instruction_set(instructions: str, dtype: torch.dtype, threads: int) -> None:
    for *sizes, kind in ((64, 2, 32, 130, "plain"), (33, 2, 18, 31, "distant"), (33, 2, 18, 31, "modern")):
        block, x = make_block(*sizes, kind), torch.randn(TOKENS, sizes[0])
        weights = cpu.prepare_block(block, dtype)
        whole, sums = cpu.block_sums(x, BOUNDS, weights)
        # of numbers up to 7: products in 24 or 8 bits; in int8 both round rows alike, but for numbers between two steps
        tolerance = {torch.float32: 2e-5, torch.bfloat16: 0.1, torch.int8: 0.1}[dtype]
        exact = reference.block(x.to(torch.float32), BOUNDS, reference.prepare_block(block, torch.float32))
        torch.testing.assert_close(whole, exact, atol=tolerance, rtol=0)
        assert torch.equal(cpu.block(x, BOUNDS, weights), whole)
        assert torch.equal(sums if block.norm_first else cpu.output_norm(sums, weights), whole)
        kept = cpu.keys_values(x, BOUNDS, weights)
        assert torch.equal(cpu.block(x, BOUNDS, weights, "all", kept), whole)
        for keys_values in (None, kept):
            assert torch.equal(cpu.block(x, BOUNDS, weights, "first", keys_values), whole[BOUNDS[:-1].long()])
        for name, chosen in LISTS.items():
            queries = listed(chosen)
            assert torch.equal(cpu.block(x, BOUNDS, weights, queries, kept), whole[chosen]), name
            for found, expected in zip(cpu.block_sums(x, BOUNDS, weights, queries), (whole, sums), strict=True):
                assert torch.equal(found, expected[chosen]), name
            for keys_values in (None, kept):  # in place: the other tokens keep their states
                states = x.clone()
                run_block(weights.native, states, queries, keys_values, queries.tokens, states)
                assert torch.equal(states, torch.where(chosen[:, None], whole, x)), name


@needs_native
def test_what_is_no_target_is_left_alone() -> None:
    x, weights = torch.randn(TOKENS, 40), cpu.prepare_block(make_block(40, 5, 8, 77), torch.int8)
    chosen = LISTS["every second token"]
    queries, targets = listed(chosen), torch.arange(int(chosen.sum())).int() * 2 + 3
    out, sums = torch.full((2, TOKENS + 9, 40), 7.0)
    run_block(weights.native, x, queries, None, targets, out, sums)
    whole, all_sums = cpu.block_sums(x, BOUNDS, weights)
    for found, expected in ((out, whole), (sums, all_sums)):
        assert torch.equal(found[targets.long()], expected[chosen])
        found[targets.long()] = 7.0
        assert (found == 7.0).all()


@needs_native
def test_memory_is_poisoned() -> None:
    output, _ = extension.new_output((2, 3), torch.float32)
    assert output.isnan().all()


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8], ids=str)
@pytest.mark.parametrize("window", [0, 1, 31, 64, 500])
def test_windows_of_long_rows(dtype: torch.dtype, window: int) -> None:
    """Runs of sums, panels of keys and tiles of queries begin and end anywhere in a window."""
    bounds = torch.tensor([0, 700, 701, 1100], dtype=torch.int32)
    block = make_block(32, 2, 16, 40, "modern")._replace(window=window, rotary=Rotary(angles(10.0, 16, 700).angles))
    x, weights = torch.randn(1100, 32), cpu.prepare_block(block, dtype)
    whole = cpu.block(x, bounds, weights)
    exact = reference.block(x, bounds, reference.prepare_block(block, torch.float32))
    tolerance = {torch.float32: 2e-5, torch.bfloat16: 0.1, torch.int8: 0.15}[dtype]  # as above
    torch.testing.assert_close(whole, exact, atol=tolerance, rtol=0)
    kept = cpu.keys_values(x, bounds, weights)
    for tokens in ([0, 5, 699, 700, 701], [350], list(range(100, 140)), list(range(0, 1100, 7))):
        each = torch.tensor(tokens, dtype=torch.int32)
        before = torch.searchsorted(each, bounds.contiguous()).int()
        for keys_values in (None, kept):
            assert torch.equal(cpu.block(x, bounds, weights, Queries(each, before), keys_values), whole[tokens])


@needs_native
def test_what_does_not_fit_is_refused() -> None:
    x, weights = torch.randn(TOKENS, 40), cpu.prepare_block(make_block(40, 5, 8, 77), torch.float32)
    queries = listed(LISTS["last tokens"])
    with pytest.raises(ValueError, match=r"queries.bounds is torch.int32 \[3\] on cpu, expected contiguous .* \[11\]"):
        cpu.block(x, BOUNDS, weights, Queries(queries.tokens, queries.bounds[:3]))
    with pytest.raises(ValueError, match=r"queries.tokens is torch.int64 \[10\]"):
        cpu.block(x, BOUNDS, weights, Queries(queries.tokens.long(), queries.bounds))
    with pytest.raises(ValueError, match="query 9 is token 251, expected tokens of row 9, which are 252 to 256"):
        cpu.block(x, BOUNDS, weights, Queries(queries.tokens[[*range(9), 8]], queries.bounds))
    short = make_block(40, 5, 8, 77)._replace(distances=random_distances(5, 8, max(LENGTHS) - 1))
    with pytest.raises(ValueError, match=f"a row has {max(LENGTHS)} tokens, expected at most {max(LENGTHS) - 1}"):
        cpu.block(x, BOUNDS, cpu.prepare_block(short, torch.float32))
    short = make_block(40, 5, 8, 77, "modern")._replace(rotary=Rotary(angles(10.0, 8, 129).angles))
    for call in (cpu.block, cpu.keys_values):
        with pytest.raises(ValueError, match="a row has 130 tokens, expected at most 129, as the tables of angles"):
            call(x, BOUNDS, cpu.prepare_block(short, torch.float32))
    kept = cpu.keys_values(x, BOUNDS, weights)
    with pytest.raises(ValueError, match=r"kept is torch.uint8 \[100\]"):
        cpu.block(x, BOUNDS, weights, queries, kept[:100])
