"""Memory for what launches hand to each other. Launchers ask `empty` for it, as they would ask torch.

A lane's launches take it from a `Scratch`. It gives out the same addresses every time, so that a graph can be recorded
without allocating anything, and graphs share one memory however many there are.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterator

import torch
from torch import Tensor

ALIGNMENT = 256  # bytes, as torch aligns


class Scratch:
    """One piece of memory, given out from its beginning after each `begin`. What was given out before is lost then.

    Where it is too small torch's memory is given instead, and `grow` makes it as large as was asked for.
    """

    def __init__(self, device: torch.device) -> None:
        self.memory = torch.empty(0, dtype=torch.uint8, device=device)
        self.used = self.wanted = 0
        self.fixed = False  # while a graph is recorded: may nothing come from torch?

    def begin(self) -> None:
        self.used = 0

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Uninitialised. Raises RuntimeError where a graph is recorded and there is not enough."""
        start, size = self.used, math.prod(shape) * dtype.itemsize
        self.used += -(-size // ALIGNMENT) * ALIGNMENT
        self.wanted = max(self.wanted, self.used)
        if self.used <= len(self.memory):
            return self.memory[start : start + size].view(dtype).view(shape)
        if self.fixed:
            raise RuntimeError(
                f"a graph wants {self.used} bytes of scratch memory, and there are {len(self.memory)}; run its "
                "launches once before they are recorded"
            )
        return torch.empty(shape, dtype=dtype, device=self.memory.device)

    def is_too_small(self) -> bool:
        return self.wanted > len(self.memory)

    def grow(self) -> None:
        """Nothing may be under way that uses the memory, and no graph may have its addresses."""
        self.memory = self.memory.new_empty(0)  # gives the old one back before the larger one is asked for
        self.memory = self.memory.new_empty(self.wanted)


class _Used(threading.local):
    scratch: Scratch | None = None


_used = _Used()


@contextlib.contextmanager
def using(scratch: Scratch) -> Iterator[None]:
    """In this thread `empty` takes memory from there."""
    before, _used.scratch = _used.scratch, scratch
    try:
        yield
    finally:
        _used.scratch = before


def empty(*shape: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Uninitialised memory on the device, from the scratch in use or from torch."""
    if _used.scratch is not None:
        return _used.scratch.empty(shape, dtype)
    return torch.empty(*shape, dtype=dtype, device=device)
