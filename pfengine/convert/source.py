"""Reading a source directory: config.json and its weights under the original names, from whichever file there is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoint import CONFIG, read_json
from ..errors import CheckpointError
from ..families import ALBERT, BERT, ROBERTA, Family
from ..storage import open_safetensors

FILES = ("weights.safetensors", "model.safetensors", "pytorch_model.bin")


def read_source(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """config.json, and all tensors as fp32 by original key."""
    if not path.is_dir():
        raise CheckpointError(path, ["is no directory"])
    raw = read_json(path, CONFIG)
    if not isinstance(raw, dict):
        raise CheckpointError(path, [f"{CONFIG}: is not a JSON object"])
    file = next((file for file in FILES if (path / file).exists()), None)
    if file is None:
        raise CheckpointError(path, [f"has no weights; expected one of {', '.join(FILES)}"])
    tensors = _open_pickle(path, file) if file.endswith(".bin") else open_safetensors(path, file)
    tensors = {key.removeprefix("module."): value for key, value in tensors.items()}  # DataParallel's prefix
    return raw, {key: value.float() for key, value in tensors.items() if value.is_floating_point()}


def _open_pickle(path: Path, file: str) -> dict[str, Tensor]:
    try:
        tensors = torch.load(path / file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever the file makes it raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(path, [f"{file} cannot be read as tensors alone: {reason}"]) from None
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise CheckpointError(path, [f"{file} is no state dict"])
    return tensors


def family_of(path: Path, tensors: dict[str, Tensor]) -> Family:
    """The family by the prefix of its keys."""
    for family in (BERT, ROBERTA, ALBERT):
        if f"{family.prefix}embeddings.word_embeddings.weight" in tensors:
            return family
    raise CheckpointError(path, ["holds no BERT, RoBERTa or ALBERT encoder: no '*.embeddings.word_embeddings.weight'"])


def with_shapes(
    raw: dict[str, Any], family: Family, tensors: dict[str, Tensor], layers: int, labels: int
) -> dict[str, Any]:
    """config.json with every size taken from the tensors; sizes that are not there are left to the checkpoint's check.

    layers, labels: as the head's tensors say. Label names are kept where they fit.
    """
    config = {key: value for key, value in raw.items() if key not in ("num_labels", "architectures")}
    if raw.get("model_type") not in family.model_types:
        config["model_type"] = family.name
    config |= {"num_hidden_layers": layers, "problem_type": "single_label_classification"}
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
    if family.factorised:
        sizes["embedding_size"] = ("embeddings.word_embeddings.weight", 1)
        groups = {name.split("albert_layer_groups.")[1].split(".")[0] for name in blocks}
        config |= {"num_hidden_groups": len(groups), "inner_group_num": len(blocks) // max(1, len(groups))}
    for key, (name, axis) in sizes.items():
        tensor = tensors.get(prefix + name)
        if tensor is not None and tensor.dim() > axis:
            config[key] = tensor.shape[axis]
    names = raw.get("id2label")
    if not isinstance(names, dict) or len(names) != labels:
        names = {str(i): f"LABEL_{i}" for i in range(labels)}
    config["id2label"] = {str(key): name for key, name in names.items()}
    config["label2id"] = {name: int(key) for key, name in config["id2label"].items()}
    return config
