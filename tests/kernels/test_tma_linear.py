from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pfengine.kernels.configs import Tile
from pfengine.kernels.launch import recording, tma_processors
from pfengine.kernels.linear import arguments_of, launch_by_pointers, linear
from pfengine.kernels.tma_linear import launch_tma, tma_tile

from .conftest import DTYPES, INTERPRETED
from .test_linear import formula

TILES = {
    "one each": Tile(64, 64, 64, 4, 3),
    "wide": Tile(128, 128, 64, 4, 3),
    "persistent": Tile(128, 128, 64, 8, 4, persistent=True),
    "in parts": Tile(128, 256, 64, 8, 3, persistent=True, parts=2),
}
SIXTEEN = [dtype for dtype in DTYPES if dtype != torch.float32]
PROCESSORS = 3  # fewer than there are tiles


@pytest.fixture(params=SIXTEEN, ids=lambda dtype: str(dtype).removeprefix("torch."))
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture
def supported(device: torch.device) -> None:
    if not INTERPRETED and not tma_processors(device):
        pytest.skip("the GPU has no Tensor Memory Accelerator")


def arguments(
    x: Tensor, weight: Tensor, bias: Tensor, count: Tensor, *, source_rows: Tensor | None = None,
    add: Tensor | None = None, add_source_rows: Tensor | None = None, add_from: int = 0, out: Tensor | None = None,
) -> dict[str, Any]:  # fmt: skip
    return arguments_of(x, weight, bias, count, source_rows, add, add_source_rows, add_from, out, x.dtype)


def both(given: dict[str, Any], activation: str, tile: Tile) -> tuple[Tensor, Tensor]:
    """What the two kernels make of the arguments."""
    launch_tma(given, activation, tile, PROCESSORS)
    other = {**given, "out": torch.empty_like(given["out"])}
    launch_by_pointers(other, activation)
    return given["out"], other["out"]


@pytest.mark.usefixtures("supported")
@pytest.mark.parametrize("tile", TILES.values(), ids=TILES)
@pytest.mark.parametrize(
    ("activation", "rows", "used", "outputs", "inputs"),
    [
        ("none", 300, 300, 136, 64),
        ("gelu", 300, 129, 264, 72),  # neither columns nor K are whole blocks
        ("gelu_tanh", 65, 64, 8, 136),
        ("tanh", 1, 1, 64, 64),
        ("relu", 64, 0, 64, 64),
    ],
)
def test_tiles(
    draw: Any, count: Any, check: Any, dtype: torch.dtype, tile: Tile, activation: str, rows: int, used: int,
    outputs: int, inputs: int,
) -> None:  # fmt: skip
    x, weight = draw(rows, inputs, dtype=dtype), draw(outputs, inputs, dtype=dtype, scale=inputs**-0.5)
    bias, room = draw(outputs), torch.full((rows + 130, outputs), 9.0, dtype=dtype, device=x.device)
    x[used:] = float("nan")  # may be read, but no row in use may depend on it
    ours, other = both(arguments(x, weight, bias, count(used), out=room[:rows]), activation, tile)
    check(ours[:used], formula, [x[:used], weight, bias, None, activation])
    assert torch.equal(ours[:used], other[:used])
    assert (room[rows:] == 9).all()
    if used == 0:
        assert (room == 9).all()


@pytest.mark.usefixtures("supported")
@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize("tile", [tile for tile in TILES.values() if tile.parts == 1])  # others never add: `tma_tile`
def test_what_is_added(
    draw: Any, count: Any, check: Any, dtype: torch.dtype, device: torch.device, tile: Tile, moved: bool
) -> None:
    x, weight, bias = draw(150, 64, dtype=dtype), draw(72, 64, dtype=dtype, scale=0.1), draw(72)
    add = draw(170, 100, dtype=dtype) if moved else draw(150, 100, dtype=dtype)
    sources = torch.randperm(170, generator=torch.Generator().manual_seed(0)).int().to(device)[:150] if moved else None
    given = arguments(x, weight, bias, count(140), add=add, add_source_rows=sources, add_from=12)
    ours, other = both(given, "none", tile)
    added = add[:140] if sources is None else add[sources[:140].long()]
    check(ours[:140], formula, [x[:140], weight, bias, added[:, 12:84], "none"])
    assert torch.equal(ours[:140], other[:140])


@pytest.mark.usefixtures("supported")
@pytest.mark.parametrize("tile", TILES.values(), ids=TILES)
def test_rows_by_place(draw: Any, count: Any, check: Any, dtype: torch.dtype, device: torch.device, tile: Tile) -> None:
    x, weight, bias = draw(400, 128, dtype=dtype), draw(264, 128, dtype=dtype, scale=0.1), draw(264)
    sources = torch.randperm(400, generator=torch.Generator().manual_seed(0)).int().to(device)[:270]
    x[sources[259:].long()] = float("nan")
    sources[260:] = 1 << 30  # nobody may read those
    ours, other = both(arguments(x, weight, bias, count(259), source_rows=sources), "gelu", tile)
    check(ours[:259], formula, [x[sources[:259].long()], weight, bias, None, "gelu"])
    assert torch.equal(ours[:259], other[:259])


def test_a_choice_of_kernels(draw: Any, count: Any, dtype: torch.dtype, device: torch.device) -> None:
    """Both take the same arguments, and give the same bits."""
    x, weight, bias = draw(300, 64, dtype=dtype), draw(64, 64, dtype=dtype), draw(64)
    kernels, results = [], []
    for processors in (PROCESSORS, 0):
        with recording(run=True, processors=processors) as launches:
            results.append(linear(x, weight, bias, "gelu", count(300)))
        kernels.append(launches[0].kernel.__name__)
    expected = [bool(tma_processors(device))] * 2 if device.type == "cuda" else [True, False]
    assert kernels == ["_tma_linear_kernel" if tma else "_linear_kernel" for tma in expected]
    assert torch.equal(*results)


def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def chosen(rows: int = 4096, outputs: int = 768, inputs: int = 768, **given: Any) -> Tile | None:
    count, fp32 = meta(1, dtype=torch.int32), torch.float32
    x, weight = given.pop("x", meta(rows, inputs)), given.pop("weight", meta(outputs, inputs))
    return tma_tile(arguments(x, weight, meta(outputs, dtype=fp32), count, **given), "none")


def test_what_the_kernel_takes() -> None:
    fp32, sources = torch.float32, meta(4096, dtype=torch.int32)
    assert chosen() == chosen(inputs=776) == chosen(out=meta(4096, 768)) == chosen(source_rows=sources)
    assert chosen(add=meta(4096, 768)) is not None
    assert chosen(rows=300) == chosen(rows=300, source_rows=sources[:300])
    assert chosen(rows=64) is None
    assert chosen(inputs=772) is None
    assert chosen(outputs=772) is None
    assert chosen(x=meta(4096, 768, dtype=fp32), weight=meta(768, 768, dtype=fp32)) is None
    assert chosen(weight=meta(768, 768, dtype=fp32)) is None
    assert chosen(out=meta(4096, 768, dtype=fp32)) is None
    assert chosen(inputs=776, source_rows=sources) is None
    assert chosen(rows=1 << 22, source_rows=sources) is None
    shifted = torch.zeros(768 * 768 + 1, dtype=torch.bfloat16)[1:].view(768, 768)
    zeros = {"x": torch.zeros(300, 768, dtype=torch.bfloat16), "bias": torch.zeros(768), "columns": 768, "inner": 768}
    zeros |= {"out": torch.zeros(300, 768, dtype=torch.bfloat16), "add": None, "source_rows": None}
    assert tma_tile({**zeros, "weight": torch.zeros(768, 768, dtype=torch.bfloat16)}, "none") is not None
    assert tma_tile({**zeros, "weight": shifted}, "none") is None


@pytest.mark.usefixtures("supported")
@pytest.mark.skipif(INTERPRETED, reason="the order of sums is the GPU's")
@pytest.mark.parametrize(
    ("activation", "adds", "outputs", "inputs"),
    [("none", False, 2304, 768), ("gelu", False, 3072, 768), ("none", True, 768, 3072), ("none", True, 384, 384)],
)
def test_bits_do_not_depend_on_the_number_of_rows(
    draw: Any, count: Any, dtype: torch.dtype, device: torch.device, activation: str, adds: bool, outputs: int,
    inputs: int,
) -> None:  # fmt: skip
    """Nor on the kernel, whether rows are read in order, and how many rows there is room for."""
    most = 12357
    x, weight = draw(most, inputs, dtype=dtype), draw(outputs, inputs, dtype=dtype, scale=inputs**-0.5)
    bias, add = draw(outputs), draw(most, outputs, dtype=dtype) if adds else None
    order = torch.arange(most, dtype=torch.int32, device=device)
    by_pointers = arguments(x, weight, bias, count(most), add=add)
    launch_by_pointers(by_pointers, activation)
    expected = by_pointers["out"]
    for rows in (1, 63, 64, 65, 200, 300, 1500, 3088, most):
        for room in {rows, most}:
            part = None if add is None else add[:room]
            for sources in (None, order[:room]):
                ours = linear(x[:room], weight, bias, activation, count(rows), add=part, source_rows=sources)
                assert torch.equal(ours[:rows], expected[:rows]), (rows, room, sources is None)


@pytest.mark.usefixtures("supported")
@pytest.mark.skipif(INTERPRETED, reason="needs CUDA graphs")
def test_a_graph_records_descriptors_by_value(draw: Any, count: Any, dtype: torch.dtype) -> None:
    x, weight, bias, few = draw(3088, 768, dtype=dtype), draw(768, 768, dtype=dtype, scale=0.04), draw(768), count(3088)
    out = torch.empty_like(x)
    linear(x, weight, bias, "gelu", few, out=out)  # compiled
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        linear(x, weight, bias, "gelu", few, out=out)
    for number in (3088, 100):
        x.copy_(draw(3088, 768, dtype=dtype))
        few.fill_(number)
        out.fill_(9)
        graph.replay()
        assert torch.equal(out[:number], linear(x, weight, bias, "gelu", count(number))[:number])
        assert (out[-(-number // 128) * 128 :] == 9).all()
