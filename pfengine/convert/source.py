"""Reading a source directory: its weights under the original names, from whichever file there is."""

from __future__ import annotations

import contextlib
import functools
import io
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import weights
from ..cascade_manifest import CascadeManifest
from ..errors import CheckpointError
from ..families import FAMILIES, Family
from ..folder import Folder
from ..manifest import Manifest
from ..storage import Stored, read_header
from ..weights import CONVERTED, INDEX, WEIGHTS

SINGLE = "single_label_classification"
FILES = (CONVERTED[0], WEIGHTS, INDEX, *CONVERTED[1:])


Converted = tuple[dict[str, Any], Manifest, dict[str, Tensor]]
"""config.json, pfengine.json and tensors of a checkpoint."""


@dataclass(frozen=True)
class Cascaded:
    """A cascade made of one checkpoint of others: its manifest, and its models in order."""

    manifest: CascadeManifest
    models: tuple[Converted, ...]


def find(folder: Folder) -> dict[str, Stored]:
    """All tensors by original key, without DataParallel's prefix; CheckpointError for files that hold none."""
    file = next((file for file in FILES if folder.has(file)), None)
    if file is None:
        raise CheckpointError(
            folder.path, [f"has no weights; expected one of {', '.join(FILES)}{weights.foreign(folder)}"]
        )
    if file == FILES[0]:
        tensors = read_header(folder.open(file))
    elif file in FILES[1:3]:
        tensors = weights.find(folder)
    elif file == FILES[3]:
        tensors = _unpickle(folder, file)
    else:
        tensors = weights.read_shards(folder, file, lambda name: _unpickle(folder, name))
    return {key.removeprefix("module."): stored for key, stored in tensors.items()}


def _unpickle(folder: Folder, name: str) -> dict[str, Stored]:
    """The state dict that torch.save wrote, as tensors alone: no code in it runs."""
    file = folder.open(name)
    file.refuse_pointer()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's warnings about the pickle; the error below says it in our words
            state = torch.load(io.BufferedReader(file.stream()), map_location="cpu", weights_only=True)
    except CheckpointError:  # the file changed
        raise
    except Exception as error:  # torch.load raises errors of many types, and advises to run the code in the file
        unknown = re.search(r"(?:GLOBAL|Unsupported class|Unsupported global:?) (?:GLOBAL )?([\w.]+)", str(error))
        reason = (
            f"it holds {unknown[1]}, and no code in a pickle is ever run; save it as safetensors where it was made"
            if unknown
            else "it is damaged, or torch.save did not write it; copy it again"
        )
        raise CheckpointError(folder.path, [f"{name} cannot be read as tensors alone: {reason}"]) from None
    if not isinstance(state, Mapping) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()
    ):
        raise CheckpointError(folder.path, [f"{name} is not a state dict: a dict of tensors by name"])
    odd = [key for key, value in state.items() if value.layout != torch.strided or value.is_quantized]
    if odd:
        raise CheckpointError(folder.path, [f"{name}: '{odd[0]}' is sparse or quantised; save it as a plain tensor"])
    return {
        key: Stored(name, value.dtype, tuple(value.shape), functools.partial(_copy, value))
        for key, value in state.items()
    }


def _copy(tensor: Tensor) -> Tensor:
    """A copy in its own memory, which tied tensors of a pickle share."""
    return tensor.detach().clone(memory_format=torch.contiguous_format)


def family_of(path: Path, tensors: Mapping[str, Tensor]) -> Family:
    """The family by the prefix of its keys."""
    for family in FAMILIES.values():
        if f"{family.prefix}embeddings.word_embeddings.weight" in tensors:
            return family
    raise CheckpointError(path, ["has no encoder of a known family: no '*.embeddings.word_embeddings.weight'"])


def with_shapes(
    raw: dict[str, Any], family: Family, tensors: Mapping[str, Tensor], layers: int, labels: int
) -> dict[str, Any]:
    """config.json with every size taken from the tensors; missing sizes are reported when the checkpoint is checked.

    layers, labels: from the head's tensors. Label names are kept where their number fits.
    """
    config = {key: value for key, value in raw.items() if key not in ("num_labels", "architectures")}
    if raw.get("model_type") not in family.model_types:
        config["model_type"] = family.name
    config |= {
        family.key("num_hidden_layers"): layers,
        "problem_type": SINGLE if labels > 1 else "regression",
    }
    prefix = family.prefix
    query = family.block_parts["query"]
    blocks = sorted({key.split(query)[0].removeprefix(prefix) for key in tensors if query in key})
    block = blocks[0] if blocks else ""
    sizes = {
        "vocab_size": ("embeddings.word_embeddings.weight", 0),
        "max_position_embeddings": ("embeddings.position_embeddings.weight", 0),
        "type_vocab_size": ("embeddings.token_type_embeddings.weight", 0),
        "hidden_size": (f"{block}{query}.weight", 0),
        "intermediate_size": (f"{block}{family.block_parts['intermediate']}.weight", 0),
    }
    if family.embedding_projection is not None:
        sizes["embedding_size"] = ("embeddings.word_embeddings.weight", 1)
    if family.shares_layers:
        before_group = family.block_key.partition("{group}")[0]
        groups = {name.removeprefix(before_group).split(".")[0] for name in blocks}
        config |= {"num_hidden_groups": len(groups), "inner_group_num": len(blocks) // max(1, len(groups))}
    for key, (name, axis) in sizes.items():
        tensor = tensors.get(prefix + name)
        if tensor is not None and tensor.dim() > axis:
            config[family.key(key)] = tensor.shape[axis]
    names = raw.get("id2label")
    if not isinstance(names, dict) or len(names) != labels:
        names = {str(i): f"LABEL_{i}" for i in range(labels)}
    config["id2label"] = {str(key): name for key, name in names.items()}
    with contextlib.suppress(ValueError, TypeError):  # wrong names are reported when the checkpoint is checked
        config["label2id"] = {name: int(key) for key, name in config["id2label"].items()}
    return config


def encoder_tensors(family: Family, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of the encoder; not those of exits whose keys begin as the encoder's do."""
    names = (family.block_key.partition("{")[0], "embeddings.", family.embedding_projection or "embeddings.")
    return {
        key: value
        for key, value in tensors.items()
        if key.startswith(tuple(family.prefix + name for name in names)) and not key.endswith(".position_ids")
    }


class Original:
    """The tensors of a checkpoint of others, whose keys a system's format asks for.

    What is missing or of an unexpected form becomes a fault, and zeros, so that all faults can be told at once.
    """

    def __init__(self, path: Path, tensors: Mapping[str, Tensor], system: str) -> None:
        self.path, self.tensors, self.system = path, tensors, system
        self.faults: list[str] = []

    def get(self, key: str, dims: int) -> Tensor:
        """The tensor of a key, of so many dimensions."""
        tensor = self.tensors.get(key)
        if tensor is None or tensor.dim() != dims:
            got = "is missing" if tensor is None else f"has shape {list(tensor.shape)}"
            self.faults.append(f"'{key}' {got}; a {self.system} checkpoint has it with {dims} dimensions")
            return torch.zeros([1] * dims, dtype=torch.float32, device="cpu")
        return tensor

    def stack(self, keys: Sequence[str], dims: int) -> Tensor:
        """The tensors of several keys, of so many dimensions each, along a new first axis."""
        parts = [self.get(key, dims) for key in keys]
        if self.faults:
            return parts[0][None]
        odd = next((key for key, part in zip(keys, parts, strict=True) if part.shape != parts[0].shape), None)
        if odd is not None:
            self.faults.append(
                f"'{odd}' has shape {list(self.tensors[odd].shape)}; "
                f"it must have that of '{keys[0]}', {list(parts[0].shape)}"
            )
            return parts[0][None]
        return torch.stack(parts)

    def check(self) -> None:
        """Raise CheckpointError with all faults, if there are any."""
        if self.faults:
            raise CheckpointError(self.path, self.faults)
