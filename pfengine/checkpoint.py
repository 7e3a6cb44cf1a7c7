"""The checkpoint directory: read, checked and written. safetensors only; all faults come in one CheckpointError."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from .config import BackboneConfig, EngineConfig, parse_backbone, parse_engine
from .errors import CheckpointError
from .exits import criteria
from .families import Shapes
from .heads import HEADS
from .storage import SCALE, StoredTensors, quantise_rows, read_header

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


def read(path: str | os.PathLike[str]) -> Checkpoint:
    """Read and check a directory of ours, or a plain Hugging Face sequence-classification directory.

    Raises CheckpointError with every fault found: unreadable files, wrong or missing fields (file and key named),
    missing, extra or mis-shaped tensors, labels that do not fit the classifier.
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
    if engine is None or faults:
        raise CheckpointError(path, faults)
    head_type = engine.head["type"]
    if head_type not in HEADS:
        known = ", ".join(sorted(HEADS))
        raise CheckpointError(path, [f"{ENGINE}: 'head.type' is {head_type!r}; this pfengine has {known}"])
    faults += [f"{ENGINE}: {fault}" for fault in HEADS[head_type].config_faults(engine.head)]
    faults += [f"{ENGINE}: {fault}" for fault in criteria.faults(engine.criterion, engine.threshold)]
    if faults:
        raise CheckpointError(path, faults)
    expected = backbone.family.shapes(backbone) | HEADS[head_type].shapes(backbone, engine.head)
    tensors = read_tensors(path, expected, backbone)
    return Checkpoint(path, backbone, engine, tensors, tokenizer_files(path))


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


def write(
    path: str | os.PathLike[str],
    config: dict[str, Any],
    engine: EngineConfig,
    tensors: Mapping[str, Tensor],
    tokenizer: Mapping[str, bytes] | None = None,
) -> Path:
    """Write a checkpoint beside `path`, check it by reading it back, then move it into place.

    config: the backbone's config.json as a dict; tensors: fp32, by final key; tokenizer: contents of the tokenizer's
    files by name. An existing checkpoint at `path` is replaced only once the new one is whole; any other non-empty
    directory is refused.
    """
    path = Path(path)
    refuse_foreign(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        temporary.chmod(0o755)
        (temporary / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        (temporary / ENGINE).write_text(json.dumps(engine.to_json(), indent=2) + "\n")
        stored = quantise_rows(tensors) if engine.storage == "int8-rows" else tensors
        save_file({key: value.contiguous() for key, value in stored.items()}, temporary / WEIGHTS)
        for name, content in (tokenizer or {}).items():
            (temporary / name).write_bytes(content)
        for file in temporary.iterdir():
            file.chmod(0o644)
        read(temporary)
        if path.exists():
            backup = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
            try:
                os.replace(path, backup / "old")
                try:
                    os.replace(temporary, path)
                except OSError:
                    os.replace(backup / "old", path)
                    raise
                shutil.rmtree(backup / "old")
            finally:
                with contextlib.suppress(OSError):  # not empty where the old checkpoint could not be moved back
                    backup.rmdir()
        else:
            os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return path


def write_engine(path: Path, engine: EngineConfig, out: str | os.PathLike[str] | None = None) -> Path:
    """Replace pfengine.json of the checkpoint at `path`, or of a copy of it at `out`; never half of it."""
    if out is not None and Path(out).resolve() != path.resolve():
        ckpt = read(path)
        return write(out, ckpt.backbone.raw, engine, ckpt.tensors, ckpt.tokenizer)
    faults: list[str] = []
    text = json.dumps(engine.to_json(), indent=2) + "\n"
    parse_engine(json.loads(text), engine.exit_layers[-1], faults)
    if faults:
        raise CheckpointError(path, faults)
    file, temporary = tempfile.mkstemp(prefix=f".{ENGINE}.", dir=path)
    try:
        with os.fdopen(file, "w") as stream:
            stream.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path / ENGINE)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
    return path


def refuse_foreign(path: Path) -> None:
    """CheckpointError where something other than a checkpoint of ours would be replaced."""
    if path.exists() and not (path / ENGINE).exists() and (not path.is_dir() or any(path.iterdir())):
        raise CheckpointError(path, ["exists and is no pfengine checkpoint; choose another output directory"])


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
