"""What the exits of a head read of a layer, and the queries by which they weigh a row's tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

from torch import Tensor

from ..config import BackboneConfig
from ..families import Shapes
from ..ops import OpSet
from .base import PREFIX

ReadsOfRow = Literal["first", "mean", "query"]
READS: tuple[ReadsOfRow, ...] = get_args(ReadsOfRow)
KEY = "queries.weight"


class Reading:
    """One vector per row. It is the option `reads` of heads whose exits score rows.

    "first": the hidden state of the row's first token. "mean": the mean of those of its tokens. "query": their mean
    weighed by queries, of which each exit has its own, as many as the encoder has attention heads. In the k-th of as
    many groups of channels the weight of token t is softmax_t(q_k . h_t); no projection, no scale.

    Tensors: queries [n, heads, H].
    """

    def __init__(self, ops: OpSet | None, head: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """ops: of the queries, which are prepared here."""
        self.kind: ReadsOfRow = head.get("reads", "first")
        self.queries: list[Any] = []
        if ops is not None and self.kind == "query":
            self.queries = [ops.prepare_queries(each) for each in tensors[KEY]]

    def exit(self, layer: int) -> dict[str, Any]:
        """The arguments of `ops.Exit` that say what the exit after `layer` reads."""
        return {"reads": self.kind, "queries": self.queries[layer - 1] if self.queries else None}

    @staticmethod
    def shapes(config: BackboneConfig, head: Mapping[str, Any]) -> Shapes:
        if head.get("reads") != "query":
            return {}
        return {PREFIX + KEY: (config.num_layers, config.num_heads, config.hidden_size)}


FIRST = Reading(None, {}, {})
