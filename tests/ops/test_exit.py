"""A whole exit on every CPU op set against the reference; every row the same to the last bit in any batch."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import pytest
import torch

from pfengine import extension
from pfengine.ops import Exit, cpu, cpu_torch, reference

N, ROWS = 4, 70  # layers; more rows than a block has
# fp32: sums of up to 150 terms; bf16 and int8: the reference rounds alike, but for what it keeps in between
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 5e-2, torch.int8: 5e-2}
POOLED = {"none": "relu", "folded": "gelu", "imitated": "tanh"}  # the activation of a pooler with each kind of future
FUTURES = list(POOLED)
GATES = ["none", "paper", "authors"]


def make(
    ops: Any, hidden: int, labels: int, future: str, gate: str, pooled: str, dtype: torch.dtype, layer: int = 1
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
        pooler_activation=pooled or "tanh",  # type: ignore[arg-type]
        folded=ops.prepare_linear(*folded, torch.float32) if future == "folded" else None,
        imitation=(imitation, layer) if future == "imitated" else None,
        gate_kind=gate,  # type: ignore[arg-type]
        width=width,
        gate=ops.prepare_linear(*gate_parts, torch.float32) if gate == "authors" else None,
        states=3,
        learned=ops.prepare_linear(*linear(1, hidden), torch.float32),
    )
    return ops.prepare_exit(parts), labels + width


def check(ops: Any, hidden: int, labels: int, future: str, gate: str, pooled: str, dtype: torch.dtype) -> None:
    x = torch.randn(ROWS, hidden, generator=torch.Generator().manual_seed(hidden))
    weights, width = make(ops, hidden, labels, future, gate, pooled, dtype)
    oracle, _ = make(reference, hidden, labels, future, gate, pooled, dtype)
    add = torch.randn(ROWS, width)
    logits, past, learned = ops.exit(x, weights, add, True)
    assert (logits.dtype, logits.shape, learned.shape) == (torch.float32, (ROWS, labels), (ROWS,))
    for ours, plain in zip((logits, past, learned), reference.exit(x, oracle, add, True), strict=True):
        torch.testing.assert_close(ours, plain, atol=TOLERANCE[dtype], rtol=1e-4)
    nothing, again, none = ops.exit(x, weights, add, False)
    assert nothing is none is None
    assert torch.equal(again, past)
    for row in range(ROWS):
        alone = ops.exit(x[row : row + 1].clone(), weights, add[row : row + 1], True)
        for ours, together in zip(alone, (logits, past, learned), strict=True):
            assert torch.equal(ours, together[row : row + 1])
    empty = ops.exit(x[:0], weights, add[:0], True)
    assert [part.shape for part in empty] == [(0, labels), (0, width), (0,)]


SIZES = itertools.cycle(itertools.product([48, 37, 7], [1, 2, 7, 21]))  # hidden, labels: taken in turn
KINDS = [
    (*kind, *next(SIZES))
    for kind in itertools.product(FUTURES, GATES, ["tanh", "relu", "gelu", ""])
    if kind[:2] != ("none", "paper")  # the paper's gate weighs a future
]


@pytest.mark.parametrize(("future", "gate", "pooled", "hidden", "labels"), KINDS)
def test_exit(hidden: int, labels: int, future: str, gate: str, pooled: str, cpu_ops: Any) -> None:
    check(cpu_ops, hidden, labels, future, gate, pooled, torch.float32)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("instructions", ["plain", "avx2", "avx512", "avx512_bf16"])
@pytest.mark.parametrize(("hidden", "labels"), [(48, 2), (384, 3), (37, 21)])
@pytest.mark.parametrize("future", FUTURES)
def test_exit_of_every_instruction_set(
    hidden: int, labels: int, future: str, instructions: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not extension.has_cpu() or extension._C.find_kernels(instructions) is None:
        pytest.skip(f"this processor has no {instructions}")
    monkeypatch.setenv("PFENGINE_ISA", instructions)
    cpu.kernels.cache_clear()
    try:
        check(cpu, hidden, labels, future, "authors", POOLED[future], dtype)
    finally:
        cpu.kernels.cache_clear()


def test_any_number_of_threads() -> None:
    if not extension.has_cpu():
        pytest.skip(extension.status())
    x = torch.randn(ROWS, 384)
    weights, _ = make(cpu, 384, 2, "imitated", "authors", "tanh", torch.int8)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            results.append(cpu.exit(x, weights, None, True))
    finally:
        torch.set_num_threads(before)
    for parts in results[1:]:
        assert all(map(torch.equal, parts, results[0]))


def test_mean() -> None:
    """In order, whatever the rows are beside: the bits of plain additions."""
    lengths = [1, 2, 3, 9, 64]
    x, bounds = torch.randn(sum(lengths), 37), torch.tensor([0, *itertools.accumulate(lengths)]).int()
    found = cpu.mean(x, bounds)
    for row, tokens in enumerate(x.split(lengths)):
        assert torch.equal(found[row], functools.reduce(torch.add, tokens) / len(tokens))
    assert cpu.mean(x[:0], bounds[:1]).shape == (0, 37)
    with pytest.raises(ValueError, match="cu_seqlens does not rise at row 0"):
        cpu.mean(x[:3], torch.tensor([0, 0, 3]).int())


@pytest.mark.parametrize(("size", "count"), [(37, 1), (36, 12), (384, 12), (48, 3)])
def test_query_mean(size: int, count: int) -> None:
    """Equal to the definition; a row alone, and on any number of threads, has the same bits."""
    if not extension.has_cpu():
        pytest.skip(extension.status())
    torch.manual_seed(size + count)
    # A score is a sum of 384 products with a deviation of 5, so up to 20. Such sums differ by some 5e-6 from order to
    # order in fp32, weights by as much of themselves, and means of numbers up to 4 by 1.3e-5 in 300 draws.
    near = {"atol": 3e-5, "rtol": 0}
    lengths = [1, 2, 3, 9, 64, 5]
    x, bounds = torch.randn(sum(lengths), size), torch.tensor([0, *itertools.accumulate(lengths)]).int()
    queries = torch.randn(count, size) / 4
    prepared, before = cpu.prepare_queries(queries), torch.get_num_threads()
    found = cpu.query_mean(x, bounds, prepared)
    for row, tokens in enumerate(x.split(lengths)):
        weights = (tokens @ queries.T).softmax(0)  # [tokens, count]
        theirs = torch.einsum("tk,tkd->kd", weights, tokens.unflatten(1, (count, -1))).flatten()
        torch.testing.assert_close(found[row], theirs, **near)
    torch.testing.assert_close(reference.query_mean(x, bounds, reference.prepare_queries(queries)), found, **near)
    plain = cpu_torch.query_mean(x, bounds, cpu_torch.prepare_queries(queries))
    torch.testing.assert_close(plain, found, **near)
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            assert torch.equal(cpu.query_mean(x, bounds, prepared), found)
            for row, tokens in enumerate(x.split(lengths)):
                own = torch.tensor([0, len(tokens)]).int()
                assert torch.equal(cpu.query_mean(tokens, own, prepared)[0], found[row])
                alone = cpu_torch.query_mean(tokens, own, cpu_torch.prepare_queries(queries))
                assert torch.equal(alone[0], plain[row])
    finally:
        torch.set_num_threads(before)
    assert cpu.query_mean(x[:0], bounds[:1], prepared).shape == (0, size)
    with pytest.raises(ValueError, match="cu_seqlens does not rise at row 0"):
        cpu.query_mean(x[:3], torch.tensor([0, 0, 3]).int(), prepared)


def test_bad_shapes_are_refused() -> None:
    if not extension.has_cpu():
        pytest.skip(extension.status())
    weights, _ = make(cpu, 48, 2, "none", "none", "tanh", torch.float32)
    with pytest.raises(ValueError, match=r"x is torch.float32 \[2, 47\]"):
        cpu.exit(torch.randn(2, 47), weights, None, True)
    with pytest.raises(
        ValueError, match=r"add is torch.float32 \[3, 2\] on cpu, expected contiguous torch.float32 \[2, 2\]"
    ):
        cpu.exit(torch.randn(2, 48), weights, torch.randn(3, 2), True)
