"""DeBERTa's attention: queries also score the distance of a key, and keys that of a query, by vectors of distances.

He et al., DeBERTa (ICLR 2021), section 3.1; the buckets of far distances are those of its version 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import shown
from .families import Shapes
from .json_fields import Fields, is_int
from .ops.distances import Distances

TABLE, NORM = "encoder.rel_embeddings", "encoder.LayerNorm"  # after the family's prefix
Linear = tuple[Tensor, Tensor]
OWN_KEYS, OWN_QUERIES = "attention.self.pos_key_proj", "attention.self.pos_query_proj"  # after a block's key


@dataclass(frozen=True)
class Disentangled:
    """What config.json says of it. The table of distances has 2 `span` rows, `span` for each direction."""

    span: int
    bucketed: bool  # do far distances share rows, `most` and above the last one?
    most: int
    keys: bool  # do queries score distances ("c2p")?
    queries: bool  # do keys ("p2c")?
    own: bool  # has it linear maps of its own from the table, or those of queries and keys?
    normed: bool  # does the table have a LayerNorm?
    used: bool  # false: scores are only scaled as if distances were scored

    @property
    def terms(self) -> int:
        """How many products a score is the sum of. Its scale is 1 / sqrt(terms d)."""
        return 1 + self.keys + self.queries

    def shapes(self, prefix: str, blocks: list[str], hidden: int) -> Shapes:
        """Its tensors beside those of every block."""
        shapes: Shapes = {}
        if self.used:
            shapes[f"{prefix}{TABLE}.weight"] = (2 * self.span, hidden)
            own = [key for key, there in ((OWN_KEYS, self.keys), (OWN_QUERIES, self.queries)) if self.own and there]
            for block in blocks:
                for key in own:
                    shapes |= {f"{block}{key}.weight": (hidden, hidden), f"{block}{key}.bias": (hidden,)}
        if self.normed:
            shapes |= {f"{prefix}{NORM}.weight": (hidden,), f"{prefix}{NORM}.bias": (hidden,)}
        return shapes

    def table(self, tensors: Mapping[str, Tensor], prefix: str, eps: float) -> Tensor:
        """The vectors of distances, float32 [2 span, H]."""
        table = tensors[f"{prefix}{TABLE}.weight"].float()
        if not self.normed:
            return table
        weight, bias = tensors[f"{prefix}{NORM}.weight"], tensors[f"{prefix}{NORM}.bias"]
        return F.layer_norm(table, table.shape[-1:], weight, bias, eps)

    def bucket(self, distances: Tensor) -> Tensor:
        """The row of each distance i - j of a query at i and a key at j, int64, as transformers rounds it."""
        rows = distances
        if self.bucketed:
            near = self.span // 2
            size = distances.abs()
            whole = torch.tensor((self.most - 1) / near, dtype=torch.float32, device=distances.device)
            far = torch.log(size.clamp(min=near) / near) / torch.log(whole)
            far = torch.ceil(far * (near - 1)) + near
            rows = torch.where(size <= near, distances.float(), far * distances.sign()).long()
        return (rows + self.span).clamp(0, 2 * self.span - 1)


def distances_of(
    form: Disentangled, table: Tensor, keys: Linear | None, queries: Linear | None, heads: int, most: int
) -> Distances:
    """A block's `Distances` for rows of up to `most` tokens.

    table: [2 span, H]. keys, queries: the linear maps from it, [heads d, H] and [heads d], where scores have them.
    """

    def by_head(part: Linear | None, there: bool) -> Tensor | None:
        if part is None or not there:
            return None
        return F.linear(table, *part).view(len(table), heads, -1).transpose(0, 1).contiguous()

    ahead = torch.arange(1 - most, most, dtype=torch.int64, device="cpu")  # j - i
    return Distances(
        bucket=form.bucket(-ahead).to(table.device),
        keys=by_head(keys, form.keys),
        queries=by_head(queries, form.queries),
    )


def parse(fields: Fields, max_positions: int, hidden: int, head_size: int) -> Disentangled:
    """Read it from config.json, as transformers does; what is not supported becomes a fault."""
    get = fields.get
    kinds = get("pos_att_type", "a list of 'c2p' and 'p2c'", _are_kinds, [], [])
    kinds = _names(kinds) if isinstance(kinds, str) else kinds
    buckets = get("position_buckets", "an integer", is_int, 0, -1)
    most = get("max_relative_positions", "an integer", is_int, 0, -1)
    most = max_positions if most < 1 else most
    norms = get("norm_rel_ebd", "'none' or 'layer_norm'", lambda v: isinstance(v, str), "none", "none")
    used = get("relative_attention", "true or false", _is_bool, False, False)
    if used and buckets > 0 and not 2 <= buckets < 2 * (most - 1):
        fault = f"is {buckets}; it must be from 2 to {2 * most - 3}, for distances up to {most}"
        fields.fault("position_buckets", fault)
        buckets = 2
    if get("conv_kernel_size", "an integer", is_int, 0, 0) > 0:
        fields.fault("conv_kernel_size", f"is {fields.raw['conv_kernel_size']}; the convolution is not supported")
    sizes = {"embedding_size": hidden, "pooler_hidden_size": hidden, "attention_head_size": head_size}
    for key, expected in sizes.items():
        if fields.raw.get(key, expected) != expected:
            fields.fault(key, f"is {shown(fields.raw[key])}; only {expected} is supported here")
    return Disentangled(
        span=buckets if buckets > 0 else most,
        bucketed=buckets > 0,
        most=most,
        keys="c2p" in kinds,
        queries="p2c" in kinds,
        own=not get("share_att_key", "true or false", _is_bool, False, False),
        normed="layer_norm" in _names(norms),
        used=used,
    )


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.lower().split("|")]


def _are_kinds(value: object) -> bool:
    names = _names(value) if isinstance(value, str) else value
    return isinstance(names, list) and all(name in ("c2p", "p2c") for name in names)


def _is_bool(value: object) -> bool:
    return isinstance(value, bool)
