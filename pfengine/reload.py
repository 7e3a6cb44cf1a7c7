"""An engine pickles as the path and the options it was loaded with, and a mark by which its checkpoint is known."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from torch import Tensor

from .cascade_reader import CascadeCheckpoint
from .checkpoint import Checkpoint
from .errors import CheckpointError

MAX_NUMBERS = 1 << 16  # of a tensor that counts for the mark: biases and norms, which every training changes


@dataclass(frozen=True)
class Source:
    """What an engine was loaded from: a path or bundled name, options it has no attribute for, tensors' checksums."""

    path: str
    options: dict[str, Any]
    sums: dict[str, int]


class SummedTensors(Mapping[str, Tensor]):
    """Tensors; `sums` gets a checksum of each small one as it is read."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = tensors
        self.sums: dict[str, int] = {}

    def __getitem__(self, key: str) -> Tensor:
        tensor = self.tensors[key]
        if tensor.numel() <= MAX_NUMBERS:
            self.sums[key] = zlib.crc32(tensor.numpy(force=True).tobytes())
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


def mark(ckpt: Checkpoint | CascadeCheckpoint, backends: Sequence[Tokenizer | None], sums: Mapping[str, int]) -> str:
    """A hash of configs, tokenizers and small tensors: the same for the same checkpoint, wherever it is."""
    parts: tuple[Any, ...] = (ckpt.backbone, ckpt.manifest, sorted(sums.items()))
    if isinstance(ckpt, CascadeCheckpoint):
        parts += tuple((each.backbone, each.manifest) for each in ckpt.models)
    text = " ".join([repr(parts), *("" if backend is None else backend.to_str() for backend in backends)])
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def reload(load: Callable[..., Any], path: str, options: dict[str, Any], was: str) -> Any:
    """The engine of a pickle; CheckpointError where its checkpoint is gone, or has been replaced.

    load: `api.load`, which a pickle names, so that this module need not import it.
    """
    engine = load(path, **options)
    if engine.mark != was:
        raise CheckpointError(
            Path(path), ["has changed since this engine was pickled; load the engine and pickle it again"]
        )
    return engine
