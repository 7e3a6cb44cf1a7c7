"""Narrow self-attention on every CPU op set against the reference; every row the same to the last bit in any batch."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from pfengine import extension
from pfengine.ops import Attentive, cpu, reference
from pfengine.ops.padding import pad_inputs, pad_outputs

LENGTHS = [5, 1, 33, 2, 70, 1, 8]
BOUNDS = torch.tensor([0, *itertools.accumulate(LENGTHS)]).int()
# fp32: sums of up to 96 terms; bf16 and int8: the reference keeps more digits in between
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 6e-2, torch.int8: 6e-2}
SIZES = [(48, 16, 2), (37, 9, 3), (512, 128, 2)]  # hidden size, width, heads


def make(ops: Any, hidden: int, width: int, heads: int, pooling: Any, dtype: torch.dtype) -> Any:
    """Random weights, the same for every op set."""
    generator = torch.Generator().manual_seed(hidden)

    def linear(outputs: int, inputs: int) -> tuple[Tensor, Tensor]:
        weight = torch.randn(outputs, inputs, generator=generator) * 1.5 / inputs**0.5
        return weight, torch.randn(outputs, generator=generator) / 4

    narrow, output = linear(width, hidden), linear(width, width)
    qkv = [pad_outputs(*linear(width, width), heads, ops.HEAD_ALIGNMENT) for _ in range(3)]
    parts = Attentive(
        narrow, (torch.cat([w for w, _ in qkv]), torch.cat([b for _, b in qkv])),
        (pad_inputs(output[0], heads, ops.HEAD_ALIGNMENT), output[1]), heads, (width // heads) ** -0.5, pooling,
    )  # fmt: skip
    return ops.prepare_attentive(parts, dtype)


def states(hidden: int) -> Tensor:
    return torch.randn(sum(LENGTHS), hidden, generator=torch.Generator().manual_seed(1))


def check(ops: Any, size: tuple[int, int, int], pooling: str, dtype: torch.dtype) -> None:
    x, weights = states(size[0]), make(ops, *size, pooling, dtype)
    found = ops.attentive(x, BOUNDS, weights)
    assert (found.dtype, found.shape) == (torch.float32, (len(LENGTHS), size[1]))
    torch.testing.assert_close(
        found, reference.attentive(x, BOUNDS, make(reference, *size, pooling, dtype)), atol=TOLERANCE[dtype], rtol=1e-4
    )
    for row, tokens in enumerate(x.split(LENGTHS)):
        alone = ops.attentive(tokens.clone(), torch.tensor([0, len(tokens)]).int(), weights)
        assert torch.equal(alone, found[row : row + 1])
    assert ops.attentive(x[:0], BOUNDS[:1], weights).shape == (0, size[1])


@pytest.mark.parametrize("pooling", ["first", "max"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_attentive(size: tuple[int, int, int], pooling: str, cpu_ops: Any) -> None:
    check(cpu_ops, size, pooling, torch.float32)


def test_the_reference_is_the_definition() -> None:
    """As the paper and the authors' code have it: no residual, no norm, tanh before attention only."""
    hidden, width, heads = SIZES[0]
    x = states(hidden)
    for pooling in ("first", "max"):
        weights = make(reference, hidden, width, heads, pooling, torch.float32)
        for row, tokens in enumerate(x.split(LENGTHS)):
            h = torch.tanh(tokens @ weights.narrow.weight.T + weights.narrow.bias)
            q, k, v = (
                (h @ weights.qkv.weight.T + weights.qkv.bias).view(-1, 3, heads, width // heads).permute(1, 2, 0, 3)
            )
            mixed = ((q @ k.transpose(1, 2)) / (width // heads) ** 0.5).softmax(-1) @ v
            y = mixed.transpose(0, 1).flatten(1) @ weights.output.weight.T + weights.output.bias
            pooled = y[0] if pooling == "first" else y.max(0).values
            torch.testing.assert_close(reference.attentive(x, BOUNDS, weights)[row], pooled, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("instructions", ["plain", "avx2", "avx512", "avx512_bf16"])
def test_every_instruction_set(instructions: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    if not extension.has_cpu() or extension._C.find_kernels(instructions) is None:
        pytest.skip(f"this processor has no {instructions}")
    monkeypatch.setenv("PFENGINE_ISA", instructions)
    cpu.kernels.cache_clear()
    try:
        for size, pooling in itertools.product(SIZES[:2], ("first", "max")):
            check(cpu, size, pooling, dtype)
    finally:
        cpu.kernels.cache_clear()


@pytest.mark.parametrize("pooling", ["first", "max"])
def test_nan_stays_nan_and_in_its_row(pooling: str, cpu_ops: Any) -> None:
    x, weights = states(SIZES[0][0]), make(cpu_ops, *SIZES[0], pooling, torch.float32)
    before = cpu_ops.attentive(x, BOUNDS, weights)
    x[BOUNDS[2] + 7, 3] = torch.nan  # a key of all queries of row 2
    found = cpu_ops.attentive(x, BOUNDS, weights)
    assert found[2].isnan().all()
    others = [row for row in range(len(LENGTHS)) if row != 2]
    assert torch.equal(found[others], before[others])


def test_any_number_of_threads() -> None:
    if not extension.has_cpu():
        pytest.skip(extension.status())
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            for pooling in ("first", "max"):
                for bounds in (BOUNDS, BOUNDS[:2]):
                    weights = make(cpu, *SIZES[2], pooling, torch.int8)
                    results.append(cpu.attentive(states(512)[: bounds[-1]], bounds, weights))
    finally:
        torch.set_num_threads(before)
    for i, found in enumerate(results):
        assert torch.equal(found, results[i % 4])


def test_bad_shapes_are_refused() -> None:
    if not extension.has_cpu():
        pytest.skip(extension.status())
    weights = make(cpu, *SIZES[0], "first", torch.float32)
    with pytest.raises(ValueError, match=r"x is torch.float32 \[2, 47\]"):
        cpu.attentive(torch.randn(2, 47), torch.tensor([0, 2]).int(), weights)
    with pytest.raises(ValueError, match="cu_seqlens does not rise at row 0"):
        cpu.attentive(torch.randn(3, 48), torch.tensor([0, 0, 3]).int(), weights)
