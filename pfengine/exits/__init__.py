"""Criteria: rules that turn signals into leave or stay. A new criterion = one class and one line in CRITERIA."""

from __future__ import annotations

from .criteria import Criterion, Entropy, Never, Patience, Replay, parse

__all__ = ["Criterion", "Entropy", "Never", "Patience", "Replay", "parse"]
