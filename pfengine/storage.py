"""Weights in a safetensors file: read one at a time when they are asked for; int8 rows with their scales."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .errors import CheckpointError

SCALE = ".scale"  # key suffix of the fp32 scales of an int8-rows tensor
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


@contextlib.contextmanager
def _open(path: Path, file: str) -> Iterator[Any]:
    """The file's handle; what goes wrong with it is a CheckpointError."""
    try:
        with safe_open(path / file, framework="pt") as handle:
            yield handle
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(path, [f"{file} is truncated or corrupt: {error}; copy it again"]) from None


def open_safetensors(path: Path, file: str) -> dict[str, Tensor]:
    """All tensors of one safetensors file as stored; a truncated or corrupt file is a CheckpointError."""
    with _open(path, file) as handle:
        return {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118  (no dict)


def read_header(path: Path, file: str) -> dict[str, Tensor]:
    """Every tensor's shape and dtype, as a tensor without numbers; a dtype unknown here is given as bool.

    A truncated or corrupt file is a CheckpointError.
    """
    with _open(path, file) as handle:
        slices = {key: handle.get_slice(key) for key in handle.keys()}  # noqa: SIM118  (no dict)
        return {
            key: torch.empty(part.get_shape(), dtype=_DTYPES.get(part.get_dtype(), torch.bool), device="meta")
            for key, part in slices.items()
        }


def give_back() -> None:
    """Lets the C library return what it keeps of freed tensors; nothing where it cannot."""
    if _trim is not None:
        _trim(0)


_trim: Any = None
with contextlib.suppress(AttributeError, OSError, TypeError):
    _trim = ctypes.CDLL(None).malloc_trim  # glibc's


class StoredTensors(Mapping[str, Tensor]):
    """The tensors of a file as float32, each read anew when it is asked for: nothing is held in between."""

    def __init__(self, path: Path, file: str, names: dict[str, str], scales: set[str]) -> None:
        """names: our key -> the file's; scales: those of ours that are int8 rows."""
        self.path, self.file, self.names, self.scales = path, file, names, scales

    def __getitem__(self, key: str) -> Tensor:
        name = self.names[key]
        try:
            with safe_open(self.path / self.file, framework="pt") as handle:
                tensor = handle.get_tensor(name)
                if key in self.scales:
                    return tensor.float().mul_(handle.get_tensor(name + SCALE).float().unsqueeze(-1))
                # a copy: what is mapped from a file changes, or is gone, when the file is
                return tensor.to(torch.float32, copy=True)
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(self.path, [f"{self.file} cannot be read any more: {error}"]) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def quantise_rows(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Matrices and embeddings as int8 with one fp32 scale a row (last axis), symmetric; the rest as it is."""
    stored: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if tensor.dim() < 2 or tensor.shape[-1] < 16 or key.endswith("bias"):
            stored[key] = tensor
            continue
        scale = tensor.abs().amax(-1).clamp(min=torch.finfo(torch.float32).tiny) / 127
        stored[key] = (tensor / scale.unsqueeze(-1)).round().clamp(-127, 127).to(torch.int8)
        stored[key + SCALE] = scale
    return stored
