"""The CPU op set without compiled kernels against the reference; every row the same to the last bit in any batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pfengine.ops import Activation, Norm, Queries, reference
from pfengine.ops import cpu_torch as cpu

ROWS = [1, 2, 3, 5, 6, 7, 9, 11, 16, 31, 33, 64, 100]
SHAPES = [(384, 1536), (1536, 384), (384, 2), (48, 144), (40, 7), (37, 11), (11, 37), (3, 3), (160, 2)]
ACTIVATIONS = ["none", "gelu", "gelu_tanh", "relu", "tanh"]


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture(params=[torch.float32, torch.bfloat16])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture(params=[True, False], ids=["packed", "blocks"])
def packed(request: pytest.FixtureRequest, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> bool:
    """With oneDNN's packed op, and as on a machine without it."""
    if request.param and not cpu.has_packed_linear(dtype):
        pytest.skip(f"torch has no packed oneDNN linear op for {dtype} on this processor")
    monkeypatch.setattr(cpu, "has_packed_linear", lambda _: request.param)
    return request.param


def bound(ours: torch.Tensor, plain: torch.Tensor, exact: torch.Tensor, floor: float) -> None:
    """Error against float64 at most twice that of plain torch in the same dtype, plus a floor for the exact case."""
    error, reference_error = (ours.double() - exact).abs().max(), (plain.double() - exact).abs().max()
    assert error <= 2 * reference_error + floor, (error, reference_error)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("inputs", "outputs"), SHAPES)
def test_linear(inputs: int, outputs: int, activation: Any, dtype: torch.dtype, packed: bool) -> None:
    torch.manual_seed(0)
    weight, bias, x = torch.randn(outputs, inputs) / inputs**0.5, torch.randn(outputs), torch.randn(128, inputs)
    weight, bias, x = weight.to(dtype), bias.to(dtype), x.to(dtype)
    ours = cpu.prepare_linear(weight, bias, dtype)
    full = cpu.linear(x, ours, activation)
    assert (full.shape, full.dtype) == ((128, outputs), dtype)
    plain = reference.linear(x, reference.prepare_linear(weight, bias, dtype), activation)
    exact = reference.linear(
        x.double(), reference.prepare_linear(weight.double(), bias.double(), torch.float64), activation
    )
    # oneDNN's erf and tanh are polynomials, and it sums up to 1,536 products one after the other, where MKL sums blocks
    bound(full, plain, exact, 4e-6 if dtype == torch.float32 else 4e-3)
    for rows in ROWS:
        for start in (0, 1, 128 - rows):
            assert torch.equal(
                cpu.linear(x[start : start + rows].clone(), ours, activation), full[start : start + rows]
            )
    assert cpu.linear(x[:0], ours, activation).shape == (0, outputs)


def test_where_onednn_has_no_bf16(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """oneDNN packs bf16 only where there is AVX-512 or avx_ne_convert."""
    pack = torch.ops.mkldnn._reorder_linear_weight

    def refuse(weight: torch.Tensor, rows: int) -> torch.Tensor:
        if weight.dtype == torch.bfloat16:
            raise RuntimeError("mkldnn_reorder_linear_weight: bf16 path needs the cpu support")
        return pack(weight, rows)

    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", refuse)
    cpu.has_packed_linear.cache_clear()
    try:
        weight, bias, x = torch.randn(7, 40), torch.randn(7), torch.randn(3, 40)
        for _ in range(2):
            ours = cpu.prepare_linear(weight, bias, torch.bfloat16)
        assert (ours.packed, ours.bias.dtype) == (cpu.has_packed_linear(torch.float32), torch.float32)
        (warning,) = [record.getMessage() for record in caplog.records if "bfloat16" in record.getMessage()]
        assert "float32" in warning
        found = cpu.linear(x, ours, "none")
        assert found.dtype == torch.bfloat16
        rounded = [t.bfloat16().float() for t in (x, weight, bias)]
        exact = torch.nn.functional.linear(*rounded)
        torch.testing.assert_close(found.float(), exact, atol=1e-5, rtol=2**-8)  # one rounding to bfloat16
    finally:
        cpu.has_packed_linear.cache_clear()


def ragged(lengths: list[int], width: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(len(lengths))
    bounds = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    return torch.randn(sum(lengths), width).to(dtype), bounds


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("first_only", [False, True])
@pytest.mark.parametrize(("heads", "size"), [(12, 32), (12, 64), (5, 16), (1, 16), (3, 48)])
def test_attention(heads: int, size: int, first_only: bool, dtype: torch.dtype, threads: int) -> None:
    lengths = [1, 1, 2, 7, 8, 9, 9, 9, 17, 25, 31, 33, 33, 43, 64, 129, 512]
    qkv, bounds = ragged(lengths, 3 * heads * size, dtype)
    scale = size**-0.5

    def queries(starts: torch.Tensor) -> Queries | None:
        return Queries(starts, torch.arange(len(starts) + 1, dtype=torch.int32)) if first_only else None

    asked = queries(bounds[:-1])
    full = cpu.attention(qkv, bounds, heads, scale, asked)
    plain = reference.attention(qkv, bounds, heads, scale, asked)
    exact = reference.attention(qkv.double(), bounds, heads, scale, asked)
    assert full.shape == plain.shape
    bound(full, plain, exact, 1e-6 if dtype == torch.float32 else 4e-3)
    places = range(len(lengths) + 1) if first_only else bounds.tolist()
    for row, (start, stop) in enumerate(zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)):
        own = torch.tensor([0, stop - start], dtype=torch.int32)
        alone = cpu.attention(qkv[start:stop].clone(), own, heads, scale, queries(own[:1]))
        assert torch.equal(alone, full[places[row] : places[row + 1]]), lengths[row]


def test_attention_of_nothing() -> None:
    qkv, bounds = ragged([], 96, torch.float32)
    for ops in (cpu, reference):
        assert ops.attention(qkv, bounds, 2, 1.0).shape == (0, 32)


@pytest.mark.parametrize("dtype", [torch.float32])
@pytest.mark.parametrize("labels", [1, 2, 3, 7])
@pytest.mark.parametrize("layer", [1, 3])
@pytest.mark.parametrize("activation", ["tanh", "none"])
def test_imitation(labels: int, layer: int, activation: Activation, packed: bool) -> None:
    torch.manual_seed(labels)
    n, hidden, rows = 4, 48, 40
    states = torch.tanh(torch.randn(rows, hidden))
    learners = (torch.randn(n - 1, hidden, hidden) / hidden**0.5, torch.randn(n - 1, hidden))
    projections = [(torch.randn(labels, (n - i) * hidden), torch.randn(labels)) for i in range(1, n)]
    results = []
    for ops in (cpu, reference):
        weights = ops.prepare_imitation(*learners, activation, projections, torch.float32)
        guesses = ops.guesses(states, weights, layer)
        assert guesses.shape == (rows, n - layer, hidden)
        results.append([guesses, ops.project(guesses.flatten(1), weights, layer)])
        if ops is cpu:
            for i in range(rows):
                assert torch.equal(ops.guesses(states[i : i + 1], weights, layer), guesses[i : i + 1])
                assert torch.equal(
                    ops.project(guesses[i : i + 1].flatten(1), weights, layer), results[-1][1][i : i + 1]
                )
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, atol=2e-5, rtol=1e-5)  # fp32, sums of up to 144 terms


def test_layer_norm_and_embedding_rows_stand_alone() -> None:
    torch.manual_seed(0)
    for hidden in (40, 48, 384):
        norm = Norm(torch.randn(hidden), torch.randn(hidden), 1e-12)
        x, residual = torch.randn(50, hidden), torch.randn(50, hidden)
        full = reference.norm(x + residual, norm)
        tables = (torch.randn(9, hidden), torch.randn(9, hidden), torch.randn(2, hidden))
        ids, types = torch.randint(0, 9, (2, 50)), torch.randint(0, 2, (50,))
        embedding = cpu.prepare_embedding(tables, norm, torch.float32)
        embedded = cpu.embed(ids[0], ids[1], types, embedding)
        for i in range(50):
            part = slice(i, i + 1)
            assert torch.equal(reference.norm(x[part] + residual[part], norm), full[part])
            assert torch.equal(cpu.embed(ids[0, part], ids[1, part], types[part], embedding), embedded[part])
