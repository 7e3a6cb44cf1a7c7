"""The loop that replays segments without Python, over a stand-in for the GPU that runs in a thread of its own."""

from __future__ import annotations

import ctypes
import importlib.util
import queue
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pfengine import extension

pytestmark = pytest.mark.skipif(
    not extension.has_cpu() or importlib.util.find_spec("triton") is None,
    reason=f"{extension.status()}; and the buckets are those of the GPU path, which needs triton",
)
SEGMENTS = 5
STREAM = 77
NOT_READY, ILLEGAL_ADDRESS = 600, 700


class FakeGPU:
    """Runs what is launched, one after the other; a graph is the number of its segment plus 1."""

    def __init__(self) -> None:
        self.words = np.zeros((SEGMENTS, 4), np.int64)
        self.left: dict[int, tuple[int, int, int]] = {}  # what is left after each segment that tells
        self.ticket, self.launched, self.done = 1, 0, 0
        self.ahead: list[int] = []  # at each launch: how many segments were launched but not done
        self.order: list[int] = []
        self.seconds, self.launch_code, self.query_code = 0.002, 0, 0
        self.work: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self.compute, daemon=True)
        self.thread.start()

        @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
        def launch(graph: int, stream: int) -> int:
            assert stream == STREAM
            self.ahead.append(self.launched - self.done)
            self.launched += 1
            self.order.append(graph - 1)
            self.work.put(graph - 1)
            return self.launch_code

        @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)
        def query(stream: int) -> int:
            return self.query_code or (NOT_READY if self.done < self.launched else 0)

        self.functions = launch, query
        addresses = (ctypes.cast(each, ctypes.c_void_p).value for each in self.functions)
        self.loop = extension._C.SegmentLoop(*addresses, self.words.ctypes.data, SEGMENTS, 16, 64)

    def compute(self) -> None:
        while (segment := self.work.get()) is not None:
            time.sleep(self.seconds)
            if segment in self.left:
                self.words[segment, :3] = self.ticket << 32 | np.array(self.left[segment])
            self.done += 1

    def run(self, left: tuple[int, int, int] = (5, 70, 70), next: int = 0, **options: Any) -> tuple[int, ...]:
        slots = [i if i in self.left or options.get("tells") else -1 for i in range(SEGMENTS)]
        bucket, longest = options.get("bucket"), options.get("longest", 33)
        return self.loop.run(list(range(SEGMENTS)), slots, next, *left, bucket, longest, self.ticket, STREAM)


@pytest.fixture
def gpu() -> Iterator[FakeGPU]:
    fake = FakeGPU()
    yield fake
    fake.work.put(None)
    fake.thread.join()


def test_a_segment_is_as_large_as_what_was_left_two_segments_before(gpu: FakeGPU) -> None:
    gpu.left = {0: (5, 70, 70), 1: (2, 20, 9), 2: (1, 7, 7), 3: (1, 7, 7)}
    sizes = [(8, 128, 64, 128)] * 3 + [(2, 32, 64, 16), (1, 16, 64, 16)]
    for segment, bucket in enumerate(sizes):
        gpu.loop.add(segment, bucket, segment + 1)
    assert gpu.run() == (SEGMENTS, 1, 7, 7)  # what was left after segment 2
    assert gpu.order == list(range(SEGMENTS))
    assert max(gpu.ahead) == 1


def test_it_stops_where_no_row_is_left(gpu: FakeGPU) -> None:
    gpu.left = {0: (5, 70, 70), 1: (0, 0, 0), 2: (0, 0, 0)}
    for segment in range(SEGMENTS):
        gpu.loop.add(segment, (8, 128, 64, 128), segment + 1)
    assert gpu.run() == (3, 0, 0, 0)
    assert gpu.order == [0, 1, 2]


def test_it_comes_back_for_a_segment_without_a_graph_and_goes_on_after_it(gpu: FakeGPU) -> None:
    gpu.left = {0: (5, 70, 70), 1: (2, 20, 20), 2: (2, 20, 20), 3: (1, 1, 1)}
    for segment, bucket in ((0, (8, 128, 64, 128)), (1, (8, 128, 64, 128)), (2, (8, 128, 64, 128))):
        gpu.loop.add(segment, bucket, segment + 1)
    gpu.loop.add(4, (2, 32, 64, 32), 5)
    assert gpu.run() == (3, 2, 20, 20)
    gpu.functions[0](4, STREAM)  # as Python runs it
    assert gpu.run((2, 20, 20), next=4) == (SEGMENTS, 2, 20, 20)
    assert gpu.order == list(range(SEGMENTS))


def test_rows_that_stay_together_have_one_bucket(gpu: FakeGPU) -> None:
    bucket = (4, 16, 64, 16)
    gpu.left = dict.fromkeys(range(SEGMENTS), (1, 2, 2))
    for segment in range(SEGMENTS):
        gpu.loop.add(segment, bucket, segment + 1)
    assert gpu.run((3, 9, 9), bucket=bucket)[0] == SEGMENTS


def test_what_an_earlier_batch_left_is_not_read(gpu: FakeGPU) -> None:
    gpu.words[:] = 1 << 32 | 0  # nobody was left
    gpu.ticket = 2
    gpu.left = dict.fromkeys(range(SEGMENTS), (5, 70, 70))
    for segment in range(SEGMENTS):
        gpu.loop.add(segment, (8, 128, 64, 128), segment + 1)
    assert gpu.run() == (SEGMENTS, 5, 70, 70)


@pytest.mark.parametrize(
    ("launch_code", "query_code", "message"),
    [
        (ILLEGAL_ADDRESS, 0, "cuGraphLaunch failed: CUDA error 700"),
        (0, ILLEGAL_ADDRESS, "cuStreamQuery failed: CUDA error 700"),
        (0, 0, "the GPU has done all that was launched, but has not said how many rows are left"),
    ],
)
def test_a_gpu_that_fails_is_not_waited_for_for_ever(
    gpu: FakeGPU, launch_code: int, query_code: int, message: str
) -> None:
    gpu.launch_code, gpu.query_code = launch_code, query_code
    for segment in range(SEGMENTS):
        gpu.loop.add(segment, (8, 128, 64, 128), segment + 1)
    with pytest.raises(RuntimeError, match=message):
        gpu.run(tells=True)


def test_python_goes_on_meanwhile(gpu: FakeGPU) -> None:
    gpu.seconds = 0.05
    gpu.left = dict.fromkeys(range(SEGMENTS), (5, 70, 70))
    for segment in range(SEGMENTS):
        gpu.loop.add(segment, (8, 128, 64, 128), segment + 1)
    counted, stop = [0], threading.Event()

    def count() -> None:
        while not stop.is_set():
            counted[0] += 1
            time.sleep(0.001)

    thread = threading.Thread(target=count)
    thread.start()
    before = counted[0]
    gpu.run()
    stop.set()
    thread.join()
    assert counted[0] - before >= 20  # of some 150; with the GIL held it would be a few


def test_the_graph_launched_longest_ago_is_forgotten_first(gpu: FakeGPU) -> None:
    bucket = (8, 128, 64, 128)
    for segment in range(3):
        gpu.loop.add(segment, bucket, segment + 1)
    assert gpu.run()[0] == 3
    gpu.loop.add(0, bucket, 1)  # as good as used
    assert [gpu.loop.drop_oldest() for _ in range(3)] == [(1, bucket), (2, bucket), (0, bucket)]
    with pytest.raises(RuntimeError, match="there is no graph"):
        gpu.loop.drop_oldest()
    gpu.loop.add(0, bucket, 1)
    gpu.loop.clear()
    assert gpu.run()[0] == 0


def test_wrong_arguments_are_refused(gpu: FakeGPU) -> None:
    run = gpu.loop.run
    with pytest.raises(ValueError, match="slot 5 does not exist"):
        run([0], [SEGMENTS], 0, 1, 1, 1, None, 1, 1, STREAM)
    with pytest.raises(ValueError, match="a slot for each segment"):
        run([0], [], 0, 1, 1, 1, None, 1, 1, STREAM)
    with pytest.raises(ValueError, match="next is 2, expected at most 1"):
        run([0], [-1], 2, 1, 1, 1, None, 1, 1, STREAM)
    with pytest.raises(ValueError, match="launch and query must be addresses"):
        extension._C.SegmentLoop(0, 0, gpu.words.ctypes.data, SEGMENTS, 16, 64)
    with pytest.raises(ValueError, match="words"):
        extension._C.SegmentLoop(1, 1, 0, SEGMENTS, 16, 64)


@settings(deadline=None)
@given(st.integers(1, 4096), st.integers(1, 70_000), st.integers(1, 70_000), st.integers(1, 9000))
def test_buckets_are_those_of_python(rows: int, tokens: int, queries: int, longest: int) -> None:
    from pfengine.ops.cuda_buffers import LEAST_LONGEST, LEAST_TOKENS, Bucket

    launched: list[int] = []
    launch = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(lambda graph, _: launched.append(1) or 0)
    address = ctypes.cast(launch, ctypes.c_void_p).value
    words = np.zeros((1, 4), np.int64)
    loop = extension._C.SegmentLoop(address, address, words.ctypes.data, 1, LEAST_TOKENS, LEAST_LONGEST)
    loop.add(0, Bucket.of(rows, tokens, longest, queries), 1)
    assert loop.run([0], [-1], 0, rows, tokens, queries, None, longest, 1, STREAM)[0] == 1
    assert launched
