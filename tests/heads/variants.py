"""Every form a Past-Future, linear or mixed head can have; those of mixed heads are for five layers."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from typing import Any

from pfengine.heads import PastFuture
from pfengine.heads.past_future import CHOICES

from ..pairwise import every, pairs_first

PAST_FUTURE: list[dict[str, Any]] = [
    head
    for values in product(*CHOICES.values())
    if not PastFuture.config_faults(head := {"type": "past-future", **dict(zip(CHOICES, values, strict=True))})
]
LINEAR: list[dict[str, Any]] = [
    {"type": "linear", "pooler": pooler, "combine": combine}
    for pooler, combine in product(CHOICES["pooler"], ("none", "ensemble", "vote"))
]

LINEAR += [{"type": "linear", "pooler": pooler, "learned": True} for pooler in ("per-layer", "none")]
LINEAR += [{"type": "linear", "pooler": pooler, "reads": reads}
           for pooler, reads in product(("shared", "none"), ("mean", "query"))]  # fmt: skip
MIXED: list[dict[str, Any]] = [
    {"type": "mixed", "layers": layers, "previous": previous, "pooler": pooler}
    for layers, previous, pooler in product(([1, 3, 5], [2, 5], [5]), (False, True), CHOICES["pooler"])
]
MIXED += [{"type": "mixed", "layers": [2, 5], "previous": True, "pooler": pooler, "reads": reads}
          for pooler, reads in (("shared", "mean"), ("per-layer", "query"))]  # fmt: skip


def of_states(heads: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that differ in more than what states are made of, for tests that give the states."""
    return [head for head in heads if head.get("reads", "first") == "first"]


def forms(heads: list[dict[str, Any]] = PAST_FUTURE + LINEAR, **beside: Iterable[Any]) -> list[Any]:
    """Parameters ("head", *beside): each head with each of the options beside it, the pairwise cover not marked `wide`.

    A head's defect that shows only with three options at once is found by `make test-wide`.
    """

    def values(case: dict[str, Any]) -> tuple[Any, ...]:
        return ({key: value for key, value in case.items() if key not in beside}, *(case[key] for key in beside))

    return pairs_first([head | one for head in heads for one in every(**beside)], values)
