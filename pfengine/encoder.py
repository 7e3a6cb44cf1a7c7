"""The encoder over an op set: `prepare` runs once at load, `embed` and `layer` on each ragged batch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .batch import RaggedInputs
from .config import BackboneConfig
from .disentangled import OWN_KEYS, OWN_QUERIES, distances_of
from .distances import by_distance
from .modern import LayerAttention
from .ops import AnyQueries, Block, Distances, Norm, OpSet, Rotary
from .ops.padding import pad_inputs, pad_outputs
from .ops.rotary import angles
from .storage import trim_heap


@dataclass(frozen=True)
class Encoder:
    """All encoder weights, prepared. `layers[i]` are the blocks of layer i + 1 in the order in which they run."""

    ops: OpSet
    embedding: Any
    embedding_projection: Any | None  # embedding size -> hidden size
    layers: list[list[Any]]
    final_norm: Any | None = None  # heads read states through it


def prepare(ops: OpSet, config: BackboneConfig, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> Encoder:
    """Pack the tensors of a checkpoint (checked, float32) for `ops` in `dtype`. Shared blocks are packed once."""
    prefix = config.family.prefix

    def norm(key: str) -> Norm:
        return norm_of(tensors, key, config.layer_norm_eps)

    def linear(key: str) -> tuple[Tensor, Tensor]:
        return linear_of(tensors, key)

    def block(key: str) -> Any:
        part = {name: key + place for name, place in config.family.block_parts.items()}
        heads, alignment = config.num_heads, ops.HEAD_ALIGNMENT
        if "qkv" in part:
            weight, bias = linear(part["qkv"])
            parts = list(zip(weight.chunk(3), bias.chunk(3), strict=True))
        else:
            parts = [linear(part[name]) for name in ("query", "key", "value")]
        qkv = _joined(pad_outputs(*each, heads, alignment) for each in parts)
        del parts
        output, bias = linear(part["attention_output"])
        modern = attention.get(key)
        return ops.prepare_block(
            Block(
                qkv=qkv,
                attention_output=(pad_inputs(output, heads, alignment), bias),
                attention_norm=norm(part["attention_norm"]) if config.norms_attention(key) else None,
                intermediate=linear(part["intermediate"]),
                output=linear(part["output"]),
                output_norm=norm(part["output_norm"]),
                num_heads=config.num_heads,
                scale=config.attention_scale,
                activation=config.activation,
                distances=distances(key, qkv) if table is not None else shared,
                rotary=None if modern is None else rotary[modern.rotary_base],
                window=None if modern is None else modern.window,
                norm_first=config.family.norm_first,
                gated=config.family.gated,
            ),
            dtype,
        )

    def distances(key: str, qkv: tuple[Tensor, Tensor]) -> Distances:
        """Of a block: what its own linear maps, or those of its queries and keys, make of the table."""
        form, heads = config.disentangled, config.num_heads
        assert form is not None
        assert table is not None
        if form.own:
            keys, queries = (
                pad_outputs(*linear(key + name), heads, ops.HEAD_ALIGNMENT) if there else None
                for name, there in ((OWN_KEYS, form.keys), (OWN_QUERIES, form.queries))
            )
        else:
            (queries, keys, _) = zip(*(part.chunk(3) for part in qkv), strict=True)
        return distances_of(form, table, keys, queries, heads, config.max_tokens)

    shared, table = None, None
    if config.family.distance_bias is not None:
        bias = tensors[f"{prefix}{config.family.distance_bias}.weight"]
        shared = Distances(by_distance(bias, config.max_tokens))
    if config.disentangled is not None and config.disentangled.used and config.disentangled.terms > 1:
        table = config.disentangled.table(tensors, prefix, config.layer_norm_eps)
    trim_heap()  # returns the memory of the head's float32 tensors
    # the tables first: in float32 they are the largest tensors of all, and now nothing else is in memory
    tables = f"{prefix}embeddings."
    word = tensors[f"{prefix}{config.family.embeddings}.weight"]
    position = tensors[f"{tables}position_embeddings.weight"] if config.has_positions else None
    token_type = tensors[f"{tables}token_type_embeddings.weight"] if config.type_vocab_size else None
    embedding_norm = norm(prefix + config.family.embedding_norm)
    embedding = ops.prepare_embedding((word, position, token_type), embedding_norm, dtype)
    where = word.device
    del word, position, token_type
    prefixes, blocks = config.block_keys(), {}
    attention: dict[str, LayerAttention] = {}
    rotary: dict[float, Rotary] = {}
    for (key,), of_layer in zip(prefixes, config.modern.attention, strict=True) if config.modern else ():
        attention[key], base = of_layer, of_layer.rotary_base
        if base not in rotary:
            rotary[base] = Rotary(angles(base, config.head_size, config.max_tokens).angles.to(where))
    for key in dict.fromkeys(key for layer in prefixes for key in layer):
        blocks[key] = block(key)
        if dtype != torch.float32:
            trim_heap()  # returns the memory of its float32 tensors, which are larger than it is
    trim_heap()
    projection, final_norm = config.embedding_projection, config.family.final_norm
    return Encoder(
        ops=ops,
        embedding=embedding,
        embedding_projection=None if projection is None else ops.prepare_linear(*linear(projection), dtype),
        layers=[[blocks[key] for key in layer] for layer in prefixes],
        final_norm=None if final_norm is None else ops.prepare_norm(norm(prefix + final_norm), dtype),
    )


def linear_of(tensors: Mapping[str, Tensor], key: str) -> tuple[Tensor, Tensor]:
    """Weight and bias of a linear layer; zeros where it has no bias."""
    weight, bias = tensors[f"{key}.weight"], tensors.get(f"{key}.bias")
    return weight, weight.new_zeros(len(weight)) if bias is None else bias


def norm_of(tensors: Mapping[str, Tensor], key: str, eps: float) -> Norm:
    """The parameters of a LayerNorm; zeros where it has no bias."""
    return Norm(*linear_of(tensors, key), eps)


def _joined(parts: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Several linear layers as one, their outputs side by side. The tensors of the parts are released."""
    weights, biases = zip(*parts, strict=True)
    return torch.cat(weights), torch.cat(biases)


def embed(encoder: Encoder, inputs: RaggedInputs) -> Tensor:
    """Token ids to the hidden states that enter layer 1, [T, H]."""
    x = encoder.ops.embed(inputs.ids, inputs.positions, inputs.types, encoder.embedding)
    return x if encoder.embedding_projection is None else encoder.ops.linear(x, encoder.embedding_projection, "none")


def seen(encoder: Encoder, x: Tensor) -> Tensor:
    """What heads see of states: [T, H] -> the same."""
    return x if encoder.final_norm is None else encoder.ops.norm(x, encoder.final_norm)


def layer(encoder: Encoder, number: int, x: Tensor, cu_seqlens: Tensor, queries: AnyQueries = "all") -> Tensor:
    """Layer `number` (1-based): [T, H] to the output of the queries, [T, H], [R, H] or [Q, H] as in `OpSet.block`."""
    x, last = enter(encoder, number, x, cu_seqlens)
    return encoder.ops.block(x, cu_seqlens, last, queries)


def enter(encoder: Encoder, number: int, x: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, Any]:
    """The input of the last block of layer `number` (1-based), [T, H], and that block. Most layers have one block."""
    *before, last = encoder.layers[number - 1]
    for block in before:
        x = encoder.ops.block(x, cu_seqlens, block)
    return x, last
