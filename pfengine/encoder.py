"""The encoder over an op set: prepare() once at load, then embed() and layer() on ragged batches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .batch import RaggedBatch, RaggedInputs
from .config import BackboneConfig
from .families import PARTS
from .ops import Block, Norm, OpSet
from .storage import trim_heap


@dataclass(frozen=True)
class Encoder:
    """All prepared encoder weights; `layers[i]` holds the blocks of layer i + 1 in the order they run."""

    ops: OpSet
    embedding: Any
    embedding_projection: Any | None  # ALBERT: embedding size -> hidden size
    layers: list[list[Any]]


def prepare(ops: OpSet, config: BackboneConfig, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> Encoder:
    """Pack the tensors of a checkpoint (checked, fp32) for `ops` in `dtype`; shared blocks are packed once."""
    prefix = config.family.prefix

    def norm(key: str) -> Norm:
        return Norm(tensors[f"{key}.weight"], tensors[f"{key}.bias"], config.layer_norm_eps)

    def linear(key: str) -> tuple[Tensor, Tensor]:
        return tensors[f"{key}.weight"], tensors[f"{key}.bias"]

    def block(key: str) -> Any:
        part = {name: key + config.family.block_parts[name] for name in PARTS}
        qkv = _joined(_pad_heads(tensors, part[name], config, ops.HEAD_ALIGNMENT) for name in ("query", "key", "value"))
        output = tensors[f"{part['attention_output']}.weight"].unflatten(1, (config.num_heads, config.head_size))
        output = F.pad(output, (0, -config.head_size % ops.HEAD_ALIGNMENT)).flatten(1)
        return ops.prepare_block(
            Block(
                qkv=qkv,
                attention_output=(output, tensors[f"{part['attention_output']}.bias"]),
                attention_norm=norm(part["attention_norm"]),
                intermediate=linear(part["intermediate"]),
                output=linear(part["output"]),
                output_norm=norm(part["output_norm"]),
                num_heads=config.num_heads,
                scale=config.head_size**-0.5,
                activation=config.activation,  # type: ignore[arg-type]
            ),
            dtype,
        )

    trim_heap()  # those of the head
    # the tables first: in float32 they are the largest tensors of all, and nothing else is there yet
    word, position, token_type = (
        tensors[f"{prefix}embeddings.{name}_embeddings.weight"] for name in ("word", "position", "token_type")
    )
    embedding = ops.prepare_embedding((word, position, token_type), norm(f"{prefix}embeddings.LayerNorm"), dtype)
    del word, position, token_type
    prefixes, blocks = config.block_keys(), {}
    for key in dict.fromkeys(key for layer in prefixes for key in layer):
        blocks[key] = block(key)
        if dtype != torch.float32:
            trim_heap()  # the float32 tensors it was made of, which are larger than it is
    trim_heap()
    projection = config.family.embedding_projection
    return Encoder(
        ops=ops,
        embedding=embedding,
        embedding_projection=None if projection is None else ops.prepare_linear(*linear(prefix + projection), dtype),
        layers=[[blocks[key] for key in layer] for layer in prefixes],
    )


def _joined(parts: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """One linear layer of several, whose outputs are side by side; theirs are not held any longer."""
    weights, biases = zip(*parts, strict=True)
    return torch.cat(weights), torch.cat(biases)


def _pad_heads(
    tensors: Mapping[str, Tensor], key: str, config: BackboneConfig, alignment: int
) -> tuple[Tensor, Tensor]:
    """Weight and bias of a projection to heads, each head widened with zeros to a multiple of `alignment`."""
    pad = -config.head_size % alignment
    weight = tensors[f"{key}.weight"].unflatten(0, (config.num_heads, config.head_size))
    bias = tensors[f"{key}.bias"].unflatten(0, (config.num_heads, config.head_size))
    return F.pad(weight, (0, 0, 0, pad)).flatten(0, 1), F.pad(bias, (0, pad)).flatten()


def embed(encoder: Encoder, inputs: RaggedInputs) -> RaggedBatch:
    """Token ids to the hidden states that enter layer 1."""
    x = encoder.ops.embed(inputs.ids, inputs.positions, inputs.types, encoder.embedding)
    if encoder.embedding_projection is not None:
        x = encoder.ops.linear(x, encoder.embedding_projection, "none")
    return RaggedBatch(x, inputs.cu_seqlens, inputs.row_ids)


def layer(encoder: Encoder, number: int, batch: RaggedBatch, first_only: bool = False) -> RaggedBatch:
    """Layer `number` (1-based) of all rows.

    first_only: compute the output of each row's first token only (all that a head on first tokens reads of the last
    layer); the batch that comes back has one token a row.
    """
    x, blocks = batch.tokens, encoder.layers[number - 1]
    for i, block in enumerate(blocks, start=1):
        x = encoder.ops.block(x, batch.cu_seqlens, block, first_only and i == len(blocks))
    return batch.firsts(x) if first_only else batch.with_tokens(x)


@dataclass(frozen=True)
class Opened:
    """A layer whose rows' first tokens are done; the rest is for those rows that stay."""

    ops: OpSet
    first: RaggedBatch  # one token a row
    rest: Any

    def close(self, stay: Tensor, kept: Tensor | None) -> RaggedBatch:
        """The layer of the rows where `stay` (bool [R]) is true, moved together; kept: their numbers, None for all."""
        row_ids = self.first.row_ids if kept is None else self.first.row_ids.index_select(0, kept)
        return RaggedBatch(*self.ops.close_block(self.rest, stay), row_ids)


def open_layer(encoder: Encoder, number: int, batch: RaggedBatch) -> Opened:
    """Layer `number` in two halves: now the first tokens, which an exit reads; later the others, of rows that stay.

    A row that leaves has cost keys and values of its tokens, a quarter of a layer. The same numbers as `layer`.
    """
    *before, last = encoder.layers[number - 1]
    x = batch.tokens
    for block in before:
        x = encoder.ops.block(x, batch.cu_seqlens, block, False)
    first, rest = encoder.ops.open_block(x, batch.cu_seqlens, last)
    return Opened(encoder.ops, batch.firsts(first), rest)
