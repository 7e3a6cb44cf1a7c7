"""Tensors in files: safetensors headers, tensors read one at a time on access, int8 rows with scales."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .errors import CheckpointError, shown
from .folder import File

SCALE = ".scale"  # key suffix of the fp32 scales of an int8-rows tensor
MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit
MAX_DIMENSIONS = 64
_BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8,
         "F8_E5M2FNUZ": 8, "U16": 16, "U32": 32, "U64": 64, "C64": 64}  # fmt: skip
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_BITS |= {name: 8 * dtype.itemsize for name, dtype in _DTYPES.items()}


class Stored(NamedTuple):
    """A tensor in a file."""

    file: str
    dtype: torch.dtype | None  # None for types that weights do not have: 4-bit, 8-bit floating point, unsigned, complex
    shape: tuple[int, ...]
    read: Callable[[], Tensor]  # into new memory


def read_header(file: File) -> dict[str, Stored]:
    """All tensors of a safetensors file; CheckpointError where it is truncated or its header is wrong."""
    try:
        if file.size < 8:
            raise ValueError(f"it has {file.size} bytes")
        file.refuse_pointer()
        length = int.from_bytes(file.read(0, 8), "little")
        if length > min(MAX_HEADER_BYTES, file.size - 8):
            raise ValueError(f"its header claims to have {length:,} bytes")
        header = json.loads(file.read(8, length).decode("utf-8"), object_pairs_hook=_without_duplicates)
        return _tensors(file, header, 8 + length)
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:
        raise CheckpointError(file.path, [f"{file.name} is truncated or corrupt: {error}; copy it again"]) from None


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    known = dict(pairs)
    if len(known) < len(pairs):
        raise ValueError("its header has a key twice")
    return known


def _tensors(file: File, header: Any, base: int) -> dict[str, Stored]:
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    spans, tensors = [], {}
    for key, entry in header.items():
        if key == "__metadata__":
            continue
        if not isinstance(entry, dict):
            raise ValueError(f"'{key}' is not described by an object")
        kind, shape, span = entry.get("dtype"), _sizes(entry.get("shape")), _sizes(entry.get("data_offsets"))
        if not isinstance(kind, str) or kind not in _BITS:
            raise ValueError(f"'{key}' has the dtype {shown(kind)}, which safetensors does not know")
        if shape is None or len(shape) > MAX_DIMENSIONS:
            raise ValueError(f"'{key}' has no shape")
        if span is None or len(span) != 2:
            raise ValueError(f"'{key}' has no offsets")
        start, stop = span
        if math.prod(max(1, size) for size in shape) >= 2**63:
            raise ValueError(f"'{key}' is larger than any file")
        if math.prod(shape) * _BITS[kind] != (stop - start) * 8:
            raise ValueError(f"'{key}' does not have as many bytes as its shape and dtype need")
        spans.append((start, stop))
        read = functools.partial(_read, file, _DTYPES.get(kind), shape, base + start, stop - start)
        tensors[key] = Stored(file.name, _DTYPES.get(kind), shape, read)
    end = 0
    for start, stop in sorted(spans):
        if start != end:
            raise ValueError(f"its tensors overlap, or leave a gap, at byte {end:,}")
        end = stop
    if base + end != file.size:
        raise ValueError(f"it has {file.size:,} bytes, but its header describes {base + end:,}")
    return tensors


def _sizes(value: Any) -> tuple[int, ...] | None:
    """A list of non-negative integers as a tuple; None for anything else."""
    whole = isinstance(value, list) and all(type(size) is int and 0 <= size < 2**63 for size in value)
    return tuple(value) if whole else None


def _read(file: File, dtype: torch.dtype | None, shape: tuple[int, ...], offset: int, size: int) -> Tensor:
    assert dtype is not None
    content = torch.empty(size, dtype=torch.uint8, device="cpu")
    file.read_into(content.numpy().data, offset)
    return content.view(dtype).reshape(shape)


class StoredTensors(Mapping[str, Tensor]):
    """Stored tensors as float32, each read from its file on every access: none is kept in memory.

    A value that is not finite is a CheckpointError with the tensor's name.
    """

    def __init__(self, path: Path, tensors: Mapping[str, Stored], scales: Mapping[str, Stored] | None = None) -> None:
        """scales: for tensors stored as int8 rows."""
        self.path, self._tensors, self._scales = path, tensors, scales or {}

    def __getitem__(self, key: str) -> Tensor:
        stored = self._tensors[key]
        tensor = stored.read().to(torch.float32)
        if key in self._scales:
            tensor.mul_(self._scales[key].read().to(torch.float32).unsqueeze(-1))
        if count := _count_not_finite(tensor.numpy()):
            what = f"'{key}' has {count:,} NaN or infinite values among its {tensor.numel():,} (as float32)"
            raise CheckpointError(
                self.path,
                [f"{stored.file}: {what}; training may have diverged: use an earlier checkpoint"],
            )
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def _count_not_finite(values: np.ndarray) -> int:
    with np.errstate(over="ignore", invalid="ignore"):
        if math.isfinite(values.sum()):  # one pass without extra memory; NaN or infinity would show in the sum
            return 0
    return int(np.count_nonzero(~np.isfinite(values)))


def quantise_rows(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Matrices and embeddings as symmetric int8 with one fp32 scale per row (last axis); other tensors unchanged."""
    stored: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if tensor.dim() < 2 or tensor.shape[-1] < 16 or key.endswith("bias"):
            stored[key] = tensor
            continue
        scale = tensor.abs().amax(-1).clamp(min=torch.finfo(torch.float32).tiny) / 127
        stored[key] = (tensor / scale.unsqueeze(-1)).round().clamp(-127, 127).to(torch.int8)
        stored[key + SCALE] = scale
    return stored


def trim_heap() -> None:
    """Let the C library return the memory of freed tensors to the system, where it can (malloc_trim of glibc)."""
    if _trim is not None:
        _trim(0)


_trim: Any = None
with contextlib.suppress(AttributeError, OSError, TypeError):
    _trim = ctypes.CDLL(None).malloc_trim  # glibc's
