"""An engine pickles as what it was loaded from: where, with which options, and a mark that tells what was there."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .errors import CheckpointError

if TYPE_CHECKING:
    from .api import Engine

MOST_NUMBERS = 1 << 16  # of a tensor that is marked: biases and norms, which every training changes


@dataclass(frozen=True)
class Source:
    """What an engine was loaded from: a path or bundled name, options that it does not show, tensors' checksums."""

    path: str
    options: dict[str, Any]
    sums: dict[str, int]


class Marked(Mapping[str, Tensor]):
    """Tensors, and as they are read a checksum of the small ones."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = tensors
        self.sums: dict[str, int] = {}

    def __getitem__(self, key: str) -> Tensor:
        tensor = self.tensors[key]
        if tensor.numel() <= MOST_NUMBERS:
            self.sums[key] = zlib.crc32(tensor.numpy(force=True).tobytes())
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


def mark(engine: Engine, sums: Mapping[str, int]) -> str:
    """What configs, tokenizer and small tensors of an engine come to: the same for the same checkpoint anywhere."""
    backend = engine.tokenizer.backend
    parts = (engine.checkpoint.backbone, engine.checkpoint.manifest, sorted(sums.items()))
    text = f"{parts!r} {'' if backend is None else backend.to_str()}"
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def load_again(path: str, options: dict[str, Any], was: str) -> Engine:
    """An engine from a pickle; CheckpointError where its checkpoint is gone, or is another by now."""
    from .api import load

    engine = load(path, **options)
    if engine.mark != was:
        raise CheckpointError(
            Path(path), ["is not what it was when this engine was pickled; load the engine and pickle it anew"]
        )
    return engine
