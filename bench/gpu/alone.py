"""Every launch of a pass made again alone, many times, its data out of the cache."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pfengine.kernels.launch import Launch
from pfengine.ops.cuda_lanes import CudaModel

from .costs import cost
from .counted import lengths, tested
from .knobs import DRY, SIZES
from .launches import Pass, label, signature
from .results import Results
from .timing import graphed, interleaved
from .work import engine

CACHES = 3  # times the last-level cache: what a round of copies takes at least
MOST_COPIES, LEAST_LAUNCHES = 64, 24  # in a graph
LARGE = 1 << 16  # bytes; smaller arguments stay the ones they are
ROUNDS = 3 if not DRY else 1


def cache_bytes(device: torch.device) -> int:
    if device.type != "cuda":
        return 0
    return int(getattr(torch.cuda.get_device_properties(device), "L2_cache_size", None) or 64 << 20)


def copies(arguments: dict[str, Any], device: torch.device) -> list[dict[str, Any]]:
    """The arguments, and as many copies of the large ones as do not fit into the cache together."""
    large = {k: v for k, v in arguments.items() if isinstance(v, Tensor) and v.numel() * v.element_size() >= LARGE}
    size = sum(value.numel() * value.element_size() for value in large.values())
    many = min(MOST_COPIES, -(-CACHES * cache_bytes(device) // size)) if size else 1
    return [arguments, *({**arguments, **{k: v.clone() for k, v in large.items()}} for _ in range(many - 1))]


def around(calls: Sequence[Any]) -> list[Any]:
    """The calls, over and over, until there are enough for a graph."""
    return list(itertools.islice(itertools.cycle(calls), max(len(calls), LEAST_LAUNCHES if not DRY else 1)))


@torch.inference_mode()
def kernels(batch: int, device: torch.device, results: Results) -> None:
    """A record for each kind of launch of a pass with every exit tested and nobody leaving, SST-2 lengths."""
    hidden = SIZES.hidden[0]
    native = engine(hidden, "authors", device).model.native
    assert isinstance(native, CudaModel)
    rows = [min(length, SIZES.most_tokens) for length in lengths(batch)]
    # never late, as no batch of this size is: what a late exit counts is another number the second time
    once = Pass(native.weights, rows, tested(native.weights, True), SIZES.vocabulary, late=False)
    once.run()  # compiled
    groups: dict[str, list[Launch]] = {}
    for launch in once.noted(run=True):
        groups.setdefault(signature(launch), []).append(launch)
    for launches in groups.values():
        one = launches[0]
        calls = around([partial(one.run, arguments) for arguments in copies(one.arguments, device)])
        rounds = interleaved({"kernel": graphed(calls, device)}, ROUNDS)
        least = cost(one, once.use)
        results.add("kernels", {
            "hidden": hidden, "rows": len(rows), "tokens": sum(rows), "label": label(one, once.use),
            "launches": len(launches), "seconds": rounds.median("kernel"), "flops": least.flops, "bytes": least.bytes,
        })  # fmt: skip
