"""The pretrained encoder that training starts from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .. import checkpoint, families, reader, weights
from ..config import BackboneConfig, parse_backbone
from ..convert import elasticbert
from ..convert.source import find
from ..errors import CheckpointError, ConfigError
from ..folder import Folder
from ..storage import Stored


def encoder_config(source: Path, labels: tuple[str, ...], layers: int | None) -> BackboneConfig:
    """Its config.json, checked, for these labels (none: regression) and at most so many of its layers."""
    raw = checkpoint.read_config(Folder(source))
    if not isinstance(raw, dict):
        raise CheckpointError(source, [f"{checkpoint.CONFIG}: is not a JSON object"])
    if raw.get("model_type") == "elasticbert":  # a BERT whose keys have another prefix
        raw["model_type"] = "bert"
    family = families.find_family(raw.get("model_type"))
    names = labels or ("LABEL_0",)
    raw |= {
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
        "problem_type": "single_label_classification" if labels else "regression",
    }
    for key in ("num_labels", "torch_dtype", "dtype", "_name_or_path", "architectures", "transformers_version"):
        raw.pop(key, None)
    if layers is not None and family is not None:
        given = raw.get(key := family.key("num_hidden_layers"))
        if isinstance(given, int) and layers > given:
            raise ConfigError(f"layers is {layers}; {source} has {given}")
        raw[key] = layers
        if isinstance(raw.get("layer_types"), list):
            raw["layer_types"] = raw["layer_types"][:layers]
    faults: list[str] = []
    config = parse_backbone(raw, faults)
    if config is None or faults:
        raise CheckpointError(source, faults)
    return config


class Pretrained(NamedTuple):
    """An encoder to start from."""

    backbone: torch.nn.Module  # transformers' encoder, fp32, without its pooler
    pooler: tuple[Tensor, Tensor] | None  # where it has one: weight [n, H, H] and bias [n, H] after each layer


def read_encoder(source: Path, config: BackboneConfig) -> Pretrained:
    """The weights of a pretrained encoder or of a checkpoint of ours. CheckpointError for what is wrong with them."""
    from transformers import AutoConfig, AutoModel

    folder = Folder(source)
    if folder.has(checkpoint.MANIFEST):
        tensors: Mapping[str, Tensor] = reader.read(folder).tensors
        pooler = None
    else:  # heads and layers above the k-th are not read
        stored = elasticbert.as_bert(find(folder))
        tensors = weights.match(folder, stored, config.encoder_shapes(), config, extra="ignore")
        pooler = _pooler(folder, stored, config)
    settings = {key: value for key, value in config.raw.items() if key != "auto_map"}
    try:
        with torch.random.fork_rng(devices=[]):  # so that it does not change how heads are initialised
            backbone: torch.nn.Module = AutoModel.from_config(
                AutoConfig.for_model(**settings), trust_remote_code=False, dtype=torch.float32
            )
    except Exception as error:  # transformers checks fields that pfengine does not read
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            source, [f"{checkpoint.CONFIG}: transformers cannot build an encoder from it: {reason}"]
        ) from None
    backbone.pooler = None  # type: ignore[assignment]  # heads have their own; not all families can do without it
    backbone.load_state_dict({key: tensors[config.family.prefix + key] for key in backbone.state_dict()})
    folder.check()
    return Pretrained(backbone, pooler)


def _pooler(folder: Folder, stored: Mapping[str, Stored], config: BackboneConfig) -> tuple[Tensor, Tensor] | None:
    """One pooler stands for all layers; ElasticBERT has one per layer."""
    hidden, prefix, layers = config.hidden_size, config.family.prefix, config.num_layers
    per_layer = [f"encoder.pooler.{i}.dense" for i in range(layers)]
    for names in (["pooler.dense"], ["pooler"], per_layer):
        shapes: families.Shapes = {f"{prefix}{name}.weight": (hidden, hidden) for name in names}
        shapes |= {f"{prefix}{name}.bias": (hidden,) for name in names}
        if all(key in stored or key.removeprefix(prefix) in stored for key in shapes):
            tensors = list(weights.match(folder, stored, shapes, config, extra="ignore").values())
            weight, bias = torch.stack(tensors[: len(names)]), torch.stack(tensors[len(names) :])
            return weight.expand(layers, -1, -1), bias.expand(layers, -1)
    return None
