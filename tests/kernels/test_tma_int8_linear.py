"""int8 products in tiles that the Tensor Memory Accelerator copies: the bits of the kernel that reads by pointers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pfengine.kernels.configs import Tile
from pfengine.kernels.int8_linear import int8_linear, launch_by_pointers
from pfengine.kernels.launch import recording, tma_processors
from pfengine.kernels.quantise import Quantised
from pfengine.kernels.tma_linear import launch_tma

from .test_int8_linear import Weight, of_floats
from .test_tma_linear import PROCESSORS, TILES, supported

__all__ = ["supported"]  # a fixture
IN_BYTES = {name: tile._replace(block_k=2 * tile.block_k) for name, tile in TILES.items()}
each_tile = pytest.mark.parametrize("tile", [
    pytest.param(tile, id=name, marks=[] if tile.persistent else pytest.mark.slow) for name, tile in IN_BYTES.items()
])  # fmt: skip
pytestmark = pytest.mark.usefixtures("supported")


def both(
    tile: Tile, rows: Quantised, weights: Weight, activation: str, count: Tensor, **options: Any
) -> tuple[Tensor, Tensor]:
    """By this tile, and by pointers, in fp16."""
    with recording() as launches:
        out, gated = int8_linear(rows, *weights, activation, count, torch.float16, **options), "gated" in options
    ours, other = (launches[0].arguments | {"out": torch.full_like(out, 9)} for _ in range(2))
    launch_tma(ours, activation, tile, PROCESSORS, gated)
    launch_by_pointers(other, activation, gated)
    return ours["out"], other["out"]


@each_tile
@pytest.mark.parametrize(
    ("activation", "tokens", "used", "outputs", "inputs"),
    [("gelu", 300, 129, 264, 144), ("none", 65, 65, 8, 256), ("relu", 64, 0, 64, 128)],
)
def test_tiles(
    draw: Any, count: Any, tile: Tile, activation: str, tokens: int, used: int, outputs: int, inputs: int
) -> None:
    rows, weights, _, _ = of_floats(draw, tokens, outputs, inputs)
    rows.steps[used:] = float("nan")  # may be read, but no row in use may depend on it
    ours, other = both(tile, rows, weights, activation, count(used))
    assert torch.equal(ours[:used], other[:used])
    assert used or bool((ours == 9).all())


@each_tile
def test_rows_by_place_and_gates(draw: Any, count: Any, device: torch.device, tile: Tile) -> None:
    rows, weights, _, _ = of_floats(draw, 400, 272, 256)
    sources = torch.randperm(400, generator=torch.Generator().manual_seed(0)).int().to(device)[:270]
    sources[260:] = 1 << 30  # nobody may read those
    ours, other = both(tile, rows, weights, "gelu", count(259), source_rows=sources, gated=True)
    assert torch.equal(ours[:259], other[:259])


@pytest.mark.parametrize("moved", [False, True])
def test_what_is_added(draw: Any, count: Any, device: torch.device, moved: bool) -> None:
    rows, weights, _, _ = of_floats(draw, 150, 72, 128)
    sources = torch.randperm(150, generator=torch.Generator().manual_seed(0)).int().to(device) if moved else None
    added = {"add": draw(150, 100, dtype=torch.float16), "add_source_rows": sources, "add_from": 12}
    ours, other = both(IN_BYTES["persistent"], rows, weights, "none", count(140), **added)
    assert torch.equal(ours[:140], other[:140])


@pytest.mark.parametrize(
    ("inputs", "outputs", "dtype", "taken"),
    [
        (64, 64, torch.float16, True),
        (72, 64, torch.float16, False),  # rows of x are not aligned
        (64, 68, torch.float16, False),  # rows of the result are not
        (64, 64, torch.float32, False),
    ],
)
def test_a_choice_of_kernels(
    draw: Any, count: Any, device: torch.device, inputs: int, outputs: int, dtype: torch.dtype, taken: bool
) -> None:
    rows, weights, _, _ = of_floats(draw, 300, outputs, inputs)
    results = []
    for processors in (PROCESSORS, 0):
        with recording(run=True, processors=processors) as launches:
            results.append(int8_linear(rows, *weights, "gelu", count(300), dtype))
        there = tma_processors(device) if device.type == "cuda" else processors
        assert launches[0].kernel.__name__ == ("_tma_linear_kernel" if taken and there else "_int8_linear_kernel")
    assert torch.equal(*results)
