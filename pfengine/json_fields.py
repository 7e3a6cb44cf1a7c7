"""Typed fields of a JSON object, whose faults are gathered and named with their file and key."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from .errors import shown

REQUIRED = object()


class Fields:
    """Reads typed fields of one JSON object and gathers faults instead of stopping at the first."""

    def __init__(self, raw: dict[str, Any], file: str, faults: list[str]) -> None:
        self.raw, self.file, self.faults = raw, file, faults

    def fault(self, key: str, reason: str) -> None:
        self.faults.append(f"{self.file}: '{key}' {reason}")

    def get(self, key: str, kind: str, test: Callable[[Any], bool], fallback: Any, default: Any = REQUIRED) -> Any:
        """The field, or `default` where absent; `fallback` (and a fault) where missing or wrong."""
        if key not in self.raw or (self.raw[key] is None and default is not REQUIRED):
            if default is not REQUIRED:
                return default
            self.fault(key, f"is missing; it must be {kind}")
            return fallback
        value = self.raw[key]
        if not test(value):
            self.fault(key, f"is {shown(value)}; it must be {kind}")
            return fallback
        return value

    def count(self, key: str, default: Any = REQUIRED, most: int = 2**31 - 1) -> int:
        return self.get(key, f"an integer from 1 to {most}", lambda v: is_int(v) and 0 < v <= most, 1, default)


def is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond every float
        return False
