"""The compiled kernels, in every instruction set that runs here, against the reference and float64."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from pfengine import extension
from pfengine.errors import ConfigError
from pfengine.ops import Block, Norm, cpu, reference

from .distances import random_distances

if not extension.has_cpu():
    pytest.skip(extension.status(), allow_module_level=True)

SETS = ["plain", "avx2", "avx512", "avx512_bf16"]
DTYPES = [torch.float32, torch.bfloat16, torch.int8]
# Of the error against float64, beyond twice that of plain torch in the same dtype: fp32 sums up to 1,536 products one
# after the other, where torch sums blocks; int8 rounds the same numbers as the reference, other intermediates to bf16.
FLOOR = {torch.float32: 1e-5, torch.bfloat16: 4e-3, torch.int8: 2e-2}
LENGTHS = [1, 1, 2, 3, 7, 16, 17, 25, 31, 32, 33, 64, 65, 129]


@pytest.fixture(params=SETS)
def instructions(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if extension._C.find_kernels(request.param) is None:
        pytest.skip(f"this processor has no {request.param}")
    monkeypatch.setenv("PFENGINE_ISA", request.param)
    cpu.kernels.cache_clear()
    yield request.param
    cpu.kernels.cache_clear()


def bound(ours: torch.Tensor, plain: torch.Tensor, exact: torch.Tensor, floor: float) -> None:
    error, reference_error = (ours.double() - exact).abs().max(), (plain.double() - exact).abs().max()
    assert error <= 2 * reference_error + floor, (error, reference_error)


def bounds_of(lengths: list[int]) -> torch.Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).int()


def random_block(hidden: int, heads: int, size: int, inner: int, activation: Any = "gelu") -> Block:
    torch.manual_seed(hidden)
    sizes = {
        "qkv": (3 * heads * size, hidden),
        "attention_output": (hidden, heads * size),
        "intermediate": (inner, hidden),
        "output": (hidden, inner),
    }
    parts = {key: (torch.randn(o, i) / i**0.5, 0.1 * torch.randn(o)) for key, (o, i) in sizes.items()}
    norms = [Norm(1 + 0.1 * torch.randn(hidden), 0.1 * torch.randn(hidden), 1e-12) for _ in range(2)]
    return Block(
        attention_norm=norms[0], output_norm=norms[1], num_heads=heads, scale=size**-0.5, activation=activation, **parts
    )


def in_float64(block: Block) -> Block:
    def double(x: Any) -> Any:
        if isinstance(x, tuple):
            parts = [double(value) for value in x]
            return type(x)(*parts) if hasattr(x, "_fields") else tuple(parts)
        return x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x

    return Block(*map(double, block))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("hidden", "heads", "size", "inner"),
    [
        *((33, 2, 18, 31), (7, 1, 6, 5)),
        *(
            pytest.param(*sizes, marks=pytest.mark.wide)
            for sizes in ((96, 3, 32, 200), (64, 1, 64, 65), (48, 3, 16, 77), (40, 5, 8, 72))
        ),
    ],
)
def test_block(hidden: int, heads: int, size: int, inner: int, dtype: torch.dtype, instructions: str) -> None:
    check_block(random_block(hidden, heads, size, inner), dtype, LENGTHS)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("hidden", "heads", "inner"), [(384, 12, 1536), (1024, 16, 4096)])
def test_block_of_a_real_size(hidden: int, heads: int, inner: int, dtype: torch.dtype, instructions: str) -> None:
    check_block(random_block(hidden, heads, hidden // heads, inner), dtype, [*LENGTHS, 511, 512])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ["none", "gelu", "gelu_tanh", "relu", "tanh"])
def test_block_of_every_activation(activation: str, dtype: torch.dtype, instructions: str) -> None:
    check_block(random_block(48, 4, 12, 72, activation), dtype, [3, 20])


@pytest.mark.parametrize("parts", [("bias",), ("keys",), ("queries",), ("keys", "queries")], ids=", ".join)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scores_of_distances(dtype: torch.dtype, parts: tuple[str, ...], instructions: str) -> None:
    lengths = [1, 20, 70, 33, 140]
    distances = random_distances(4, 12, max(lengths), 30)
    others = {name: None for name in ("bias", "keys", "queries") if name not in parts}
    check_block(random_block(48, 4, 12, 72)._replace(distances=distances._replace(**others)), dtype, lengths)


def check_block(block: Block, dtype: torch.dtype, lengths: list[int]) -> None:
    """Right, and each row the same to the last bit alone and in the batch, on any number of threads."""
    bounds = bounds_of(lengths)
    x = torch.randn(int(bounds[-1]), block.output[0].shape[0])
    weights = cpu.prepare_block(block, dtype)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        ours = cpu.block(x, bounds, weights)
        assert (ours.dtype, ours.shape) == (torch.float32, x.shape)
        plain = reference.block(
            x.to(torch.float32 if dtype == torch.int8 else dtype), bounds, reference.prepare_block(block, dtype)
        )
        exact = reference.block(x.double(), bounds, reference.prepare_block(in_float64(block), torch.float64))
        bound(ours, plain, exact, FLOOR[dtype])
        first = cpu.block(x, bounds, weights, "first")
        assert torch.equal(first, ours[bounds[:-1].long()])
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            assert torch.equal(cpu.block(x, bounds, weights), ours)
            for start, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
                alone = bounds_of([stop - start])
                assert torch.equal(cpu.block(x[start:stop].clone(), alone, weights), ours[start:stop])
                assert torch.equal(cpu.block(x[start:stop].clone(), alone, weights, "first"), ours[start : start + 1])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ["none", "gelu", "gelu_tanh", "relu", "tanh"])
@pytest.mark.parametrize(("inputs", "outputs"), [(384, 96), (48, 144), (40, 7), (37, 11), (3, 3), (160, 2), (1, 1)])
def test_linear(inputs: int, outputs: int, activation: Any, dtype: torch.dtype, instructions: str) -> None:
    torch.manual_seed(0)
    weight, bias, x = torch.randn(outputs, inputs) / inputs**0.5, torch.randn(outputs), torch.randn(130, inputs)
    weights = cpu.prepare_linear(weight, bias, dtype)
    full = cpu.linear(x, weights, activation)
    assert (full.shape, full.dtype) == ((130, outputs), torch.float32)
    plain = reference.linear(x, reference.prepare_linear(weight, bias, dtype), activation)
    exact = reference.linear(x.double(), reference.Linear(weight.double(), bias.double()), activation)
    bound(full, plain, exact, 1e-6 if dtype == torch.float32 else 4e-3)
    wide = torch.randn(130, inputs + 3)
    wide[:, :inputs] = x
    assert torch.equal(cpu.linear(wide[:, :inputs], weights, activation), full), "rows further apart"
    for rows in (1, 2, 3, 7, 13, 64, 65):
        for start in (0, 1, 130 - rows):
            assert torch.equal(
                cpu.linear(x[start : start + rows].clone(), weights, activation), full[start : start + rows]
            )
    assert cpu.linear(x[:0], weights, activation).shape == (0, outputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("hidden", [7, 40, 48, 384])
@pytest.mark.parametrize("typed", [True, False])
def test_embed(hidden: int, dtype: torch.dtype, instructions: str, typed: bool) -> None:
    torch.manual_seed(0)
    norm = Norm(torch.randn(hidden), torch.randn(hidden), 1e-12)
    tables = (torch.randn(9, hidden), torch.randn(9, hidden), torch.randn(2, hidden) if typed else None)
    ids, types = torch.randint(0, 9, (2, 50)), torch.randint(0, 2 if typed else 1 << 40, (50,))
    weights = cpu.prepare_embedding(tables, norm, dtype)
    ours = cpu.embed(ids[0], ids[1], types, weights)
    rounded = tuple(None if table is None else table.to(dtype).float() for table in tables)
    exact = reference.embed(ids[0], ids[1], types, reference.prepare_embedding(rounded, norm, torch.float32))  # type: ignore[arg-type]
    torch.testing.assert_close(ours, exact, atol=2e-5, rtol=1e-5)  # fp32, another order of sums
    for i in range(50):
        part = slice(i, i + 1)
        assert torch.equal(cpu.embed(ids[0, part], ids[1, part], types[part], weights), ours[part])


@pytest.mark.parametrize(("place", "name"), [(0, "token id"), (1, "position"), (2, "token type")])
@pytest.mark.parametrize("wrong", [-1, 9])
def test_an_id_outside_its_table_is_named(place: int, name: str, wrong: int) -> None:
    norm = Norm(torch.ones(8), torch.zeros(8), 1e-12)
    weights = cpu.prepare_embedding((torch.randn(9, 8), torch.randn(9, 8), torch.randn(9, 8)), norm, torch.float32)
    ids = [torch.zeros(4, dtype=torch.int64) for _ in range(3)]
    ids[place][2] = wrong
    with pytest.raises(IndexError, match=rf"{name} {wrong} of token 2 is outside its table of 9"):
        cpu.embed(*ids, weights)


def test_no_rows() -> None:
    weights = cpu.prepare_block(random_block(48, 4, 12, 72), torch.float32)
    for queries in ("all", "first"):
        assert cpu.block(torch.empty(0, 48), bounds_of([]), weights, queries).shape == (0, 48)


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ([0, 3], "cu_seqlens goes from 0 to 3, expected 0 to the 4 tokens there are"),
        ([1, 4], "cu_seqlens goes from 1 to 4"),
        ([0, 2, 2, 4], "cu_seqlens does not rise at row 1"),
        ([0, 3, 2, 4], "cu_seqlens does not rise at row 1"),
    ],
)
def test_wrong_bounds_are_refused(bounds: list[int], message: str) -> None:
    weights = cpu.prepare_block(random_block(48, 4, 12, 72), torch.float32)
    with pytest.raises(ValueError, match=message):
        cpu.block(torch.randn(4, 48), torch.tensor(bounds).int(), weights)


def test_wrong_shapes_are_refused() -> None:
    weights = cpu.prepare_block(random_block(48, 4, 12, 72), torch.float32)
    with pytest.raises(
        ValueError, match=r"x is torch.float32 \[4, 47\] on cpu, expected contiguous torch.float32 \[4, 48\]"
    ):
        cpu.block(torch.randn(4, 47), bounds_of([4]), weights)
    with pytest.raises(ValueError, match=r"x is torch.float64"):
        cpu.block(torch.randn(4, 48).double(), bounds_of([4]), weights)
    with pytest.raises(ValueError, match=r"cu_seqlens is torch.int64"):
        cpu.block(torch.randn(4, 48), bounds_of([4]).long(), weights)
    with pytest.raises(
        ValueError, match=r"x is torch.float32 \[4, 5\] on cpu, expected contiguous torch.float32 \[4, 3\]"
    ):
        cpu.linear(torch.randn(4, 5), cpu.prepare_linear(torch.randn(2, 3), torch.randn(2), torch.float32), "none")


def test_unknown_instructions_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PFENGINE_ISA", "sse9")
    cpu.kernels.cache_clear()
    with pytest.raises(ConfigError, match="PFENGINE_ISA is 'sse9', and this processor runs no kernels of that name"):
        cpu.kernels()
    cpu.kernels.cache_clear()


def imitation(ops: Any, states: torch.Tensor, weights: Any, layer: int) -> torch.Tensor:
    return ops.project(ops.guesses(states, weights, layer).flatten(1), weights, layer)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layer", [1, 3])
@pytest.mark.parametrize("hidden", [48, 37])
def test_imitation(hidden: int, layer: int, dtype: torch.dtype, instructions: str) -> None:
    torch.manual_seed(hidden)
    n, rows, labels = 4, 40, 3
    states = torch.tanh(torch.randn(rows, hidden))
    learners = (torch.randn(n - 1, hidden, hidden) / hidden**0.5, torch.randn(n - 1, hidden))
    projections = [(torch.randn(labels, (n - i) * hidden) / hidden**0.5, torch.randn(labels)) for i in range(1, n)]
    weights = cpu.prepare_imitation(*learners, "tanh", projections, dtype)
    oracle = reference.prepare_imitation(*learners, "tanh", projections, dtype)
    guesses, logits = cpu.guesses(states, weights, layer), imitation(cpu, states, weights, layer)
    assert guesses.shape == (rows, n - layer, hidden)
    # the same numbers rounded alike in bf16 and int8: the order of sums and the rounding of plain torch's output differ
    tolerance = 2e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(guesses, reference.guesses(states, oracle, layer).float(), atol=tolerance, rtol=0)
    torch.testing.assert_close(logits, imitation(reference, states, oracle, layer), atol=3 * tolerance, rtol=0)
    for i in range(rows):
        assert torch.equal(cpu.guesses(states[i : i + 1], weights, layer), guesses[i : i + 1])
        assert torch.equal(imitation(cpu, states[i : i + 1], weights, layer), logits[i : i + 1])
