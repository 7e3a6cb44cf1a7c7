"""A block of a layer on the GPU: its launches, for counts of rows and tokens that only the device knows."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ..kernels.attention import attention
from ..kernels.layer_norm import Others, add_layer_norm, quantised_layer_norm
from ..kernels.quantise import Quantised
from ..kernels.rotate import rotate
from ..kernels.scratch import empty
from . import Norm
from .cuda_linear import Int8Linear, Linear, parts_of, run_linear
from .reference import PreparedBlock


class Listed(NamedTuple):
    """`Queries` whose number only the device knows."""

    tokens: Tensor  # int32 [Q]: which token of x each is
    bounds: Tensor  # int32 [R + 1]
    query_count: Tensor  # int32 [1]
    places: Tensor  # int32 [Q]: which token of the context each is; another one than in x where x was not compacted


class Frozen(NamedTuple):
    """The tokens of a context that are no queries."""

    numbers: Tensor  # int32 [T]: the number of each token among the queries, -1 where it is none
    others: Others  # their states, or, where they are renormalised, the sums that an output norm was applied to last


def run_block(
    x: Tensor,
    bounds: Tensor,
    weights: PreparedBlock,
    queries: Literal["all", "first"] | Listed,
    longest: int,
    counts: tuple[Tensor, Tensor],
    sources: tuple[Tensor, Tensor] | None = None,
    kept: Tensor | None = None,
    out: Tensor | None = None,
    frozen: Frozen | None = None,
    sums: Tensor | None = None,
    quantised: Quantised | None = None,
    out_quantised: Quantised | None = None,
) -> tuple[Tensor, Tensor]:
    """`block_sums` of the first rows and tokens, as many as `counts`, int32 [1] each on the device, say.

    sources: the token of x that each token is, int32 [T], and that each row's first token is, int32 [R]; None: tokens
    are in order. kept: what `keys_values` returned; not with "all", nor with sources. frozen: the result is of all
    tokens, and those that are no queries are as this says. quantised: x in int8, where there is that already. Fills
    `out` and `sums` where they are given, and, not with norms first, `out_quantised` with `out` in int8.
    """
    (rows, tokens), (token_sources, first_sources) = counts, sources or (None, None)
    heads, scale = weights.num_heads, weights.scale
    options: dict[str, Any] = {"distances": weights.distances, "window": weights.window}

    def projected(first: int, last: int, count: Tensor, sources: Tensor | None) -> Tensor:
        """Of queries (0), keys (1) and values (2) those from `first` to before `last`."""
        read, sources = before_attention(x, weights, count, sources, quantised)
        parts = parts_of(weights.qkv, first, last)
        return run_linear(read, parts, "none", count, source_rows=sources, out_dtype=x.dtype)

    def turned(x: Tensor, parts: int, **queries: Tensor | None) -> Tensor:
        """Queries and keys (2 parts), or one of them (1), at their positions."""
        if weights.rotary is None:
            return x
        size, angles = len(weights.qkv.bias) // (3 * heads), weights.rotary.angles
        return rotate(x, bounds, angles, parts * heads, size, longest, rows, **queries)

    if isinstance(queries, Listed) or kept is not None:
        assert isinstance(queries, Listed) or queries == "all"
        if kept is None:
            kept = turned(projected(1, 3, tokens, token_sources), 1)
        of_queries = token_sources
        query_bounds, places = bounds, None
        if isinstance(queries, Listed):
            of_queries, query_bounds, tokens, places = queries
        asked = projected(0, 1, tokens, of_queries)
        asked = turned(asked, 1, bounds=None if places is None else query_bounds, tokens=places)
        attended = attention(
            kept, bounds, heads, scale, longest, rows, (asked, query_bounds), query_tokens=places, **options
        )
        token_sources = of_queries
    else:
        qkv = turned(projected(0, 3, tokens, token_sources), 2)
        attended = attention(qkv, bounds, heads, scale, longest, rows, queries, **options)
        if queries == "first":
            tokens, token_sources = rows, bounds[:-1] if first_sources is None else first_sources
    total = run_linear(attended, weights.attention_output, "none", tokens, add=x, add_source_rows=token_sources)
    if weights.norm_first:
        return _feed_forward_first(total, weights, tokens, counts[1], out, frozen)
    assert weights.attention_norm is not None
    read = None
    if isinstance(weights.intermediate, Int8Linear):
        read = Quantised.empty(len(total), total.shape[1], total.device)
    x = add_layer_norm(total, None, *weights.attention_norm, tokens, quantised=read)
    inner = _intermediate(x if read is None else read, weights, tokens, x.dtype)
    if frozen is None:
        total = run_linear(inner, weights.output, "none", tokens, add=x, out=sums)
        return add_layer_norm(total, None, *weights.output_norm, tokens, out=out, quantised=out_quantised), total
    total = run_linear(inner, weights.output, "none", tokens, add=x)
    if sums is None:
        sums = empty(len(frozen.numbers), total.shape[1], dtype=total.dtype, device=x.device)
    out = add_layer_norm(
        total, None, *weights.output_norm, counts[1], out=out, source_rows=frozen.numbers, others=frozen.others,
        sums=sums if frozen.others.renormalises else None, quantised=out_quantised,
    )  # fmt: skip
    return out, sums


def before_attention(
    x: Tensor, weights: PreparedBlock, count: Tensor, sources: Tensor | None, quantised: Quantised | None = None
) -> tuple[Tensor | Quantised, Tensor | None]:
    """What queries, keys and values are made of, and which of its rows to read.

    It is the LayerNorm of x where norms come first, else x itself. quantised: x in int8.
    """
    if not weights.norm_first or weights.attention_norm is None:
        return (x if quantised is None else quantised), sources
    return _normalised(x, weights.attention_norm, weights.qkv, count, sources), None


def _normalised(
    x: Tensor, norm: Norm, weights: Linear | Int8Linear, count: Tensor, sources: Tensor | None = None
) -> Tensor | Quantised:
    """LayerNorm of x, as `weights` read it."""
    if isinstance(weights, Int8Linear):
        return quantised_layer_norm(x, *norm, count, source_rows=sources)
    return add_layer_norm(x, None, *norm, count, source_rows=sources)


def _intermediate(x: Tensor | Quantised, weights: PreparedBlock, count: Tensor, dtype: torch.dtype) -> Tensor:
    """What `output` of a block multiplies, in `dtype`."""
    return run_linear(x, weights.intermediate, weights.activation, count, gated=weights.gated, out_dtype=dtype)


def _feed_forward_first(
    x: Tensor, weights: PreparedBlock, count: Tensor, tokens: Tensor, out: Tensor | None, frozen: Frozen | None
) -> tuple[Tensor, Tensor]:
    """The rest of `run_block` where norms come first. x: the sum after attention; count: of its rows."""
    read = _normalised(x, weights.output_norm, weights.intermediate, count)
    inner = _intermediate(read, weights, count, x.dtype)
    total = run_linear(inner, weights.output, "none", count, add=x, out=out if frozen is None else None)
    if frozen is not None:
        total = add_layer_norm(
            total, None, None, None, 0.0, tokens, out=out, source_rows=frozen.numbers, others=frozen.others
        )
    return total, total
