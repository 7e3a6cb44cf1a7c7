"""The checkpoint directory: its files, read and checked. All faults come in one CheckpointError."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from . import file_hashes, weights
from .cascade_manifest import is_cascade, model_path
from .config import BackboneConfig, parse_backbone
from .errors import CheckpointError
from .families import Shapes
from .folder import Folder
from .manifest import Manifest, parse_manifest
from .storage import SCALE as SCALE
from .storage import Stored
from .weights import WEIGHTS as WEIGHTS

CONFIG, MANIFEST = "config.json", "pfengine.json"
CROSS_ENCODER = "config_sentence_transformers.json"
VOCABULARY_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model")
TOKENIZER_FILES = (
    *VOCABULARY_FILES,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
)
# From both configs: what is wrong with the fields `head`, `criterion` and `threshold` of pfengine.json, a sentence each
# (without the file's name), and the shapes of the head's tensors, {} where something is.
ModelCheck = Callable[[BackboneConfig, Manifest], tuple[list[str], Shapes]]
PLAIN = Manifest(system="full-model", head={"type": "classifier"}, criterion="never")
PLAIN_TAGGER = replace(PLAIN, head={"type": "token-classifier"})


@dataclass(frozen=True)
class Checkpoint:
    """A checked checkpoint: configs, fp32 tensors by key (each read on access), and tokenizer files by name, if any."""

    path: Path
    backbone: BackboneConfig
    manifest: Manifest
    tensors: Mapping[str, Tensor]
    tokenizer: Mapping[str, bytes] | None
    weights: file_hashes.HashCheck | None = field(default=None, repr=False, compare=False)  # see `checked`

    def checked(self) -> Checkpoint:
        """Wait until the weights are hashed; CheckpointError where they are not those saved with this checkpoint."""
        if self.weights is not None and (faults := self.weights.faults()):
            raise CheckpointError(self.path, faults)
        return replace(self, weights=None)

    def without_tensors(self) -> Checkpoint:
        return replace(self, tensors={})


def is_checkpoint_file(name: str) -> bool:
    """Whether a file of this name belongs to a checkpoint: it is read with it, and replaced with it."""
    return name in (CONFIG, MANIFEST, *TOKENIZER_FILES) or bool(_WEIGHTS.fullmatch(name))


_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json")


def read_files(
    path: str | os.PathLike[str] | Folder, check: ModelCheck, tensors: Mapping[str, Stored] | None = None
) -> Checkpoint:
    """Read and check a directory of ours, or a plain Hugging Face sequence- or token-classification directory.

    All files are those that were there when the directory was opened. check: see `ModelCheck`; `reader` has the one
    for the heads and criteria there are. tensors: stored ones in place of model.safetensors and its shards.

    Raises CheckpointError with every fault found: unreadable files, wrong or missing fields (file and key named),
    missing, extra or mis-shaped tensors, labels that do not fit the classifier, files that changed meanwhile. Tensors
    that a plain directory has for other models are left alone, with a warning. The weights of a checkpoint that lists
    its files are hashed meanwhile, in a thread of their own; `Checkpoint.checked` waits for the result.
    """
    folder = path if isinstance(path, Folder) else Folder(path)
    faults: list[str] = []
    backbone = parse_backbone(read_config(folder), faults)
    if backbone is None:
        raise CheckpointError(folder.path, faults)
    ours = folder.has(MANIFEST)
    plain = PLAIN_TAGGER if _is_tagger(backbone) else PLAIN
    manifest: Manifest | None = plain
    if ours:
        manifest = parse_manifest(folder.json(MANIFEST), backbone.num_layers, faults)
    elif not faults:
        manifest = replace(plain, exit_layers=(backbone.num_layers,))
    mixed, hashes = _compare(folder, manifest)
    if manifest is None or faults:
        raise CheckpointError(folder.path, faults + mixed)
    head_faults, head_shapes = check(backbone, manifest)
    faults = [f"{MANIFEST}: {fault}" for fault in head_faults]
    if faults or mixed:
        raise CheckpointError(folder.path, faults + mixed)
    stored = weights.find(folder) if tensors is None else tensors
    expected = backbone.encoder_shapes() | head_shapes
    fitting = weights.match(folder, stored, expected, backbone, extra="refuse" if ours else "warn")
    ckpt = Checkpoint(folder.path, backbone, manifest, fitting, tokenizer_files(folder), hashes)
    folder.check()
    return ckpt


def _is_tagger(backbone: BackboneConfig) -> bool:
    """Was a plain directory saved by a token-classification model?"""
    names = backbone.raw.get("architectures")
    return isinstance(names, list) and any(isinstance(n, str) and n.endswith("ForTokenClassification") for n in names)


def _compare(folder: Folder, manifest: Manifest | None) -> tuple[list[str], file_hashes.HashCheck | None]:
    """What differs from the manifest's `files`, except the contents of weights; those are still being hashed."""
    if manifest is None or not manifest.files:
        return [], None
    present = {name: folder.open(name) for name in folder.names if is_checkpoint_file(name) and name != MANIFEST}
    heavy = {name: file for name, file in present.items() if name.endswith(".safetensors")}
    light = {name: file for name, file in present.items() if name not in heavy}
    mixed = file_hashes.listing_faults(manifest.files, present) + file_hashes.content_faults(manifest.files, light)
    return mixed, None if mixed else file_hashes.HashCheck(manifest.files, heavy)


def read_config(folder: Folder) -> Any:
    """The contents of config.json. CheckpointError where there is none, as in a cascade."""
    if is_cascade(folder):
        example = os.path.join(folder.path, model_path(1))
        raise CheckpointError(folder.path, [f"is a cascade; one of its models is needed here, such as {example}"])
    if not folder.has(CONFIG) and (hint := weights.foreign(folder)):
        raise CheckpointError(folder.path, [f"{CONFIG} is missing{hint}"])
    raw = folder.json(CONFIG)
    if isinstance(raw, dict) and folder.has(CROSS_ENCODER):  # sentence-transformers asks this file first
        saved = folder.json(CROSS_ENCODER)
        if isinstance(saved, dict) and isinstance(path := saved.get("activation_fn"), str):
            raw["sentence_transformers"] = {"activation_fn": path}
    return raw


def tokenizer_files(path: str | os.PathLike[str] | Folder) -> dict[str, bytes] | None:
    """Contents of the tokenizer's files by name; None where no vocabulary is among them."""
    folder = path if isinstance(path, Folder) else Folder(path)
    if not any(folder.has(name) for name in VOCABULARY_FILES):
        return None
    return {name: folder.read(name) for name in TOKENIZER_FILES if folder.has(name)}
