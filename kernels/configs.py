"""Tiles and launch options: a fixed table, no tuning at run time.

A row's sums must not depend on how many rows there are. So BLOCK_K, the order of K, and the matrix instruction are the
same at every size. The rows and columns of a tile may depend on the size. BLOCK_M of at least 64, with 4 warps per 64
rows, keeps 16-bit products on one instruction (wgmma on sm_90, mma on sm_80) down to a single row.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class Tile(NamedTuple):
    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    persistent: bool = False  # does each program compute many tiles?
    parts: int = 1  # of a tile's columns, one after the other at its end
    max_registers: int | None = None  # per thread


def tile(rows: int, columns: int, dtype: torch.dtype, adds: bool = False) -> Tile:
    """The tile for a product with at most `rows` rows. adds: is something added to the product?

    Two programs fit on a multiprocessor at a time, so that one computes while the other waits for memory.
    """
    if dtype == torch.float32:
        # left alone, the compiler spills some of the larger one to make room for another program
        return Tile(32, 32, 32, 4, 2) if rows <= 256 else Tile(64, 64, 32, 4, 2, max_registers=255)
    if rows <= 64:
        return Tile(64, 16, 64, 4, 8)  # reading the weights takes all the time: many programs read far ahead
    if rows <= 256:
        return Tile(64, 32 if columns <= 1024 else 64, 64, 4, 4)
    # few columns are few tiles; and with what is added, a tile of 128 rows would not fit twice without spills
    if rows <= 2048 or columns <= 1024 or adds:
        return Tile(64, 128, 64, 4, 3)
    return Tile(128, 128, 64, 8, 3, max_registers=128)


def tma_tile(rows: int, columns: int, inner: int, activation: str, adds: bool = False) -> Tile | None:
    """Likewise for `tma_linear`, by what was fastest on an H200; None where the other kernel was.

    adds: is something added to the product?
    """
    if rows <= 64 or (rows <= 256 and inner < 1536):
        return None
    if rows <= 256:
        return Tile(64, 32, 64, 4, 8)
    if rows <= 2048:
        if adds:
            return Tile(64, 64, 64, 4, 6) if rows <= 1024 else Tile(64, 128, 64, 4, 4)
        if rows <= 1024:  # with three stages there is room for three programs on a multiprocessor, otherwise for two
            return Tile(64, 128, 64, 4, 4 if columns <= 2304 else 3)
        return Tile(128, 128, 64, 4, 3)
    if adds or columns < 2048 or (rows <= 4096 and activation != "none"):
        return Tile(128, 128, 64, 8, 4, persistent=True)
    return Tile(128, 256, 64, 8, 3, persistent=True, parts=1 if activation == "none" else 2)


def int8_tile(rows: int, columns: int) -> Tile:
    """Likewise for `int8_linear`: tiles of as many bytes as `tile` gives 16-bit numbers. Not measured on a GPU.

    Sums are exact, so that BLOCK_K may depend on the size, too.
    """
    if rows <= 64:
        return Tile(64, 16, 128, 4, 8)
    if rows <= 256:
        return Tile(64, 32 if columns <= 1024 else 64, 128, 4, 4)
    return Tile(64, 128, 128, 4, 3)  # a tile of 128 rows would fit only once on a multiprocessor


ROWS = (64, 256, 1024, 2048, 4096, 8192)  # one for each line of the tables above


def precision(dtype: torch.dtype) -> str:
    """The input precision of products: float32 stays float32, never tf32."""
    return "ieee" if dtype == torch.float32 else "tf32"
