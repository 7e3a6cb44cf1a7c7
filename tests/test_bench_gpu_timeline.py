"""Where the GPU suite says that a call's time goes: profiles, read without a GPU."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
sys.path.append(str(Path(__file__).parent.parent))  # at its end: pfengine stays the one that is installed

from bench.gpu import timing
from bench.gpu.timing import Event


def profile() -> tuple[Event, list[Event], list[Event]]:
    """A call of 1 ms: three launches, of which one is a graph, and what they start; and a launch after it."""
    host = [
        Event("cudaMemcpyAsync", 1.1, 1.11), Event("cudaGraphLaunch", 1.2, 1.22),
        Event("cudaEventSynchronize", 1.3, 1.5), Event("cuLaunchKernelEx", 1.6, 1.61),
        Event("cudaStreamSynchronize", 1.7, 1.9), Event("other", 1.0, 1.95), Event("cudaLaunchKernel", 2.1, 2.2),
    ]  # fmt: skip
    work = [
        Event("Memcpy HtoD (Pinned -> Device)", 1.12, 1.15), Event("_linear_kernel", 1.25, 1.3),
        Event("_linear_kernel", 1.3000005, 1.35), Event("beside it", 1.32, 1.36), Event("_linear_kernel", 1.65, 1.8),
        Event("later", 2.15, 2.2),
    ]  # fmt: skip
    return Event(timing.CALL, 1.0, 2.0), host[::-1], work[::-1]


def test_timeline() -> None:
    assert timing.timeline(*profile()) == {
        "profiled_seconds": 1.0,
        "before_first_launch_seconds": pytest.approx(0.1),
        "before_device_seconds": pytest.approx(0.12),
        "busy_seconds": pytest.approx(0.03 + 0.11 + 0.15, abs=1e-5),
        "long_gaps": 2,
        "long_gap_seconds": pytest.approx(0.1 + 0.29),
        "short_gap_seconds": pytest.approx(5e-7, rel=1e-3),
        "after_last_launch_seconds": pytest.approx(0.39),
        "after_device_seconds": pytest.approx(0.2),
        "host_waits_seconds": pytest.approx(0.4),
        "launches": 2,
        "graph_replays": 1,
        "kernels": 4,
        "copies": 1,
    }


def test_a_profile_is_read() -> None:
    """On a CPU, where torch's operations stand in: the calls in front are not read, and what is in the call is."""
    calls = []

    def call() -> None:
        calls.append(torch.ones(len(calls) + 1).add_(1.0))

    found = timing.profiled(call, torch.device("cpu"))
    assert len(calls) == 2 * timing.UNREAD + timing.PROFILED
    assert found["launches"] >= 2
    assert 0 < found["busy_seconds"] < found["profiled_seconds"]


def test_functions_of_the_host() -> None:
    found = timing.host_functions(lambda: [sorted(range(20_000)), time.sleep(0.01)])
    assert 1 < len(found) <= timing.MOST_FUNCTIONS
    assert found[0][0] == "<built-in method time.sleep>"
    assert 0.01 <= found[0][1] < 1
