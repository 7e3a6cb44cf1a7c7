"""A layer in two halves is the layer: first tokens before, the rest of the rows that stay after."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pfengine import extension
from pfengine.ops import Block, Norm, cpu, cpu_torch, reference

LENGTHS = [1, 3, 1, 17, 64, 2, 33, 1, 130, 5]
STAYS = {
    "all": [True] * 10,
    "one": [False] * 3 + [True] + [False] * 6,
    "single tokens": [length == 1 for length in LENGTHS],
    "every second": [i % 2 == 1 for i in range(10)],
    "but the first and last": [False] + [True] * 8 + [False],
    "none": [False] * 10,
}


def make_block(hidden: int, heads: int, size: int, inner: int) -> Block:
    torch.manual_seed(hidden)

    def linear(outputs: int, inputs: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.randn(outputs, inputs) / inputs**0.5, 0.1 * torch.randn(outputs)

    norms = [Norm(1 + 0.1 * torch.randn(hidden), 0.1 * torch.randn(hidden), 1e-12) for _ in range(2)]
    return Block(
        linear(3 * heads * size, hidden), linear(hidden, heads * size), norms[0], linear(inner, hidden),
        linear(hidden, inner), norms[1], heads, size**-0.5, "gelu",
    )  # fmt: skip


def check(ops: Any, block: Block, dtype: torch.dtype, stay: list[bool], exact: bool) -> None:
    bounds = torch.tensor([0, *LENGTHS]).cumsum(0).int()
    x = torch.randn(int(bounds[-1]), block.output[0].shape[0]).to(torch.float32 if ops is cpu else dtype)
    weights = ops.prepare_block(block, dtype)
    whole = ops.block(x, bounds, weights, False)
    first, opened = ops.open_block(x, bounds, weights)
    # plain torch multiplies other numbers of rows in another order
    tolerance = {"atol": 0.0, "rtol": 0.0} if exact else {"atol": 1e-5, "rtol": 1e-5}
    torch.testing.assert_close(first, whole[bounds[:-1].long()], **tolerance)
    kept, new_bounds = ops.close_block(opened, torch.tensor(stay))
    rows = [whole[bounds[i] : bounds[i + 1]] for i in range(len(LENGTHS)) if stay[i]]
    torch.testing.assert_close(kept, torch.cat([*rows, whole[:0]]), **tolerance)
    lengths = [length for length, stays in zip(LENGTHS, stay, strict=True) if stays]
    assert new_bounds.dtype == torch.int32
    assert new_bounds.tolist() == torch.tensor([0, *lengths]).cumsum(0).tolist()


@pytest.mark.parametrize("stay", STAYS.values(), ids=STAYS.keys())
def test_op_sets(op_set: Any, stay: list[bool]) -> None:
    sizes = (48, 3, 16, 77) if op_set is cpu_torch else (40, 5, 8, 77)
    check(op_set, make_block(*sizes), torch.float32, stay, exact=op_set is not reference)


@pytest.mark.parametrize("stay", STAYS.values(), ids=STAYS.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8], ids=str)
@pytest.mark.parametrize("instructions", ["plain", "avx2", "avx512", "avx512_bf16"])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_every_instruction_set(
    threads: int, instructions: str, dtype: torch.dtype, stay: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not extension.has_cpu() or extension.native().find_kernels(instructions) is None:
        pytest.skip(f"this processor has no {instructions}")
    monkeypatch.setenv("PFENGINE_ISA", instructions)
    cpu.kernels.cache_clear()
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        check(cpu, make_block(64, 2, 32, 130), dtype, stay, exact=True)
        check(cpu, make_block(33, 2, 18, 31), dtype, stay, exact=True)
    finally:
        torch.set_num_threads(before)
        cpu.kernels.cache_clear()


def test_wrong_stay_is_refused() -> None:
    if not extension.has_cpu():
        pytest.skip(extension.status())
    bounds = torch.tensor([0, 2], dtype=torch.int32)
    weights = cpu.prepare_block(make_block(48, 3, 16, 77), torch.float32)
    _, opened = cpu.open_block(torch.randn(2, 48), bounds, weights)
    with pytest.raises(ValueError, match=r"stay is torch.bool \[2\] on cpu, expected contiguous torch.bool \[1\]"):
        cpu.close_block(opened, torch.tensor([True, False]))
