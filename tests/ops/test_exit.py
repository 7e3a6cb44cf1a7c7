"""A whole exit on every CPU op set against the reference; every row the same to the last bit in any batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pfengine import extension
from pfengine.ops import Exit, cpu, reference

N, ROWS = 4, 70  # layers; more rows than a block has
# fp32: sums of up to 150 terms; bf16 and int8: the reference rounds alike, but for what it keeps in between
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 5e-2, torch.int8: 5e-2}
FUTURES = ["none", "folded", "imitated"]
GATES = ["none", "paper", "authors"]


def make(
    ops: Any, hidden: int, labels: int, future: str, gate: str, pooled: bool, dtype: torch.dtype, layer: int = 1
) -> tuple[Any, int]:
    """An exit with random weights, the same for every op set; and how many numbers a row's past has."""
    generator = torch.Generator().manual_seed(hidden + labels)

    def linear(outputs: int, inputs: int) -> tuple[torch.Tensor, torch.Tensor]:
        weight = torch.randn(outputs, inputs, generator=generator) / inputs**0.5
        return weight, torch.randn(outputs, generator=generator)

    width = 0 if gate == "none" else labels
    pooler, past, folded, gate_parts = (
        linear(hidden, hidden), linear(labels + width, hidden), linear(labels, hidden), linear(labels, labels)
    )  # fmt: skip
    learners = [torch.stack(parts) for parts in zip(*(linear(hidden, hidden) for _ in range(N - 1)), strict=True)]
    projections = [linear(labels, (N - i) * hidden) for i in range(1, N)]
    imitation = ops.prepare_imitation(*learners, "tanh", projections, dtype)
    parts = Exit(
        labels=labels,
        past=ops.prepare_linear(*past, torch.float32),
        pooler=ops.prepare_linear(*pooler, dtype) if pooled else None,
        folded=ops.prepare_linear(*folded, torch.float32) if future == "folded" else None,
        imitation=(imitation, layer) if future == "imitated" else None,
        gate_kind=gate,  # type: ignore[arg-type]
        width=width,
        gate=ops.prepare_linear(*gate_parts, torch.float32) if gate == "authors" else None,
        states=3,
    )
    return ops.prepare_exit(parts), labels + width


def rows_of(hidden: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of 1, 2, 3, 1, 2, 3... tokens, of which only the first ones may be read."""
    torch.manual_seed(hidden)
    bounds = torch.tensor([0] + [1 + i % 3 for i in range(ROWS)]).cumsum(0).int()
    x = torch.full((int(bounds[-1]), hidden), float("nan"))
    x[bounds[:-1].long()] = torch.randn(ROWS, hidden)
    return x, bounds


def check(ops: Any, hidden: int, labels: int, future: str, gate: str, pooled: bool, dtype: torch.dtype) -> None:
    x, bounds = rows_of(hidden)
    weights, width = make(ops, hidden, labels, future, gate, pooled, dtype)
    oracle, _ = make(reference, hidden, labels, future, gate, pooled, dtype)
    add = torch.randn(ROWS, width)
    logits, past = ops.exit(x, bounds, weights, add, True)
    assert (logits.dtype, logits.shape) == (torch.float32, (ROWS, labels))
    for ours, plain in zip((logits, past), reference.exit(x, bounds, oracle, add, True), strict=True):
        torch.testing.assert_close(ours, plain, atol=TOLERANCE[dtype], rtol=1e-4)
    nothing, again = ops.exit(x, bounds, weights, add, False)
    assert nothing is None
    assert torch.equal(again, past)
    for row in range(ROWS):
        start, stop = bounds[row], bounds[row + 1]
        alone = ops.exit(
            x[start:stop].clone(), (bounds[row : row + 2] - start).int(), weights, add[row : row + 1], True
        )
        assert torch.equal(alone[0], logits[row : row + 1])
        assert torch.equal(alone[1], past[row : row + 1])
    none = ops.exit(x[:0], bounds[:1], weights, add[:0], True)
    assert [part.shape for part in none] == [(0, labels), (0, width)]


@pytest.mark.parametrize("labels", [1, 2, 7, 21])
@pytest.mark.parametrize("hidden", [48, 37, 7])
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("future", FUTURES)
@pytest.mark.parametrize("pooled", [True, False], ids=["pooled", "plain"])
def test_exit(hidden: int, labels: int, future: str, gate: str, pooled: bool, cpu_ops: Any) -> None:
    if future == "none" and gate == "paper":
        pytest.skip("the paper's gate weighs a future")
    check(cpu_ops, hidden, labels, future, gate, pooled, torch.float32)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("instructions", ["plain", "avx2", "avx512", "avx512_bf16"])
@pytest.mark.parametrize(("hidden", "labels"), [(48, 2), (384, 3), (37, 21)])
@pytest.mark.parametrize("future", FUTURES)
def test_exit_of_every_instruction_set(
    hidden: int, labels: int, future: str, instructions: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not extension.has_cpu() or extension.native().find_kernels(instructions) is None:
        pytest.skip(f"this processor has no {instructions}")
    monkeypatch.setenv("PFENGINE_ISA", instructions)
    cpu.kernels.cache_clear()
    try:
        check(cpu, hidden, labels, future, "authors", True, dtype)
    finally:
        cpu.kernels.cache_clear()


def test_any_number_of_threads() -> None:
    if not extension.has_cpu():
        pytest.skip(extension.status())
    x, bounds = rows_of(384)
    weights, _ = make(cpu, 384, 2, "imitated", "authors", True, torch.int8)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            results.append(cpu.exit(x, bounds, weights, None, True))
    finally:
        torch.set_num_threads(before)
    for logits, past in results[1:]:
        assert torch.equal(logits, results[0][0])
        assert torch.equal(past, results[0][1])


def test_bad_shapes_are_refused() -> None:
    if not extension.has_cpu():
        pytest.skip(extension.status())
    weights, _ = make(cpu, 48, 2, "none", "none", True, torch.float32)
    bounds = torch.tensor([0, 1, 2], dtype=torch.int32)
    with pytest.raises(ValueError, match=r"x is torch.float32 \[2, 47\]"):
        cpu.exit(torch.randn(2, 47), bounds, weights, None, True)
    with pytest.raises(
        ValueError, match=r"add is torch.float32 \[3, 2\] on cpu, expected contiguous torch.float32 \[2, 2\]"
    ):
        cpu.exit(torch.randn(2, 48), bounds, weights, torch.randn(3, 2), True)
    with pytest.raises(ValueError, match="row 1 starts at token 7 of 2"):
        cpu.exit(torch.randn(2, 48), torch.tensor([0, 7, 8], dtype=torch.int32), weights, None, True)
