"""Clocks: of the device by CUDA events around a graph, a full queue or a batch, of the wall around calls that wait.

On a CPU, where a run is dry, the wall's clock stands in for all of them.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from unittest import mock

import torch

from pfengine.ops.cuda_flight import CudaFlight

from ..interleave import Rounds
from .work import SIZES, Prediction

Call = Callable[[], Any]
Measure = Callable[[], float]  # seconds of one call, on average over a part of a round
QUEUE_CYCLES = 100_000_000  # about 50 ms: the GPU waits as long, and the host fills its queue meanwhile
MOST_TIMES = 2000


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def wall(call: Call, device: torch.device) -> Measure:
    """Of a call whose answers end up on the host. Called once here, to see how often a part of a round needs it."""

    def measure(times: int) -> float:
        synchronize(device)
        start = time.perf_counter()
        for _ in range(times):
            call()
        synchronize(device)
        return (time.perf_counter() - start) / times

    return often(measure)


def graphed(calls: Sequence[Call], device: torch.device) -> Measure:
    """Of one of the calls on the device, all of them recorded as one CUDA graph, one after the other."""
    if device.type != "cuda":
        return often(lambda times: _clock(calls, times), len(calls))
    for call in calls:  # compiles what is not yet
        call()
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()

    def measure(times: int) -> float:
        return _between(graph.replay, times) / len(calls)

    return often(measure, len(calls))


def queued(call: Call, device: torch.device, most: int = 3) -> Measure:
    """Of a call on the device, when the host is ahead of it: no wait of the host is in it unless the call waits.

    most: calls that the queue has room for, of 1,024 launches.
    """
    if device.type != "cuda":
        return often(lambda times: _clock([call], times))
    call()

    def measure(_: int) -> float:
        torch.cuda.synchronize(device)
        torch.cuda._sleep(QUEUE_CYCLES)
        return _between(call, most)

    return lambda: measure(most)


def _between(call: Call, times: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(times):
        call()
    end.record()
    end.synchronize()
    return 1e-3 * float(start.elapsed_time(end)) / times


def _clock(calls: Sequence[Call], times: int) -> float:
    start = time.perf_counter()
    for _ in range(times):
        for call in calls:
            call()
    return (time.perf_counter() - start) / times / len(calls)


def often(measure: Callable[[int], float], calls: int = 1) -> Measure:
    """As many times as fill a part of a round; after two to warm up, of which the second is read.

    calls: how many of what `measure` gives the seconds of are in one time.
    """
    if not SIZES.round_seconds:
        return lambda: measure(1)
    measure(1)
    once = max(calls * measure(1), 1e-7)
    times = min(MOST_TIMES, max(1, round(SIZES.round_seconds / once)))
    return lambda: measure(times)


def interleaved(measures: Mapping[str, Measure], rounds: int = SIZES.rounds) -> Rounds:
    """Each once per round: what drifts meets all of them."""
    found = Rounds(seconds={name: [] for name in measures})
    for _ in range(rounds):
        for name, measure in measures.items():
            found.seconds[name].append(measure())
    return found


Span = Callable[[], float]  # seconds, once the device has got there


@contextlib.contextmanager
def spans(device: torch.device) -> Iterator[list[Span]]:
    """Of each batch that any engine computes meanwhile. Batches that overlap would each count what both take."""
    found: list[Span] = []
    real = CudaFlight._run

    def run(flight: CudaFlight, *arguments: Any, **options: Any) -> bool:
        if device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()  # on the lane's stream, which is the current one
            some_are_left = real(flight, *arguments, **options)
            end.record()
            found.append(lambda: 1e-3 * float(start.elapsed_time(end)))
        else:
            began = time.perf_counter()
            some_are_left = real(flight, *arguments, **options)
            seconds = time.perf_counter() - began
            found.append(lambda: seconds)
        return some_are_left

    with mock.patch.object(CudaFlight, "_run", run):
        yield found


def on_device(batches: Sequence[Prediction], device: torch.device) -> Measure:
    """Of all batches together, each a call of its own, so that none overlap."""

    def measure(times: int) -> float:
        with spans(device) as found:
            for _ in range(times):
                for batch in batches:
                    batch()
        synchronize(device)
        if len(found) != times * len(batches):
            raise RuntimeError(f"{len(found)} batches were computed, expected {times * len(batches)}")
        return sum(span() for span in found) / times

    return often(measure)
