"""Our own threads, as they are seen from outside."""

from __future__ import annotations

import os
import time

import pytest

import pfengine

from .conftest import Make


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="processors can be chosen on Linux only")
def test_threads_may_run_where_they_might_before(make_checkpoint: Make) -> None:
    """A thread that is woken on its caller's processor leaves it, and may come back."""
    engine = pfengine.load(make_checkpoint("bert"), precision="fp32")
    everywhere = os.sched_getaffinity(0)
    rows = [{"input_ids": list(range(1, 60))}] * 8
    for _ in range(5):
        time.sleep(0.05)  # so that its threads sleep
        engine.predict(rows)
    tasks = [int(task) for task in os.listdir("/proc/self/task")]
    assert {frozenset(os.sched_getaffinity(task)) for task in tasks} == {frozenset(everywhere)}
    try:
        os.sched_setaffinity(0, {min(everywhere)})
        time.sleep(0.05)
        assert engine.predict(rows).exit_layers.all()
    finally:
        os.sched_setaffinity(0, everywhere)
