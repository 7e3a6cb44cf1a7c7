"""Converting checkpoints of FastBERT's authors (autoliuweijie/FastBERT, the script and the package on PyPI)."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, get_args

from torch import Tensor

from ..families import BERT
from ..heads import PREFIX
from ..json_fields import is_int
from ..manifest import Manifest
from ..ops import TokenPooling
from .linear import Converted, numbered
from .source import Original, with_shapes

CLASSIFIERS = "classifiers.{}.output_layer_0"
HEAD = {  # our name of a part -> theirs
    "narrow": "output_layer_0",
    "query": "self_atten.linear_layers.0",
    "key": "self_atten.linear_layers.1",
    "value": "self_atten.linear_layers.2",
    "output": "self_atten.final_linear",
    "dense": "output_layer_1",
    "classifiers": "output_layer_2",
}
BLOCK = {  # our name of a linear layer of a block -> theirs
    "query": "self_attn.linear_layers.0",
    "key": "self_attn.linear_layers.1",
    "value": "self_attn.linear_layers.2",
    "attention_output": "self_attn.final_linear",
    "intermediate": "feed_forward.linear_1",
    "output": "feed_forward.linear_2",
}
NORMS = {"attention_norm": "layer_norm_1", "output_norm": "layer_norm_2"}
WORDS = "embedding.word_embedding.weight"


def recognises(tensors: Collection[str]) -> bool:
    return f"{CLASSIFIERS.format(0)}.weight" in tensors and "classifiers.0.self_atten.final_linear.weight" in tensors


def convert(path: Path, raw: dict[str, Any], tensors: dict[str, Tensor]) -> Converted:
    """Original config and tensors -> config.json, pfengine.json and tensors of a checkpoint.

    raw: config.json in UER's names, of which heads_num, hidden_act and pooling are read; sizes come from the tensors.
    The encoder is UER's, and becomes a BERT:

    - UER's norm is gamma (x - mean) / (s + 1e-6) + beta with s the unbiased deviation, which divides by H - 1. Ours is
      gamma' (x - mean) / sqrt(v + eps) + beta with the biased variance v. With gamma' = gamma sqrt((H - 1) / H) and
      eps = 1e-12 only the 1e-6 is left between them: a share of 1e-6 / s of x - mean, below 1e-5 where s is above 0.1.
    - Segment 0 is padding's, 1 and 2 are the first and second text's. Token types 0 and 1 become rows 1 and 2.

    Pooling "first" and "max" are read. Theirs takes the maximum over padding too, so that it depends on the length that
    rows are padded to; ours has the answers that theirs gives to rows without padding.
    """
    layers = len(numbered(path, tensors, CLASSIFIERS, "FastBERT"))
    original = Original(path, tensors, "FastBERT")
    heads, own_heads = raw.get("heads_num"), raw.get("classifier_heads_num", 2)
    pooling = raw.get("pooling", "first")
    for key, number in (("heads_num", heads), ("classifier_heads_num", own_heads)):
        if not is_int(number) or number < 1:  # type: ignore[operator]
            original.faults.append(f"config.json: '{key}' is {number!r}; it must be an integer >= 1")
    if pooling not in get_args(TokenPooling):
        known = " or ".join(get_args(TokenPooling))
        original.faults.append(f"config.json: 'pooling' is {pooling!r}; only {known} can be converted")
    head = {
        f"{PREFIX}{ours}.{kind}": original.stack([f"classifiers.{i}.{theirs}.{kind}" for i in range(layers)], dims)
        for ours, theirs in HEAD.items()
        for kind, dims in (("weight", 2), ("bias", 1))
    }
    encoder = _encoder(original, layers)
    labels, width = head[f"{PREFIX}classifiers.bias"].shape[1], head[f"{PREFIX}narrow.bias"].shape[1]
    if not original.faults and labels < 2:
        original.faults.append("'classifiers.0.output_layer_2.bias' has one entry; the criterion needs two labels")
    original.check()
    config: dict[str, Any] = {key: raw[key] for key in ("id2label", "hidden_act") if key in raw}
    config |= {"num_attention_heads": heads, "layer_norm_eps": 1e-12}
    made = Manifest(
        system="fastbert",
        head={"type": "attentive", "width": width, "heads": own_heads, "pooling": pooling},
        criterion="fastbert",
        exit_layers=tuple(range(1, layers + 1)),
    )
    return with_shapes(config, BERT, encoder, layers, labels), made, encoder | head


def _encoder(original: Original, layers: int) -> dict[str, Tensor]:
    """The encoder under BERT's keys."""
    theirs = "kernel." if f"kernel.{WORDS}" in original.tensors else ""
    tables = f"{BERT.prefix}embeddings."
    found = {
        f"{tables}{ours}_embeddings.weight": original.get(f"{theirs}embedding.{name}_embedding.weight", 2)
        for ours, name in (("word", "word"), ("position", "position"), ("token_type", "segment"))
    }
    segments = found[f"{tables}token_type_embeddings.weight"]
    if len(segments) < 2 and not original.faults:
        original.faults.append(
            f"'{theirs}embedding.segment_embedding.weight' has one row, which is padding's; expected 3"
        )
    found[f"{tables}token_type_embeddings.weight"] = segments[1:]
    found |= _norm(original, f"{tables}LayerNorm", f"{theirs}embedding.layer_norm")
    for i in range(layers):
        ours, block = BERT.prefix + BERT.block_key.format(layer=i), f"{theirs}encoder.transformer.{i}"
        for part, name in BLOCK.items():
            for kind, dims in (("weight", 2), ("bias", 1)):
                found[f"{ours}{BERT.block_parts[part]}.{kind}"] = original.get(f"{block}.{name}.{kind}", dims)
        for part, name in NORMS.items():
            found |= _norm(original, ours + BERT.block_parts[part], f"{block}.{name}")
    if f"{theirs}encoder.transformer.{layers}.layer_norm_1.gamma" in original.tensors:
        original.faults.append(f"the encoder has more layers than the {layers} that have a classifier")
    return found


def _norm(original: Original, ours: str, theirs: str) -> dict[str, Tensor]:
    gamma, beta = original.get(f"{theirs}.gamma", 1), original.get(f"{theirs}.beta", 1)
    size = len(gamma)
    return {f"{ours}.weight": gamma * ((size - 1) / size) ** 0.5, f"{ours}.bias": beta}
