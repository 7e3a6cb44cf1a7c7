"""The encoder over an op set: prepare() once at load, then embed() and layer() on ragged batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .batch import RaggedBatch, RaggedInputs
from .config import BackboneConfig
from .families import PARTS
from .ops import Activation, Norm, OpSet


@dataclass(frozen=True)
class Block:
    """Prepared weights of one attention and one feed-forward network."""

    qkv: Any  # H -> 3 heads d, queries, keys and values side by side, d padded to the op set's alignment
    attention_output: Any
    attention_norm: Norm
    intermediate: Any
    output: Any
    output_norm: Norm


@dataclass(frozen=True)
class Encoder:
    """All prepared encoder weights; `layers[i]` holds the blocks of layer i + 1 in the order they run."""

    ops: OpSet
    tables: tuple[Tensor, Tensor, Tensor]  # word, position, token type
    embedding_norm: Norm
    widen: Any | None  # ALBERT: embedding size -> hidden size
    layers: list[list[Block]]
    num_heads: int
    scale: float  # of the attention scores
    activation: Activation


def prepare(ops: OpSet, config: BackboneConfig, tensors: dict[str, Tensor], dtype: torch.dtype) -> Encoder:
    """Pack the tensors of a checkpoint (checked, fp32) for `ops` in `dtype`; shared blocks are packed once."""
    prefix = config.family.prefix

    def norm(key: str) -> Norm:
        return Norm(tensors[f"{key}.weight"].to(dtype), tensors[f"{key}.bias"].to(dtype), config.layer_norm_eps)

    def linear(key: str) -> Any:
        return ops.prepare_linear(tensors[f"{key}.weight"], tensors[f"{key}.bias"], dtype)

    def block(key: str) -> Block:
        part = {name: key + config.family.block_parts[name] for name in PARTS}
        qkv = [_pad_heads(tensors, part[name], config, ops.HEAD_ALIGNMENT) for name in ("query", "key", "value")]
        output = tensors[f"{part['attention_output']}.weight"].unflatten(1, (config.num_heads, config.head_size))
        output = F.pad(output, (0, -config.head_size % ops.HEAD_ALIGNMENT)).flatten(1)
        return Block(
            qkv=ops.prepare_linear(torch.cat([w for w, _ in qkv]), torch.cat([b for _, b in qkv]), dtype),
            attention_output=ops.prepare_linear(output, tensors[f"{part['attention_output']}.bias"], dtype),
            attention_norm=norm(part["attention_norm"]),
            intermediate=linear(part["intermediate"]),
            output=linear(part["output"]),
            output_norm=norm(part["output_norm"]),
        )

    prefixes = config.family.blocks(config)
    blocks = {key: block(key) for layer in prefixes for key in layer}
    word, position, token_type = (
        tensors[f"{prefix}embeddings.{name}_embeddings.weight"].to(dtype) for name in ("word", "position", "token_type")
    )
    return Encoder(
        ops=ops,
        tables=(word, position, token_type),
        embedding_norm=norm(f"{prefix}embeddings.LayerNorm"),
        widen=linear(f"{prefix}encoder.embedding_hidden_mapping_in") if config.family.factorised else None,
        layers=[[blocks[key] for key in layer] for layer in prefixes],
        num_heads=config.num_heads,
        scale=config.head_size**-0.5,
        activation=config.activation,  # type: ignore[arg-type]
    )


def _pad_heads(tensors: dict[str, Tensor], key: str, config: BackboneConfig, alignment: int) -> tuple[Tensor, Tensor]:
    """Weight and bias of a projection to heads, each head widened with zeros to a multiple of `alignment`."""
    pad = -config.head_size % alignment
    weight = tensors[f"{key}.weight"].unflatten(0, (config.num_heads, config.head_size))
    bias = tensors[f"{key}.bias"].unflatten(0, (config.num_heads, config.head_size))
    return F.pad(weight, (0, 0, 0, pad)).flatten(0, 1), F.pad(bias, (0, pad)).flatten()


def embed(encoder: Encoder, inputs: RaggedInputs) -> RaggedBatch:
    """Token ids to the hidden states that enter layer 1."""
    x = encoder.ops.embed(inputs.ids, inputs.positions, inputs.types, encoder.tables, encoder.embedding_norm)
    if encoder.widen is not None:
        x = encoder.ops.linear(x, encoder.widen, "none")
    return RaggedBatch(x, inputs.cu_seqlens, inputs.row_ids)


def layer(encoder: Encoder, number: int, batch: RaggedBatch, first_only: bool = False) -> RaggedBatch:
    """Layer `number` (1-based) of all rows.

    first_only: compute the output of each row's first token only (all that a head on first tokens reads of the last
    layer); the batch that comes back has one token a row.
    """
    blocks = encoder.layers[number - 1]
    for block in blocks:
        batch = _block(encoder, block, batch, first_only and block is blocks[-1])
    return batch


def _block(encoder: Encoder, block: Block, batch: RaggedBatch, first_only: bool) -> RaggedBatch:
    ops = encoder.ops
    qkv = ops.linear(batch.tokens, block.qkv, "none")
    attended = ops.attention(qkv, batch.cu_seqlens, encoder.num_heads, encoder.scale, first_only)
    if first_only:
        bounds = torch.arange(len(batch) + 1, dtype=torch.int32, device=batch.cu_seqlens.device)
        batch = RaggedBatch(batch.first(), bounds, batch.row_ids)
    x = ops.add_layer_norm(ops.linear(attended, block.attention_output, "none"), batch.tokens, block.attention_norm)
    inner = ops.linear(x, block.intermediate, encoder.activation)
    return batch.with_tokens(ops.add_layer_norm(ops.linear(inner, block.output, "none"), x, block.output_norm))
