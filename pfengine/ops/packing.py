"""Weights as the compiled kernels read them: panels of output columns, with 32-bit words side by side."""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import extension
from ..errors import ConfigError
from ..extension import address
from . import Activation, Block, Norm, Rotary
from .quantisation import quantise_weight

if TYPE_CHECKING:
    from .. import _C

MAX_ROW_MAJOR = 16  # fp32 layers with at most so many outputs are not packed: a panel would be mostly padding
_PRECISIONS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.int8: "int8"}


@functools.cache
def kernels() -> _C.Kernels:
    """The fastest kernels that this processor runs, or those that PFENGINE_ISA names.

    Names: plain, avx2, avx512, avx512_bf16. Raises ConfigError where this processor does not run them.
    """
    name = os.environ.get("PFENGINE_ISA", "")
    found = extension._C.find_kernels(name)
    if found is None:
        raise ConfigError(f"PFENGINE_ISA is {name!r}, and this processor runs no kernels of that name; leave it unset")
    return found


def fast_precisions() -> list[str]:
    """The precisions for which this processor has instructions that make them faster than fp32, fastest first."""
    return {"avx512_bf16": ["int8", "bf16"], "avx512": ["int8"]}.get(kernels().name, [])


class Linear(NamedTuple):
    native: _C.Linear  # addresses of the tensors below
    precision: _C.Precision
    inputs: int
    outputs: int
    tensors: tuple[Tensor, ...]


class Embedding(NamedTuple):
    native: _C.Embedding
    size: int
    tensors: tuple[Tensor, ...]


class PreparedNorm(NamedTuple):
    native: _C.Norm
    size: int
    tensors: tuple[Tensor, ...]


class PreparedBlock(NamedTuple):
    native: _C.Block
    hidden: int
    kept_stride: int  # bytes per token of what keys_values makes
    output_norm: PreparedNorm
    tensors: tuple[Tensor, ...]


class PreparedAttentive(NamedTuple):
    native: _C.Attentive
    hidden: int
    width: int
    tensors: tuple[Tensor, ...]


class Imitation(NamedTuple):
    learners: Linear  # of layers 2..n side by side, each beginning with a panel
    hidden: int
    width: int  # columns from one learner to the next
    activation: Activation
    projections: list[Linear]  # entry i - 1: for all layers after i side by side, [C, (n - i) H]


class PreparedQueries(NamedTuple):
    native: _C.QueryMean
    hidden: int
    tensor: Tensor  # which `native` holds the address of


class PreparedExit(NamedTuple):
    native: _C.Exit  # addresses of the parts below
    hidden: int
    width: int  # of the past
    labels: int
    learned: bool  # is there a learned score?
    parts: tuple[Any, ...]


def prepare_linear(weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Linear:
    return pack_linear(weight, bias, dtype, row_major=dtype == torch.float32 and len(weight) <= MAX_ROW_MAJOR)


def pack_linear(weight: Tensor, bias: Tensor, dtype: torch.dtype, *, row_major: bool = False, bits: int = 8) -> Linear:
    """As `prepare_linear`. row_major: rows, not panels (fp32 only). bits: of a number, where dtype is int8."""
    outputs, inputs = weight.shape
    precision = "int4" if dtype == torch.int8 and bits == 4 else _PRECISIONS[dtype]
    scale = weight_sum = None
    if dtype == torch.int8:
        numbers, scale = quantise_weight(weight, bits)
        weight_sum = numbers.sum(1, dtype=torch.int32).float() * scale
        if precision == "int4":
            numbers, scale = _halves(numbers), scale / 16
    else:
        numbers = weight.to(dtype)
    packed, bias = numbers.contiguous() if row_major else _pack(numbers), bias.float().contiguous()
    C = extension._C
    panel, group = kernels().panel, {"fp32": 1, "bf16": 2, "int8": 4, "int4": 8}[precision]
    shape = (outputs, inputs) if row_major else (-(-outputs // panel), -(-inputs // group), panel)
    native = C.Linear(
        weights=address("weight", packed, torch.float32 if row_major else torch.int32, shape),
        scale=address("scale", scale, torch.float32, (outputs,)),
        weight_sum=address("weight_sum", weight_sum, torch.float32, (outputs,)),
        bias=address("bias", bias, torch.float32, (outputs,)),
        inputs=inputs,
        outputs=outputs,
        row_major=row_major,
    )
    tensors = tuple(t for t in (packed, scale, weight_sum, bias) if t is not None)
    return Linear(native, getattr(C.Precision, precision), inputs, outputs, tensors)


def _pack(weight: Tensor) -> Tensor:
    """[out, in] of 4-, 2- or 1-byte numbers -> int32 [panels, words of the inner dimension, panel]."""
    panel, group = kernels().panel, 4 // weight.element_size()
    words = F.pad(weight, (0, -weight.shape[1] % group, 0, -weight.shape[0] % panel)).contiguous().view(torch.int32)
    return words.view(-1, panel, words.shape[1]).transpose(1, 2).contiguous()


def _halves(numbers: Tensor) -> Tensor:
    """int8 [out, in] of -7 to 7 to int8 [out, in / 2]. A word holds 8, the first 4 in the low halves of its bytes."""
    words = F.pad(numbers, (0, -numbers.shape[1] % 8)).unflatten(1, (-1, 2, 4))
    return (words[:, :, 1] * 16 + (words[:, :, 0] & 15)).flatten(1)


def prepare_norm(norm: Norm, dtype: torch.dtype = torch.float32) -> PreparedNorm:
    """As `OpSet.prepare_norm`; norms are computed in float32, whatever dtype is."""
    size = len(norm.weight)
    parts = {"weight": norm.weight.float().contiguous(), "bias": norm.bias.float().contiguous()}
    where = {name: address(name, part, torch.float32, (size,)) for name, part in parts.items()}
    return PreparedNorm(extension._C.Norm(eps=norm.eps, **where), size, tuple(parts.values()))


def pack_gated(weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Linear:
    """Values and gates, [2 I, H] and [2 I], so that each panel has the gates of the values in its first half."""
    half = kernels().panel // 2

    def paired(x: Tensor) -> Tensor:
        values, gates = (F.pad(part, (0, 0) * (x.dim() - 1) + (0, -len(part) % half)) for part in x.chunk(2))
        return torch.stack([values.unflatten(0, (-1, half)), gates.unflatten(0, (-1, half))], 1).flatten(0, 2)

    return pack_linear(paired(weight), paired(bias), dtype)


def pack_rotary(rotary: Rotary | None) -> tuple[_C.Rotary | None, tuple[Tensor, ...]]:
    """The angles of rotary positions, and the tensors that it holds the addresses of."""
    if rotary is None:
        return None, ()
    angles, (most, size) = rotary.angles, rotary.angles.shape
    to = address("angles", angles, torch.float32, (most, size))
    return extension._C.Rotary(half=size // 2, most=most, angles=to), (angles,)


def pack_distances(block: Block, dtype: torch.dtype) -> tuple[_C.Distances | None, tuple[Tensor, ...]]:
    """What a block's scores have from distances, and the tensors that it holds the addresses of.

    _C reads whole vectors of neighbouring distances, so that buckets are written out: of `keys` by j - i, of `queries`
    by i - j. It adds the bias before it scales.
    """
    distances = block.distances
    if distances is None:
        return None, ()
    C, heads, stride = extension._C, block.num_heads, 2 * distances.most - 1 + extension._C.DISTANCE_ZEROS
    number = torch.float32 if dtype == torch.float32 else torch.bfloat16
    words = len(block.qkv[1]) // (3 * heads) * number.itemsize // 4
    bias = keys = queries = None
    if distances.bias is not None:
        bias = F.pad(distances.bias.float() / block.scale, (0, C.DISTANCE_ZEROS)).contiguous()
    if distances.bucket is not None:
        keys, queries = (
            None if table is None else _pack_distances(table[:, bucket].to(number))
            for table, bucket in ((distances.keys, distances.bucket), (distances.queries, distances.bucket.flip(0)))
        )
    native = C.Distances(
        heads=heads,
        words=words,
        most=distances.most,
        bias=address("bias", bias, torch.float32, (heads, stride)),
        keys=address("keys", keys, torch.int32, (heads, words, stride)),
        queries=address("queries", queries, torch.int32, (heads, words, stride)),
    )
    return native, tuple(x for x in (bias, keys, queries) if x is not None)


def _pack_distances(table: Tensor) -> Tensor:
    """[heads, distances, d] of 4- or 2-byte numbers -> int32 [heads, words of d, distances and zeros]."""
    words = table.contiguous().view(torch.int32).transpose(1, 2)
    return F.pad(words, (0, extension._C.DISTANCE_ZEROS)).contiguous()
