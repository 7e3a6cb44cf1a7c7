"""Whatever a layer's queries are, each is the same to the last bit as when all tokens are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from pfengine import extension
from pfengine.ops import Block, Norm, Queries, cpu, cpu_torch, reference

from .distances import random_distances

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


def make_block(hidden: int, heads: int, size: int, inner: int, distant: bool = False) -> Block:
    torch.manual_seed(hidden)

    def linear(outputs: int, inputs: int) -> tuple[Tensor, Tensor]:
        return torch.randn(outputs, inputs) / inputs**0.5, 0.1 * torch.randn(outputs)

    norms = [Norm(1 + 0.1 * torch.randn(hidden), 0.1 * torch.randn(hidden), 1e-12) for _ in range(2)]
    return Block(
        linear(3 * heads * size, hidden), linear(hidden, heads * size), norms[0], linear(inner, hidden),
        linear(hidden, inner), norms[1], heads, size**-0.5, "gelu",
        distances=random_distances(heads, size, max(LENGTHS)) if distant else None,
    )  # fmt: skip


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


@pytest.mark.parametrize("distant", [False, True])
def test_op_sets(op_set: Any, distant: bool) -> None:
    sizes = (48, 3, 16, 77) if op_set is cpu_torch else (40, 5, 8, 77)
    x, weights = torch.randn(TOKENS, sizes[0]), op_set.prepare_block(make_block(*sizes, distant), torch.float32)
    whole, kept = op_set.block(x, BOUNDS, weights), op_set.keys_values(x, BOUNDS, weights)
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
    for *sizes, distant in ((64, 2, 32, 130, False), (33, 2, 18, 31, True)):
        x, weights = torch.randn(TOKENS, sizes[0]), cpu.prepare_block(make_block(*sizes, distant), dtype)
        whole, sums = cpu.block_sums(x, BOUNDS, weights)
        assert torch.equal(cpu.block(x, BOUNDS, weights), whole)
        assert torch.equal(cpu.output_norm(sums, weights), whole)
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
def test_output_norm_of_some_rows() -> None:
    x, weights = torch.randn(TOKENS, 40), cpu.prepare_block(make_block(40, 5, 8, 77), torch.int8)
    whole, sums = cpu.block_sums(x, BOUNDS, weights)
    numbers, states = listed(LISTS["a third, at random"]).tokens, x.clone()
    extension._C.output_norm(
        kernels=cpu.kernels(), block=weights.native, sums=at(sums), tokens=TOKENS, numbers=at(numbers),
        rows=len(numbers), out=at(states), threads=2,
    )  # fmt: skip
    assert torch.equal(states, torch.where(LISTS["a third, at random"][:, None], whole, x))


@needs_native
def test_memory_is_poisoned() -> None:
    output, _ = extension.new_output((2, 3), torch.float32)
    assert output.isnan().all()


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
    kept = cpu.keys_values(x, BOUNDS, weights)
    with pytest.raises(ValueError, match=r"kept is torch.uint8 \[100\]"):
        cpu.block(x, BOUNDS, weights, queries, kept[:100])
