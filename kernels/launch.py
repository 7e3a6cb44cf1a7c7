"""How kernels are launched; for reports also what would be launched."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import dependent

_interpreting = threading.Lock()  # the interpreter keeps its position in globals, and lanes are threads
TMA_MAJORS = (9, 10)  # compute capabilities; later ones, of desktops, have less shared memory than our tiles take
FLOATS = (torch.float32, torch.float16, torch.bfloat16)


class Launch(NamedTuple):
    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]  # tensors, numbers, None
    constants: dict[str, Any]
    num_warps: int
    num_stages: int
    max_registers: int | None = None  # per thread; without a limit the compiler may spill a few to use fewer
    blocks: dict[str, list[int]] | None = None  # tensors that it reads or writes in such blocks, by descriptors

    def run(self, arguments: dict[str, Any] | None = None) -> None:
        """Launch on the device of its tensors, with other arguments where they are given."""
        arguments = self.arguments if arguments is None else arguments
        device = next(value.device for value in arguments.values() if isinstance(value, Tensor))
        if dependent.IS_ON and device.type == "cuda":
            dependent.check(torch.cuda.get_device_capability(device))
        with torch.cuda.device(device) if device.type == "cuda" else _interpreting:
            if self.blocks:
                arguments = {**arguments, **_descriptors(arguments, self.blocks)}
            self.kernel[self.grid](**arguments, **self.constants, **self.options)

    @property
    def options(self) -> dict[str, Any]:
        """What it is compiled with."""
        limit: dict[str, Any] = {} if self.max_registers is None else {"maxnreg": self.max_registers}
        limit |= {"launch_pdl": True} if dependent.IS_ON else {}
        return {"num_warps": self.num_warps, "num_stages": self.num_stages, "enable_fp_fusion": True, **limit}


def _descriptors(arguments: dict[str, Any], blocks: dict[str, list[int]]) -> dict[str, Any]:
    """Parameters by value, so that a CUDA graph records them like pointers."""
    from triton.tools.tensor_descriptor import TensorDescriptor

    return {name: TensorDescriptor.from_tensor(arguments[name], block) for name, block in blocks.items()}


_recorded: list[Launch] | None = None
_run = True
_assumed = 0


@contextlib.contextmanager
def recording(run: bool = False, processors: int = 0) -> Iterator[list[Launch]]:
    """Launchers append what they launch to the list. run: also launch it; if not, tensors may be on the meta device.

    processors: what `tma_processors` says of tensors that are on no GPU.
    """
    global _recorded, _run, _assumed
    before, (_recorded, _run, _assumed) = (_recorded, _run, _assumed), ([], run, processors)
    try:
        yield _recorded
    finally:
        _recorded, _run, _assumed = before


def tma_processors(device: torch.device) -> int:
    """How many multiprocessors a GPU has, if `tma_linear` is for such a GPU; 0 if not. Never waits for the GPU."""
    return _tma_processors(device) if device.type == "cuda" else _assumed


@functools.cache
def _tma_processors(device: torch.device) -> int:
    chip = torch.cuda.get_device_properties(device)
    return chip.multi_processor_count if chip.major in TMA_MAJORS else 0


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    arguments: dict[str, Any],
    constants: dict[str, Any],
    *,
    num_warps: int = 4,
    num_stages: int = 2,
    max_registers: int | None = None,
    blocks: dict[str, list[int]] | None = None,
) -> None:
    """kernel[grid](...) on the device of its tensors; nothing for an empty grid."""
    if not all(grid):
        return
    one = Launch(kernel, grid, arguments, constants, num_warps, num_stages, max_registers, blocks)
    if _recorded is not None:
        _recorded.append(one)
    if _run:
        one.run()


def check(name: str, x: Tensor, dtypes: torch.dtype | Sequence[torch.dtype], *shape: int, like: Tensor) -> None:
    """Raise ValueError unless x is contiguous, of one of the dtypes and this shape, and on the device of `like`.

    -1 in the shape: any size.
    """
    dtypes = [dtypes] if isinstance(dtypes, torch.dtype) else dtypes
    fits = x.dim() == len(shape) and all(want in (-1, size) for size, want in zip(x.shape, shape, strict=True))
    if x.dtype not in dtypes or not fits or not x.is_contiguous() or x.device != like.device:
        wanted = f"contiguous {' or '.join(map(str, dtypes))} {list(shape)} on {like.device}"
        raise ValueError(f"{name} is {x.dtype} {list(x.shape)} on {x.device}, expected {wanted}")


def rows_of(x: Tensor, source_rows: Tensor | None) -> int:
    """How many rows are read of x: all, or R of `source_rows`, int32 [R]; ValueError where it is anything else."""
    if source_rows is None:
        return x.shape[0]
    check("source_rows", source_rows, torch.int32, -1, like=x)
    return source_rows.shape[0]


def check_count(name: str, count: Tensor, like: Tensor) -> None:
    """Raise ValueError unless `count` is a number on the device: int32 [1]."""
    check(name, count, torch.int32, 1, like=like)


def power_of_two(size: int, least: int = 1) -> int:
    """The smallest power of two that is at least `size`, and at least `least`, itself a power of two."""
    return max(least, 1 << (max(size, 1) - 1).bit_length())


def warps(block: int) -> int:
    """Warps for a row that one program holds: about eight numbers per thread."""
    return min(8, max(1, block // 256))
