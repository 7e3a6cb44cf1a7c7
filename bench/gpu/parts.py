"""Parts of a pass, and the two rates they are held against: each launch alone, ragged attention beside torch's own."""

from __future__ import annotations

import importlib
import itertools
import multiprocessing
import site
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pfengine.kernels.attention import attention
from pfengine.kernels.launch import Launch
from pfengine.ops import reference
from pfengine.ops.cuda_model import CudaModel
from pfengine.ops.cuda_ops import full

from ..engines import first_line
from .costs import cost
from .counted import Pass, label, lengths, signature, tested
from .results import Record, Results
from .timing import Measure, graphed, host_functions, interleaved, profiled, queued, wall
from .work import DRY, FLASH, NESTED, OFF, OURS, ROOT, SIZES, VARLEN, Cell, Prediction, engine, exit_layers

REPEATS = 4  # in a graph


@torch.inference_mode()
def ceilings(device: torch.device, results: Results) -> None:
    """Random numbers: products of zeros are faster. The copy's bytes are those read and those written."""
    generator = torch.Generator(device).manual_seed(0)

    def normal() -> torch.Tensor:
        return torch.randn(SIZES.gemm, SIZES.gemm, generator=generator, device=device, dtype=torch.bfloat16)

    x, y, product = normal(), normal(), normal()
    numbers = SIZES.copy_bytes // 4
    source = torch.randint(1 << 30, (numbers,), generator=generator, device=device, dtype=torch.int32)
    target = torch.empty_like(source)
    rounds = interleaved({
        "gemm": graphed([lambda: torch.matmul(x, y, out=product)] * REPEATS, device),
        "copy": graphed([lambda: target.copy_(source)] * REPEATS, device),
    })  # fmt: skip
    flops, moved = 2 * SIZES.gemm**3, 2 * numbers * 4
    results.ceilings(
        gemm_size=SIZES.gemm,
        gemm_flops_per_second=flops / rounds.median("gemm"),
        gemm_slowest=flops / max(rounds.seconds["gemm"]),
        gemm_fastest=flops / min(rounds.seconds["gemm"]),
        copy_bytes=moved,
        copy_bytes_per_second=moved / rounds.median("copy"),
        copy_slowest=moved / max(rounds.seconds["copy"]),
        copy_fastest=moved / min(rounds.seconds["copy"]),
    )


CACHES = 3  # times the last-level cache: what a round of copies takes at least
MOST_COPIES, LEAST_LAUNCHES = 64, 34  # in a graph: a hundred in all rounds
KERNEL_SECONDS = 2e-3 if not DRY else 0.0  # of a round: there are two hundred kinds of launches
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
def kernels(hidden: int, batch: int, device: torch.device, results: Results) -> None:
    """A record for each kind of launch of a pass with every exit tested and nobody leaving, SST-2 lengths."""
    carrier = engine(hidden, "authors", device).model.carrier
    assert isinstance(carrier, CudaModel)
    rows = [min(length, SIZES.most_tokens) for length in lengths(batch)]
    once = Pass(carrier.weights, rows, tested(carrier.weights, True), SIZES.vocabulary)
    once.run()  # compiled
    once.fill()
    groups: dict[str, list[Launch]] = {}
    for launch in once.noted(run=True):
        groups.setdefault(signature(launch), []).append(launch)
    for launches in groups.values():
        once.fill()  # after a whole pass every row has its answer, and what runs beside layers counts no row any more
        one = launches[0]
        calls = around([partial(one.run, arguments) for arguments in copies(one.arguments, device)])
        rounds = interleaved({"kernel": graphed(calls, device, KERNEL_SECONDS)}, ROUNDS)
        least = cost(one, once.use)
        results.add("kernels", {
            "hidden": hidden, "rows": len(rows), "tokens": sum(rows), "label": label(one, once.use),
            "launches": len(launches), "seconds": rounds.median("kernel"), "flops": least.flops, "bytes": least.bytes,
        })  # fmt: skip


def timelines(cells: Sequence[Cell], device: torch.device, results: Results) -> None:
    """`predict` of one batch as profilers see it, exits off and replayed, beside the same call without one.

    In a process of its own: where the device has been profiled once, launches may be slower ever after.
    """
    spawn = multiprocessing.get_context("spawn")
    # the repository at the end of its path: pfengine stays the one that is installed
    with ProcessPoolExecutor(1, spawn, initializer=site.addsitedir, initargs=(str(ROOT),)) as apart:
        for record in apart.submit(_timelines, cells, device).result():
            results.add("timeline", record)


def _timelines(cells: Sequence[Cell], device: torch.device) -> list[Record]:
    runs: dict[tuple[Cell, str], Prediction] = {}
    seconds: dict[tuple[Cell, str], float] = {}
    for cell in cells:
        rows, model = cell.rows()[: cell.batch], engine(cell.hidden, "authors", device)
        both = {OFF: Prediction(model, rows, cell.batch)}
        both["2x"] = Prediction(model, rows, cell.batch, exit_layers(rows, 2.0))
        rounds = interleaved({name: wall(run, device) for name, run in both.items()})
        for name, run in both.items():
            runs[cell, name], seconds[cell, name] = run, rounds.median(name)
    return [
        {
            **cell._asdict(), "rows": len(run.inputs), "contestant": name, "seconds": seconds[cell, name],
            "host": host_functions(run), **profiled(run, device),
        }
        for (cell, name), run in runs.items()
    ]  # fmt: skip


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

    def flash(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        attend = importlib.import_module("flash_attn").flash_attn_varlen_func
        return attend(q, k, v, bounds, bounds, longest, longest).flatten(1)

    yield VARLEN, varlen
    yield NESTED, nested
    yield FLASH, flash


@torch.inference_mode()
def ragged_attention(device: torch.device, results: Results) -> None:
    """A batch of SST-2 lengths. torch gets its queries, keys and values apart, and that costs it nothing here."""
    heads, hidden = SIZES.attention_heads, SIZES.hidden[0]
    rows = [min(length, SIZES.most_tokens) for length in lengths(SIZES.large_batch)]
    bounds = torch.tensor([0, *rows], device=device).cumsum(0).int()
    generator = torch.Generator(device).manual_seed(0)
    qkv = torch.randn(sum(rows), 3 * hidden, generator=generator, device=device, dtype=SIZES.dtype)
    apart = [part.contiguous() for part in qkv.view(len(qkv), 3, heads, hidden // heads).unbind(1)]
    wanted = reference.attention(qkv.float(), bounds, heads, (hidden // heads) ** -0.5)
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


MOST_GROWTH = 2 << 20  # bytes of reserved memory once all sizes have been seen: one block of torch's allocator
SOAK_BATCHES = 24


def soak(device: torch.device, results: Results) -> None:
    """Two threads, batches of all sizes, with and without graphs: the same bits for minutes, and memory that stays."""
    hidden, generator = SIZES.hidden[0], np.random.default_rng(1)
    models = {how: engine(hidden, "authors", device, how) for how in ("as it is", "one graph", "eager")}
    runs: list[dict[str, Prediction]] = []
    for i in range(SOAK_BATCHES if not DRY else 2):
        count = int(generator.integers(1, SIZES.goal_batch + 1))
        rows = Cell(hidden, "SST-2", count).rows()[:count]
        layers = generator.integers(1, SIZES.layers + 1, count) if i % 3 else None
        criterion = f"entropy:{generator.random():.3f}" if i % 2 else "never"
        runs.append({how: Prediction(model, rows, count, layers, criterion) for how, model in models.items()})
    wanted = [run["eager"]() for run in runs]
    counted, reserved = [0, 0], [0, 0]

    def work(thread: int) -> None:
        order, began = np.random.default_rng(thread), time.monotonic()
        while (spent := time.monotonic() - began) < SIZES.soak_seconds:
            i, how = int(order.integers(len(runs))), ("as it is", "one graph")[int(order.integers(2))]
            found = runs[i][how]()
            np.testing.assert_array_equal(found.exit_layers, wanted[i].exit_layers)
            np.testing.assert_array_equal(found.logits, wanted[i].logits)
            counted[thread] += len(found.logits)
            if device.type == "cuda" and thread == 0 and (spent < SIZES.soak_seconds / 2 or not reserved[0]):
                reserved[0] = torch.cuda.memory_reserved(device)

    with ThreadPoolExecutor(2) as pool:
        for thread in [pool.submit(work, i) for i in range(2)]:
            thread.result()
    if device.type == "cuda":
        reserved[1] = torch.cuda.memory_reserved(device)
    if reserved[1] - reserved[0] > MOST_GROWTH:
        raise AssertionError(f"reserved memory grew from {reserved[0]:,} to {reserved[1]:,} bytes in the second half")
    results.add("single", {
        "what": "soak", "hidden": hidden, "seconds": SIZES.soak_seconds, "rows": sum(counted),
        "reserved_bytes": reserved[1], "reserved_bytes_at_half_time": reserved[0],
    })  # fmt: skip
