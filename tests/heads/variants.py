"""Every form a Past-Future or linear head can have."""

from __future__ import annotations

from itertools import product
from typing import Any

from pfengine.heads import PastFuture
from pfengine.heads.past_future import CHOICES

PAST_FUTURE: list[dict[str, Any]] = [
    head
    for values in product(*CHOICES.values())
    if not PastFuture.config_faults(head := {"type": "past-future", **dict(zip(CHOICES, values, strict=True))})
]
LINEAR: list[dict[str, Any]] = [
    {"type": "linear", "pooler": pooler, "combine": combine}
    for pooler, combine in product(CHOICES["pooler"], ("none", "ensemble", "vote"))
]


def name(head: dict[str, Any]) -> str:
    return "-".join(str(value) for key, value in head.items() if key != "type")
