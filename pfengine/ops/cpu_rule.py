"""Exit rules as `_C` reads them, and its decision of who leaves."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import extension
from ..extension import address
from .rule import ExitRule

if TYPE_CHECKING:
    from .. import _C


def native_rule(rule: ExitRule) -> _C.ExitRule:
    """The rule as a _C.ExitRule, which holds references to the rule's arrays.

    Raises ValueError where the rule makes no sense, TypeError where numbers are not contiguous float32.
    """
    C = extension.module()
    tokens = None if rule.tokens is None else C.TokenRule(*rule.tokens)
    return C.ExitRule(rule.tested, [C.Clause(*clause) for clause in rule.clauses], tokens)


def decide(
    rule: ExitRule,
    layer: int,
    logits: Tensor,
    learned: Tensor | None,
    state: Tensor | None,
    slots: Tensor,
    bounds: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`decide.decide` with `extension.signal`, of CPU tensors, in one call of `_C`; with the same bits."""
    native = native_rule(rule)
    logits = logits.float().contiguous()
    (count, labels), units, width = logits.shape, len(slots), rule.width(logits.shape[1])
    if state is None:
        after = torch.full((units, width), math.nan, dtype=torch.float32, device="cpu")
    else:
        after = state.clone(memory_format=torch.contiguous_format)
    leave = torch.empty(units, dtype=torch.bool, device="cpu")
    rows = 0 if bounds is None else len(bounds) - 1
    by_row = rule.tokens is not None and rule.tokens.unit == "row"
    extension.module().run_decide(
        native,
        layer,
        address("logits", logits, torch.float32, (count, labels)),
        address("learned", learned, torch.float32, (count,)),
        count,
        labels,
        address("bounds", bounds, torch.int32, (rows + 1,)),
        rows,
        address("slots", slots, torch.int64, (rows if by_row else count,)),
        address("state", after, torch.float32, (units, width)),
        address("leave", leave, torch.bool, (units,)),
    )
    return leave, after
