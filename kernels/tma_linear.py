"""`linear` for 16-bit and int8 numbers, in tiles that the Tensor Memory Accelerator of `launch.TMA_MAJORS` copies."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from . import configs
from .dependent import wait_for_turn
from .functions import finish
from .launch import launch
from .quantise import scaled

INT8 = ("steps", "offsets", "weight_steps", "weight_sums")  # what `int8_linear` has besides
ALIGNMENT = 16  # bytes: of the first number of each row


@triton.jit
def _tma_linear_kernel(
    x, weight, bias, add, out, source_rows, add_source_rows, count, columns, inner, add_width, add_from,
    steps, offsets, weight_steps, weight_sums,
    ACTIVATION: tl.constexpr, PRECISION: tl.constexpr, GATED: tl.constexpr, PERSISTENT: tl.constexpr,
    PARTS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """weight, out and, without source_rows, x are descriptors: nothing is read or written outside of those tensors.

    The last tile reads and writes rows past `count`. steps to weight_sums: of int8 numbers, otherwise None.
    PERSISTENT: each program computes every `num_programs`th tile, and copies the next one meanwhile; otherwise one.
    """
    wait_for_turn()
    rows = tl.load(count)
    tiles = tl.cdiv(rows, BLOCK_M) * tl.cdiv(columns, BLOCK_N)
    if PERSISTENT:
        for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=True):
            compute(
                tile, x, weight, bias, add, out, source_rows, add_source_rows, rows, columns, inner, add_width,
                add_from, steps, offsets, weight_steps, weight_sums,
                ACTIVATION, PRECISION, GATED, PARTS, BLOCK_M, BLOCK_N, BLOCK_K,
            )  # fmt: skip
    elif tl.program_id(0) < tiles:  # no loop: what is written takes the shared memory of what was read
        compute(
            tl.program_id(0), x, weight, bias, add, out, source_rows, add_source_rows, rows, columns, inner, add_width,
            add_from, steps, offsets, weight_steps, weight_sums,
            ACTIVATION, PRECISION, GATED, PARTS, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip


@triton.jit
def compute(
    tile, x, weight, bias, add, out, source_rows, add_source_rows, rows, columns, inner, add_width, add_from,
    steps, offsets, weight_steps, weight_sums,
    ACTIVATION: tl.constexpr, PRECISION: tl.constexpr, GATED: tl.constexpr, PARTS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One tile; they are numbered along the rows of blocks."""
    blocks_n = tl.cdiv(columns, BLOCK_N)
    first_row, first_column = tile // blocks_n * BLOCK_M, tile % blocks_n * BLOCK_N
    if source_rows is not None:
        row, k = first_row + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_K)
        is_row = row < rows
        source = tl.load(source_rows + row, mask=is_row, other=0)
        x_at = x + (source[:, None] * inner + k[None, :])
    if steps is None:
        total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    else:
        total = tl.zeros((BLOCK_M, BLOCK_N), tl.int32)
    for start in range(0, inner, BLOCK_K):
        if source_rows is not None:
            a = tl.load(x_at + start, mask=is_row[:, None], other=0.0)
        else:
            a = x.load([first_row, start])
        total = tl.dot(a, weight.load([first_column, start]).T, total, input_precision=PRECISION, out_dtype=total.dtype)
    if PARTS == 1:
        parts = (total,)
    else:
        parts = tl.split(tl.permute(tl.reshape(total, (BLOCK_M, 2, BLOCK_N // 2)), (0, 2, 1)))
    for i in tl.static_range(PARTS):  # side by side, in fewer registers
        column = first_column + i * (BLOCK_N // PARTS)
        part = parts[i]
        if steps is not None:
            row, n = first_row + tl.arange(0, BLOCK_M), column + tl.arange(0, BLOCK_N // PARTS)
            is_row = row < rows
            if source_rows is not None:
                row = tl.load(source_rows + row, mask=is_row, other=0)
            part = scaled(part, steps, offsets, row, is_row, weight_steps, weight_sums, n, n < columns)
        part = finish(
            part, bias, add, add_source_rows, first_row, column, rows, columns, add_width, add_from,
            ACTIVATION, PRECISION, GATED,
        )  # fmt: skip
        out.store([first_row, column // 2 if GATED else column], part.to(out.dtype))


def tma_tile(arguments: dict[str, Any], activation: str) -> configs.Tile | None:
    """The tile for arguments of `linear` or `int8_linear`; None where their other kernel has to be taken, or is faster.

    This one takes matrices of one 16-bit dtype, or int8 ones whose product has 16 bits, with aligned rows. Rows that
    are read by their place must be those of whole blocks of K, and x must have fewer than 2^31 numbers.
    """
    x, weight, out = (arguments[name] for name in ("x", "weight", "out"))
    rows, columns, inner = len(out), arguments["columns"], arguments["inner"]
    if x.dtype != weight.dtype or x.dtype not in (torch.int8, out.dtype) or out.dtype == torch.float32:
        return None
    if any(
        matrix.stride(0) * matrix.element_size() % ALIGNMENT or matrix.data_ptr() % ALIGNMENT
        for matrix in (x, weight, out)
    ):
        return None
    tile = configs.tma_tile(rows, columns, inner, activation, adds=arguments["add"] is not None)
    if tile is not None and x.dtype == torch.int8:
        tile = tile._replace(block_k=2 * tile.block_k)  # as many bytes
    if tile is None or arguments["source_rows"] is None:
        return tile
    return tile if inner % tile.block_k == 0 and x.numel() < 2**31 else None


def launch_tma(
    arguments: dict[str, Any], activation: str, tile: configs.Tile, processors: int, gated: bool = False
) -> None:
    """Launch the kernel. processors: multiprocessors of the device."""
    rows, columns = len(arguments["out"]), arguments["columns"]
    precision = configs.precision(arguments["weight"].dtype)
    tiles = triton.cdiv(rows, tile.block_m) * triton.cdiv(columns, tile.block_n)
    blocks = {"weight": [tile.block_n, tile.block_k], "out": [tile.block_m, tile.block_n // tile.parts]}
    if gated:
        blocks["out"][1] //= 2
    if arguments["source_rows"] is None:
        blocks["x"] = [tile.block_m, tile.block_k]
    launch(
        _tma_linear_kernel,
        (min(tiles, processors) if tile.persistent else tiles,),
        arguments | {name: arguments.get(name) for name in INT8},
        {
            "ACTIVATION": activation, "PRECISION": precision, "GATED": gated, "PERSISTENT": tile.persistent,
            "PARTS": tile.parts, "BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n, "BLOCK_K": tile.block_k,
        },
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        blocks=blocks,
    )  # fmt: skip
