"""The checkpoint directory, read and checked. safetensors only; all faults come in one CheckpointError."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from . import manifest, weights
from .config import BackboneConfig, EngineConfig, parse_backbone, parse_engine
from .errors import CheckpointError, shown
from .exits import text as criteria
from .folder import Folder
from .heads import HEADS
from .storage import SCALE as SCALE
from .storage import Stored
from .weights import WEIGHTS as WEIGHTS

CONFIG, ENGINE = "config.json", "pfengine.json"
VOCABULARY_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model")
TOKENIZER_FILES = (
    *VOCABULARY_FILES,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
)
PLAIN = EngineConfig(system="full-model", head={"type": "classifier"}, criterion="never")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint, checked: configs, fp32 tensors by key (read when asked for), tokenizer files by name if any."""

    path: Path
    backbone: BackboneConfig
    engine: EngineConfig
    tensors: Mapping[str, Tensor]
    tokenizer: Mapping[str, bytes] | None
    weights: manifest.Check | None = field(default=None, repr=False, compare=False)  # see `checked`

    def checked(self) -> Checkpoint:
        """Waits until the weights are known to be those saved with this checkpoint; CheckpointError where not."""
        if self.weights is not None and (faults := self.weights.faults()):
            raise CheckpointError(self.path, faults)
        return replace(self, weights=None)


def is_of_checkpoint(name: str) -> bool:
    """Is a file of this name read as part of a checkpoint, and replaced with it?"""
    return name in (CONFIG, ENGINE, *TOKENIZER_FILES) or bool(_WEIGHTS.fullmatch(name))


_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json")


def read(path: str | os.PathLike[str] | Folder, tensors: Mapping[str, Stored] | None = None) -> Checkpoint:
    """`begin_reading`, and wait until all files are checked."""
    return begin_reading(path, tensors).checked()


def begin_reading(path: str | os.PathLike[str] | Folder, tensors: Mapping[str, Stored] | None = None) -> Checkpoint:
    """Read and check a directory of ours, or a plain Hugging Face sequence-classification directory.

    All files are those that lay there when the directory was opened. tensors: stored ones in place of
    model.safetensors and its shards.

    Raises CheckpointError with every fault found: unreadable files, wrong or missing fields (file and key named),
    missing, extra or mis-shaped tensors, labels that do not fit the classifier, files that changed meanwhile. Tensors
    that a plain directory has for other models are left alone, with a warning. The weights of a checkpoint that lists
    its files are hashed meanwhile, in a thread of their own: what comes of it is told by `Checkpoint.checked`.
    """
    folder = path if isinstance(path, Folder) else Folder(path)
    faults: list[str] = []
    backbone = parse_backbone(read_config(folder), faults)
    if backbone is None:
        raise CheckpointError(folder.path, faults)
    ours = folder.has(ENGINE)
    engine: EngineConfig | None = PLAIN
    if ours:
        engine = parse_engine(folder.json(ENGINE), backbone.num_layers, faults)
    elif not faults:
        engine = replace(PLAIN, exit_layers=(backbone.num_layers,))
    mixed, checking = _compare(folder, engine)
    if engine is None or faults:
        raise CheckpointError(folder.path, faults + mixed)
    head_type = engine.head["type"]
    if head_type not in HEADS:
        known = ", ".join(sorted(HEADS))
        raise CheckpointError(folder.path, [f"{ENGINE}: 'head.type' is {shown(head_type)}; this pfengine has {known}"])
    faults += [f"{ENGINE}: {fault}" for fault in HEADS[head_type].config_faults(engine.head)]
    faults += [f"{ENGINE}: {fault}" for fault in criteria.faults(engine.criterion, engine.threshold)]
    if faults or mixed:
        raise CheckpointError(folder.path, faults + mixed)
    expected = backbone.family.shapes(backbone) | HEADS[head_type].shapes(backbone, engine.head)
    stored = weights.find(folder) if tensors is None else tensors
    fitting = weights.fit(folder, stored, expected, backbone, extra="refuse" if ours else "warn")
    ckpt = Checkpoint(folder.path, backbone, engine, fitting, tokenizer_files(folder), checking)
    folder.check()
    return ckpt


def _compare(folder: Folder, engine: EngineConfig | None) -> tuple[list[str], manifest.Check | None]:
    """What is not as `files` says, apart from the contents of the weights; those are being compared."""
    if engine is None or not engine.files:
        return [], None
    present = {name: folder.open(name) for name in folder.names if is_of_checkpoint(name) and name != ENGINE}
    heavy = {name: file for name, file in present.items() if name.endswith(".safetensors")}
    light = {name: file for name, file in present.items() if name not in heavy}
    mixed = manifest.listing_faults(engine.files, present) + manifest.content_faults(engine.files, light)
    return mixed, None if mixed else manifest.Check(engine.files, heavy)


def read_config(folder: Folder) -> Any:
    """What config.json holds."""
    if not folder.has(CONFIG) and (hint := weights.foreign(folder)):
        raise CheckpointError(folder.path, [f"{CONFIG} is missing{hint}"])
    return folder.json(CONFIG)


def tokenizer_files(path: str | os.PathLike[str] | Folder) -> dict[str, bytes] | None:
    """Contents of the tokenizer's files by name; None where no vocabulary is among them."""
    folder = path if isinstance(path, Folder) else Folder(path)
    if not any(folder.has(name) for name in VOCABULARY_FILES):
        return None
    return {name: folder.read(name) for name in TOKENIZER_FILES if folder.has(name)}
