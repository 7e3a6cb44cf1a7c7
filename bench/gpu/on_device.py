"""How long the GPU takes for a batch of `Engine.predict`: from the first launch to the last, inputs being there."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import torch

from pfengine.ops.cuda_lanes import Lane

from .timing import Measure, often, synchronize
from .work import Prediction

Span = Callable[[], float]  # seconds, once the device has got there


@contextlib.contextmanager
def spans(device: torch.device) -> Iterator[list[Span]]:
    """Of each batch that any engine computes meanwhile. Batches that overlap would each count what both take."""
    found: list[Span] = []
    real = Lane.compute

    def compute(lane: Lane, *arguments: Any, **options: Any) -> None:
        if device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()  # on the lane's stream, which is the current one
            real(lane, *arguments, **options)
            end.record()
            found.append(lambda: 1e-3 * float(start.elapsed_time(end)))
        else:
            began = time.perf_counter()
            real(lane, *arguments, **options)
            seconds = time.perf_counter() - began
            found.append(lambda: seconds)

    with mock.patch.object(Lane, "compute", compute):
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
