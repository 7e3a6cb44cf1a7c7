"""Finding a model's weights: which files hold them, which stored tensor is which, and whether they fit the model."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from typing import Literal

import torch

from .config import BackboneConfig
from .errors import CheckpointError
from .families import Shapes
from .folder import Folder
from .messages import warn
from .storage import SCALE, Stored, StoredTensors, read_header

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
CONVERTED = ("weights.safetensors", "pytorch_model.bin", "pytorch_model.bin.index.json")  # by `convert` alone
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_BUFFERS = ("position_ids", "token_type_ids")  # saved by old transformers, rebuilt by everyone
_FOREIGN = {  # what other libraries call their files, and how to get safetensors from it
    "adapter_model.safetensors": "is a PEFT adapter; merge it into its model with merge_and_unload() and save that",
    "adapter_config.json": "belongs to a PEFT adapter; merge it into its model with merge_and_unload() and save that",
    "tf_model.h5": "is TensorFlow's; load it with transformers 4 (from_tf=True) and save it again",
    "flax_model.msgpack": "is Flax's; load it with transformers 4 (from_flax=True) and save it again",
}


def find(folder: Folder) -> dict[str, Stored]:
    """The tensors of model.safetensors, or of all shards where there is an index.

    CheckpointError says what to do with the files that are there instead.
    """
    if folder.has(WEIGHTS):
        return read_header(folder.open(WEIGHTS))
    if folder.has(INDEX):
        return read_shards(folder, INDEX, lambda name: read_header(folder.open(name)))
    raise CheckpointError(folder.path, [f"{WEIGHTS} is missing{_hint(folder)}"])


def read_shards(folder: Folder, index: str, read: Callable[[str], dict[str, Stored]]) -> dict[str, Stored]:
    """The tensors of all shards that the file `index` names; `read` opens a shard."""
    raw = folder.json(index)
    file_of = raw.get("weight_map") if isinstance(raw, dict) else None
    if not isinstance(file_of, dict) or not file_of or not all(isinstance(file, str) for file in file_of.values()):
        raise CheckpointError(folder.path, [f"{index}: 'weight_map' must map each tensor to the file it is in"])
    tensors: dict[str, Stored] = {}
    for name in dict.fromkeys(file_of.values()):
        if not folder.has(name):
            raise CheckpointError(folder.path, [f"{name} is missing, which {index} names; copy all shards"])
        for key, stored in read(name).items():
            if key in tensors:
                raise CheckpointError(folder.path, [f"'{key}' is in both {tensors[key].file} and {name}"])
            tensors[key] = stored
    faults = [
        f"{index}: '{key}' is said to be in {file}, "
        + (f"but {tensors[key].file} has it" if key in tensors else "which does not have it")
        for key, file in file_of.items()
        if key not in tensors or tensors[key].file != file
    ]
    if faults:
        raise CheckpointError(folder.path, faults)
    return tensors


def _hint(folder: Folder) -> str:
    """What to do with the files that are there instead of weights; empty where there are none."""
    for name in CONVERTED:
        if name in folder.names:
            what = "has the names of the authors' code" if name.endswith(".safetensors") else "is a pickle"
            return f"; {name} {what}, which only `pfengine convert {shlex.quote(str(folder.path))} OUT` reads"
    variants = [name for name in folder.names if re.fullmatch(r"(pytorch_)?model\..*(safetensors|bin)", name)]
    if not variants:
        return foreign(folder)
    usual = WEIGHTS if variants[0].endswith(".safetensors") else "pytorch_model.bin"
    return f"; to load {variants[0]}, rename it to {usual}"


def foreign(folder: Folder) -> str:
    """What files of another library there are, and what to do with them; empty where there are none."""
    return next((f"; {name} {advice}" for name, advice in _FOREIGN.items() if name in folder.names), "")


def match(
    folder: Folder,
    tensors: Mapping[str, Stored],
    expected: Shapes,
    config: BackboneConfig,
    extra: Literal["warn", "refuse", "ignore"],
) -> StoredTensors:
    """The tensors of `expected` as float32 by the model's own keys; one CheckpointError lists all that do not fit.

    extra: what to do with tensors that the model does not have: ignore them with a warning, as transformers does, or
    silently, or list them as faults.
    """
    found, faults = _named(tensors, expected, config.family.prefix)
    quantised = [key for key, value in found.items() if value.dtype == torch.int8 and key + SCALE in found]
    scales = {key: found.pop(key + SCALE) for key in quantised}
    missing = [key for key in expected if key not in found]
    faults += [f"{_files(tensors)}: '{key}' {list(expected[key])} is missing" for key in missing]
    if missing and tensors and all(name.startswith("module.") for name in tensors):
        faults = [f"{_files(tensors)}: all names begin with 'module.', which only `pfengine convert` removes"]
    elif missing and all(key.startswith((config.family.classifier, config.family.pooler)) for key in missing):
        faults[-1] += "; an encoder without its classifier is trained first: `pfengine train`"
    for key, shape in expected.items():
        if key in found:
            faults += _faults(key, found[key], scales.get(key), shape, config)
    unused = (f"{config.family.prefix}pooler.", *_BUFFERS)
    others = sorted(key for key in set(found) - set(expected) if not _is_unused(key, unused))
    if extra == "refuse":
        faults += [
            f"{found[key].file}: '{key}' {list(found[key].shape)} is not a tensor of this model" for key in others
        ]
    if faults:
        raise CheckpointError(folder.path, faults)
    if others and extra == "warn":
        names = ", ".join(f"'{key}'" for key in others[:3])
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        warn(f"{folder.path}: stored tensors that this model does not have are ignored: {names}{more}")
    return StoredTensors(folder.path, {key: found[key] for key in expected}, scales)


def _named(tensors: Mapping[str, Stored], expected: Shapes, prefix: str) -> tuple[dict[str, Stored], list[str]]:
    """Stored tensors by the model's keys, found as transformers does: with or without the encoder's prefix."""
    found: dict[str, Stored] = {}
    names: dict[str, str] = {}
    faults = []
    for name, stored in tensors.items():
        # checkpoints from before 2019 call LayerNorm's tensors gamma and beta
        key = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
        base = key.removesuffix(SCALE) if stored.dtype in FLOATS else key
        for candidate in (base.removeprefix(prefix), prefix + base):
            if base not in expected and candidate in expected:
                key = candidate + key[len(base) :]
                break
        if key in found:
            faults.append(f"{stored.file}: '{names[key]}' and '{name}' are both '{key}' of this model")
        found[key], names[key] = stored, name
    return found, faults


def _files(tensors: Mapping[str, Stored]) -> str:
    """The files that hold these tensors, for a message about a missing one."""
    files = {stored.file for stored in tensors.values()}
    return "the shards" if len(files) > 1 else files.pop() if files else WEIGHTS


def _is_unused(key: str, unused: Iterable[str]) -> bool:
    return any(key.startswith(mark) or key.endswith("embeddings." + mark) for mark in unused)


def _faults(
    key: str, tensor: Stored, scale: Stored | None, shape: tuple[int, ...], config: BackboneConfig
) -> list[str]:
    got = tensor.shape
    if got != shape:
        if got[1:] == shape[1:] and shape[0] == config.num_labels and key.startswith(config.family.classifier):
            by_name, by_number = config.raw.get("id2label"), config.raw.get("num_labels")
            names = "has no 'id2label', which means" if by_number is None else "'num_labels' says"
            if isinstance(by_name, dict) and len(by_name) == shape[0]:
                names = "'id2label' names"
            return [f"config.json: {names} {shape[0]} labels, but {tensor.file} '{key}' has {got[0]} rows"]
        return [f"{tensor.file}: '{key}' has shape {list(got)}; it must be {list(shape)}"]
    if tensor.dtype == torch.int8:
        if scale is None:
            return [f"{tensor.file}: '{key}' is int8 but '{key}{SCALE}' is missing"]
        if scale.shape != shape[:-1] or scale.dtype not in FLOATS:
            return [
                f"{scale.file}: '{key}{SCALE}' is {scale.dtype} {list(scale.shape)}; "
                f"it must be float32 {list(shape[:-1])}"
            ]
    elif tensor.dtype not in FLOATS:
        kind = tensor.dtype or "of a kind that pfengine does not read"
        return [f"{tensor.file}: '{key}' is {kind}; weights must be floating point, or int8 with scales"]
    return []
