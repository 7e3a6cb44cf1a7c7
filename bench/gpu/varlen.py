"""Ragged attention beside torch's own: varlen attention and SDPA over nested tensors."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from pfengine.kernels.attention import attention
from pfengine.ops import reference
from pfengine.ops.cuda import full

from .alone import copies
from .counted import lengths
from .knobs import SIZES
from .results import Results, first_line
from .timing import Measure, interleaved, queued

OURS, VARLEN, NESTED = "pfengine", "torch varlen_attn", "torch nested SDPA"
ALLOWED = 0.03  # of numbers near 1: bf16 has 8 bits, and both products round
QUEUED = 50  # calls; torch's own are a few launches each


def contestants(bounds: Tensor, heads: int, size: int, longest: int) -> Iterator[tuple[str, Callable[..., Tensor]]]:
    """Each from its inputs, [T, 3 heads size] for us and three of [T, heads, size] for torch, to [T, heads size]."""
    count = full(len(bounds) - 1, bounds.device)
    yield OURS, lambda qkv: attention(qkv, bounds, heads, size**-0.5, longest, count)

    def varlen(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        from torch.nn.attention.varlen import varlen_attn

        out = varlen_attn(q, k, v, bounds, bounds, longest, longest)
        return (out if isinstance(out, Tensor) else out[0]).flatten(1)

    offsets = bounds.long()

    def nested(*inputs: Tensor) -> Tensor:
        q, k, v = (
            torch.nested.nested_tensor_from_jagged(x, offsets, min_seqlen=1, max_seqlen=longest).transpose(1, 2)
            for x in inputs
        )
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).values().flatten(1)

    yield VARLEN, varlen
    yield NESTED, nested


@torch.inference_mode()
def ragged_attention(device: torch.device, results: Results) -> None:
    """A batch of SST-2 lengths. torch gets its queries, keys and values apart, and that costs it nothing here."""
    heads, hidden = SIZES.attention_heads, SIZES.hidden[0]
    rows = [min(length, SIZES.most_tokens) for length in lengths(SIZES.large_batch)]
    bounds = torch.tensor([0, *rows], device=device).cumsum(0).int()
    generator = torch.Generator(device).manual_seed(0)
    qkv = torch.randn(sum(rows), 3 * hidden, generator=generator, device=device, dtype=SIZES.dtype)
    apart = [part.contiguous() for part in qkv.view(len(qkv), 3, heads, hidden // heads).unbind(1)]
    wanted = reference.attention(qkv.float(), bounds, heads, (hidden // heads) ** -0.5, False)
    measures: dict[str, Measure] = {}
    for name, call in contestants(bounds, heads, hidden // heads, max(rows)):
        inputs = {"0": qkv} if name == OURS else {str(i): part for i, part in enumerate(apart)}
        try:
            error = float((call(*inputs.values()).float() - wanted).abs().max())
            if not error <= ALLOWED:
                raise AssertionError(f"its numbers differ from fp32's by {error:.2g}, more than {ALLOWED}")
            calls = [partial(call, *some.values()) for some in copies(inputs, device)]
            measures[name] = queued(partial(_next, itertools.cycle(calls)), device, QUEUED)
        except Exception as error:
            if name == OURS:
                raise
            results.miss(f"ragged attention: {name}", first_line(error))
    rounds = interleaved(measures)
    for name in measures:
        results.add("single", {
            "what": "ragged attention", "hidden": hidden, "rows": len(rows), "tokens": sum(rows), "contestant": name,
            "seconds": rounds.median(name), "pfengine_is_faster": rounds.speedup(OURS, name),
        })  # fmt: skip


def _next(calls: Iterator[Callable[[], Tensor]]) -> Tensor:
    return next(calls)()
