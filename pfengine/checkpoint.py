"""The checkpoint directory, read and checked. safetensors only; all faults come in one CheckpointError."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import manifest
from .config import BackboneConfig, EngineConfig, parse_backbone, parse_engine
from .errors import CheckpointError
from .exits import criteria
from .families import Shapes
from .heads import HEADS
from .storage import SCALE, StoredTensors, read_header

CONFIG, ENGINE, WEIGHTS = "config.json", "pfengine.json", "model.safetensors"
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


def read(path: str | os.PathLike[str]) -> Checkpoint:
    """`begin_reading`, and wait until all files are checked."""
    return begin_reading(path).checked()


def begin_reading(path: str | os.PathLike[str]) -> Checkpoint:
    """Read and check a directory of ours, or a plain Hugging Face sequence-classification directory.

    Raises CheckpointError with every fault found: unreadable files, wrong or missing fields (file and key named),
    missing, extra or mis-shaped tensors, labels that do not fit the classifier, files of another checkpoint. Weights
    are hashed meanwhile, in a thread of their own: what comes of it is told by `Checkpoint.checked`.
    """
    path = Path(path)
    if not os.path.isdir(path):
        raise CheckpointError(
            path, ["is no directory; give a checkpoint directory or the name of a bundled checkpoint"]
        )
    faults: list[str] = []
    backbone = parse_backbone(read_json(path, CONFIG), faults)
    if backbone is None:
        raise CheckpointError(path, faults)
    engine: EngineConfig | None = PLAIN
    if (path / ENGINE).exists():
        engine = parse_engine(read_json(path, ENGINE), backbone.num_layers, faults)
    elif not faults:
        engine = replace(PLAIN, exit_layers=(backbone.num_layers,))
    mixed, weights = _compare(path, engine)
    if engine is None or faults:
        raise CheckpointError(path, faults + mixed)
    head_type = engine.head["type"]
    if head_type not in HEADS:
        known = ", ".join(sorted(HEADS))
        raise CheckpointError(path, [f"{ENGINE}: 'head.type' is {head_type!r}; this pfengine has {known}"])
    faults += [f"{ENGINE}: {fault}" for fault in HEADS[head_type].config_faults(engine.head)]
    faults += [f"{ENGINE}: {fault}" for fault in criteria.faults(engine.criterion, engine.threshold)]
    if faults or mixed:
        raise CheckpointError(path, faults + mixed)
    expected = backbone.family.shapes(backbone) | HEADS[head_type].shapes(backbone, engine.head)
    tensors = read_tensors(path, expected, backbone)
    return Checkpoint(path, backbone, engine, tensors, tokenizer_files(path), weights)


def _compare(path: Path, engine: EngineConfig | None) -> tuple[list[str], manifest.Check | None]:
    """What is not as `files` says, apart from the contents of the weights; those are being compared."""
    if engine is None or not engine.files:
        return [], None
    present = [name for name in os.listdir(path) if is_of_checkpoint(name) and name != ENGINE]

    def open_file(name: str) -> BufferedReader:
        return open(path / name, "rb")

    def heavy(name: str) -> bool:
        return name.endswith(".safetensors")

    mixed = manifest.faults(engine.files, present, open_file, lambda name: not heavy(name))
    return mixed, None if mixed else manifest.Check(engine.files, present, open_file, heavy)


def tokenizer_files(path: Path) -> dict[str, bytes] | None:
    """Contents of the tokenizer's files by name; None where no vocabulary is among them."""
    files: dict[str, bytes] = {}
    for name in TOKENIZER_FILES:
        try:
            files[name] = (path / name).read_bytes()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise CheckpointError(path, [f"{name} cannot be read: {error}"]) from None
    return files if any(name in files for name in VOCABULARY_FILES) else None


def read_json(path: Path, file: str) -> Any:
    try:
        return json.loads((path / file).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(path, [f"{file} is missing"]) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise CheckpointError(path, [f"{file} cannot be read: {error}"]) from None


def read_tensors(path: Path, expected: Shapes, config: BackboneConfig) -> StoredTensors:
    """model.safetensors as fp32, its header held against `expected`; one CheckpointError lists all differences."""
    if not (path / WEIGHTS).exists():
        pickles = [file.name for file in path.glob("*.bin")]
        hint = f"; {pickles[0]} is a pickle, which only `pfengine convert` reads" if pickles else ""
        raise CheckpointError(path, [f"{WEIGHTS} is missing{hint}"])
    header = read_header(path, WEIGHTS)
    # Checkpoints from before 2019 call LayerNorm's tensors gamma and beta.
    names = {key.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias"): key
             for key in header}  # fmt: skip
    stored = {key: header[name] for key, name in names.items()}
    quantised = [key for key, value in stored.items() if value.dtype == torch.int8 and key + SCALE in stored]
    scales = {key: stored.pop(key + SCALE) for key in quantised}
    unused = (f"{config.family.prefix}pooler.", *_BUFFERS)
    tensors = {key: value for key, value in stored.items() if key in expected or not _is_unused(key, unused)}
    faults = [f"{WEIGHTS}: '{key}' {list(shape)} is missing" for key, shape in expected.items() if key not in tensors]
    faults += [f"{WEIGHTS}: '{key}' {list(tensors[key].shape)} is not a tensor of this model"
               for key in sorted(set(tensors) - set(expected))]  # fmt: skip
    for key in expected:
        if key in tensors:
            faults += _tensor_faults(key, tensors[key], scales.get(key), expected[key], config)
    if faults:
        raise CheckpointError(path, faults)
    return StoredTensors(
        path, WEIGHTS, {key: names[key] for key in expected}, {key for key in expected if key in scales}
    )


_BUFFERS = ("position_ids", "token_type_ids")  # saved by old transformers, rebuilt by everyone


def _is_unused(key: str, unused: Iterable[str]) -> bool:
    return any(key.startswith(mark) or key.endswith("embeddings." + mark) for mark in unused)


def _tensor_faults(
    key: str, tensor: Tensor, scale: Tensor | None, shape: tuple[int, ...], config: BackboneConfig
) -> list[str]:
    got = tuple(tensor.shape)
    if got != shape:
        if got[1:] == shape[1:] and shape[0] == config.num_labels and key.startswith(config.family.classifier):
            return [f"{CONFIG}: 'id2label' names {shape[0]} labels, but {WEIGHTS} '{key}' has {got[0]} rows"]
        return [f"{WEIGHTS}: '{key}' has shape {list(got)}; it must be {list(shape)}"]
    if tensor.dtype == torch.int8:
        if scale is None:
            return [f"{WEIGHTS}: '{key}' is int8 but '{key}{SCALE}' is missing"]
        if tuple(scale.shape) != shape[:-1] or not scale.is_floating_point():
            return [
                f"{WEIGHTS}: '{key}{SCALE}' is {scale.dtype} {list(scale.shape)}; it must be float32 {list(shape[:-1])}"
            ]
    elif not tensor.is_floating_point():
        return [f"{WEIGHTS}: '{key}' is {tensor.dtype}; weights must be floating point, or int8 with scales"]
    return []
