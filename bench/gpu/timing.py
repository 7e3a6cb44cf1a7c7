"""Clocks: of the device by CUDA events around a graph, a full queue or a batch, of the wall around calls that wait.

On a CPU, where a run is dry, the wall's clock stands in for all of them.
"""

from __future__ import annotations

import contextlib
import cProfile
import pstats
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from pfengine.ops.cuda_flight import CudaFlight

from ..interleave import Rounds
from .work import DRY, SIZES, Prediction

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


def graphed(calls: Sequence[Call], device: torch.device, seconds: float = SIZES.round_seconds) -> Measure:
    """Of one of the calls on the device, all of them recorded as one CUDA graph, one after the other."""
    if device.type != "cuda":
        return often(lambda times: _clock(calls, times), len(calls), seconds)
    for call in calls:  # compiles what is not yet
        call()
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()

    def measure(times: int) -> float:
        return _between(graph.replay, times) / len(calls)

    return often(measure, len(calls), seconds)


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


def often(measure: Callable[[int], float], calls: int = 1, seconds: float = SIZES.round_seconds) -> Measure:
    """As many times as fill a part of a round; after two to warm up, of which the second is read.

    calls: how many of what `measure` gives the seconds of are in one time. seconds: of a part of a round.
    """
    if not seconds:
        return lambda: measure(1)
    measure(1)
    once = max(calls * measure(1), 1e-7)
    times = min(MOST_TIMES, max(1, round(seconds / once)))
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


CALL = "one call of predict"  # its name in a profile
# calls that are read, and those before them, in which the profiler is set up
PROFILED, UNREAD = (1, 1) if DRY else (5, 2)
LONG_GAP = 3e-6  # seconds without work on the device; between the kernels of a graph there is less


class Event(NamedTuple):
    """A call that the host makes, or work of the device; seconds on one clock."""

    name: str
    start: float
    end: float


def profiled(call: Call, device: torch.device) -> dict[str, float]:
    """What host and device did when, in the call of middle length: `timeline` of it, by torch.profiler.

    On a CPU torch's own operations stand in for launches and for the device's work.
    """
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    for _ in range(UNREAD):
        call()
    with profile(activities=kinds) as found:
        for _ in range(UNREAD + PROFILED):
            with record_function(CALL):
                call()
        synchronize(device)
    host: list[Event] = []
    work: list[Event] = []
    for event in found.events():
        where = host if event.device_type == DeviceType.CPU else work
        if where is host or event.name != CALL:  # which the device's part of a profile repeats
            where.append(Event(event.name, 1e-6 * event.time_range.start, 1e-6 * event.time_range.end))
    calls = sorted((event for event in host if event.name == CALL), key=lambda event: event.start)[UNREAD:]
    if device.type != "cuda":
        host = work = [e._replace(name="cudaLaunchKernel") for e in host if e.name.startswith("aten::")]
    if not work:
        raise RuntimeError("the profiler saw no work of the device")
    return timeline(sorted(calls, key=lambda event: event.end - event.start)[len(calls) // 2], host, work)


MOST_FUNCTIONS = 8


def host_functions(call: Call) -> list[tuple[str, float]]:
    """The functions of Python in which the calling thread is longest, without those they call: seconds per call.

    By cProfile, which makes each call of a function slower: a share of them, not the seconds it would take.
    """
    for _ in range(UNREAD):  # it may have to record its graphs anew, where other calls have made the lane larger
        call()
    profiler = cProfile.Profile()
    for _ in range(PROFILED):
        profiler.runcall(call)
    found = []
    for (file, _, function), (_, _, own, _, _) in pstats.Stats(profiler).stats.items():  # type: ignore[attr-defined]
        place = "" if file == "~" else f"{Path(file).stem}."
        found.append((place + function, own / PROFILED))
    return sorted(found, key=lambda each: -each[1])[:MOST_FUNCTIONS]


LAUNCH = re.compile("cu(da)?(Launch|GraphLaunch|Memcpy|Memset)")
GRAPH, WAIT, COPY = re.compile("cu(da)?GraphLaunch"), re.compile("cu(da)?\\w*Synchronize"), re.compile("Mem(cpy|set)")


def timeline(call: Event, host: Sequence[Event], work: Sequence[Event]) -> dict[str, float]:
    """Where the seconds of a call go. host, work: all events of a profile; those within the call are read."""
    host, work = ([e for e in events if call.start <= e.start < call.end] for events in (host, work))
    work.sort(key=lambda event: event.start)
    launches = [event for event in host if LAUNCH.match(event.name)]
    busy, gaps, now = 0.0, [], work[0].start
    for event in work:
        if event.start > now:
            gaps.append(event.start - now)
        busy += max(0.0, event.end - max(now, event.start))
        now = max(now, event.end)
    long_gaps = [gap for gap in gaps if gap >= LONG_GAP]
    first_launch = min((event.start for event in launches), default=work[0].start)
    last_launch = max((event.end for event in launches), default=first_launch)
    return {
        "profiled_seconds": call.end - call.start,
        "before_first_launch_seconds": first_launch - call.start,
        "before_device_seconds": work[0].start - call.start,
        "busy_seconds": busy,
        "long_gaps": len(long_gaps),
        "long_gap_seconds": sum(long_gaps),
        "short_gap_seconds": sum(gaps) - sum(long_gaps),
        "after_last_launch_seconds": call.end - last_launch,
        "after_device_seconds": call.end - now,
        "host_waits_seconds": sum(event.end - event.start for event in host if WAIT.match(event.name)),
        "launches": sum(not GRAPH.match(event.name) for event in launches),
        "graph_replays": sum(bool(GRAPH.match(event.name)) for event in launches),
        "kernels": sum(not COPY.match(event.name) for event in work),
        "copies": sum(bool(COPY.match(event.name)) for event in work),
    }
