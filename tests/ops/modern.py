"""What a block of ModernBERT has that BERT's has not, with random weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from pfengine.ops import Block, Rotary
from pfengine.ops.rotary import angles

WINDOW = 7


def modern(
    block: Block, linear: Callable[[int, int], tuple[Tensor, Tensor]], longest: int, first_layer: bool = False
) -> Block:
    """The block with norms first, gates, rotary positions and a window; with no norm before the first attention."""
    inner, hidden = block.intermediate[0].shape
    changes: dict[str, Any] = {
        "norm_first": True,
        "gated": True,
        "intermediate": linear(2 * inner, hidden),
        "rotary": Rotary(
            angles(100.0, len(block.qkv[1]) // 3 // block.num_heads, longest).angles.to(block.qkv[0].device)
        ),
    }
    return block._replace(**changes, **({"attention_norm": None} if first_layer else {"window": WINDOW}))
