"""A whole flight as one graph, over a stand-in for the CUDA driver that runs graphs on the CPU."""

from __future__ import annotations

import ctypes
import gc
import importlib.util
from collections.abc import Callable
from typing import Any

import pytest
import torch

if importlib.util.find_spec("triton") is None:
    pytest.skip("the GPU path needs triton, which is for Linux alone", allow_module_level=True)

from pfengine.ops.cuda_buffers import Bucket, RuleForm
from pfengine.ops.cuda_driver import CONDITIONAL, KERNEL, Driver, NodeParams
from pfengine.ops.cuda_graphs import Graphs
from pfengine.ops.cuda_segment import Position, Segment
from pfengine.ops.cuda_whole import WholeFlights, joined

from .fake_driver import FakeDriver

BUCKET = Bucket(1, 16, 64, 16)


@pytest.mark.parametrize("gone_after", range(5))
def test_no_segment_runs_after_the_last_row_has_left(gone_after: int) -> None:
    counts, ran = ctypes.c_int(3), []

    def segment(number: int) -> Callable[[], None]:
        def run() -> None:
            ran.append(number)
            counts.value = 0 if number == gone_after else counts.value

        return run

    driver = FakeDriver({number: segment(number) for number in range(5)})
    address = ctypes.addressof(counts)
    instance = joined(driver, range(5), [0, 0, address, address, address])
    driver.launch(instance, 0)
    assert ran == list(range(max(gone_after, 1) + 1))
    assert driver.destroyed == [100]  # what was instantiated stays


class Recorded:
    def __init__(self, number: int) -> None:
        self.number = number

    def replay(self) -> None:
        raise AssertionError("it is part of a whole flight")

    def raw_cuda_graph(self) -> int:
        return self.number

    def raw_cuda_graph_exec(self) -> int:
        raise AssertionError("only whole flights are launched here")


def way(layers: int) -> list[Segment]:
    return [Segment(Position(i), i + 1, RuleForm(), overlap=True, pending=i > 0) for i in range(layers)]


def test_a_flight_is_joined_once_all_its_segments_are_recorded() -> None:
    counts, ran = torch.tensor([3], dtype=torch.int32), []
    driver = FakeDriver({number: lambda number=number: ran.append(number) for number in range(9)})  # type: ignore[misc]
    graphs = Graphs(None)
    whole, segments = WholeFlights(driver, graphs), way(4)
    launch = lambda: whole.launch(segments, BUCKET, lambda _: counts, 0)  # noqa: E731
    assert not launch()
    graphs.known.update({(segment, BUCKET): Recorded(i) for i, segment in enumerate(segments[:3])})
    assert not launch()
    graphs.known[segments[3], BUCKET] = Recorded(3)
    assert launch()
    assert launch()
    assert ran == [0, 1, 2, 3] * 2
    assert len(driver.instances) == 1
    graphs.known[segments[1], BUCKET] = Recorded(7)  # recorded anew, somewhere else
    assert launch()
    assert ran[8:] == [0, 7, 2, 3]
    assert 1000 in driver.destroyed
    whole.clear()
    assert 1001 in driver.destroyed
    assert not whole.launch(segments[:2], BUCKET, lambda _: counts, 0)  # nothing can be left out


def test_each_segment_asks_for_the_counts_before_it() -> None:
    """An exit beside a layer writes counts elsewhere than that layer reads them."""
    counts, ran = [torch.tensor([number], dtype=torch.int32) for number in (3, 3, 3, 0)], []
    driver = FakeDriver({number: lambda number=number: ran.append(number) for number in range(4)})  # type: ignore[misc]
    graphs, segments = Graphs(None), way(4)
    graphs.known.update({(segment, BUCKET): Recorded(i) for i, segment in enumerate(segments)})
    assert WholeFlights(driver, graphs).launch(segments, BUCKET, lambda part: counts[part.at.layer], 0)
    assert ran == [0, 1, 2]


def test_what_is_made_is_destroyed() -> None:
    one, driver = torch.ones(1, dtype=torch.int32), FakeDriver({number: lambda: None for number in range(6)})
    graphs, segments = Graphs(None), way(6)
    graphs.known.update({(segment, BUCKET): Recorded(i) for i, segment in enumerate(segments)})
    whole = WholeFlights(driver, graphs, most=2)
    for length in (3, 4, 3, 5):
        assert whole.launch(segments[:length], BUCKET, lambda _: one, 0)
    instances = [1000, 1001, 1002]
    assert [each for each in driver.destroyed if each in instances] == [1001]  # the one used longest ago
    del graphs.known[segments[4], BUCKET]
    assert not whole.launch(segments[:5], BUCKET, lambda _: one, 0)
    assert 1002 in driver.destroyed  # it would keep alive what was dropped
    del whole
    gc.collect()
    assert set(instances) <= set(driver.destroyed)


def failing(*_: Any) -> int:
    raise RuntimeError("it failed: invalid argument (CUDA error 1)")


@pytest.mark.parametrize("at", ["instantiate", "launch"])
def test_where_the_driver_fails_segments_are_launched_one_by_one(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    driver = FakeDriver({number: lambda: None for number in range(3)})
    graphs, segments, counts = Graphs(None), way(3), torch.ones(1, dtype=torch.int32)
    graphs.known.update({(segment, BUCKET): Recorded(i) for i, segment in enumerate(segments)})
    whole = WholeFlights(driver, graphs)
    if at == "launch":
        monkeypatch.setattr(FakeDriver, "launch", failing)
    else:
        monkeypatch.setattr(FakeDriver, "instantiate", failing)
    assert not whole.launch(segments, BUCKET, lambda _: counts, 0)
    assert "could not run as one graph" in caplog.text
    monkeypatch.undo()
    assert not whole.launch(segments, BUCKET, lambda _: counts, 0)
    assert len(caplog.records) == 1
    assert driver.destroyed == [100] + ([1000] if at == "launch" else [])


def test_a_driver_that_is_too_old_says_so() -> None:
    class Old:
        cuGraphCreate = staticmethod(lambda *_: 0)

    with pytest.raises(RuntimeError, match="this CUDA driver is too old: it has no cuGraphConditionalHandleCreate"):
        Driver(Old())._call("cuGraphConditionalHandleCreate")


class FakeCUDA:
    """The library as ctypes calls it. Functions that are not here succeed and write 5 to their first argument."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.nodes: list[dict[str, Any]] = []
        self.body = (ctypes.c_void_p * 1)(4242)
        self.code = 0

    def cuGetErrorString(self, code: int, text: Any) -> int:
        text._obj.value = b"no such thing"
        return 0

    def cuGraphAddNode(self, out: Any, graph: Any, after: Any, count: Any, params: Any) -> int:
        found: NodeParams = params._obj
        node: dict[str, Any] = {
            "kind": found.kind,
            "graph": graph.value,
            "after": [after[i] for i in range(count.value)],
        }
        if found.kind == KERNEL:
            handle = ctypes.c_uint64.from_address(found.kernel.arguments[0] or 0)
            counts = ctypes.c_uint64.from_address(found.kernel.arguments[1] or 0)
            node |= {
                "function": found.kernel.function,
                "grid": list(found.kernel.grid),
                "values": (handle.value, counts.value),
            }
        else:
            found.conditional.bodies = self.body
            node |= {"handle": found.conditional.handle, "count": found.conditional.count}
        self.nodes.append(node)
        out._obj.value = 10 + len(self.nodes)
        return self.code

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> int:
            self.calls.append((name, arguments))
            if arguments and hasattr(arguments[0], "_obj"):
                arguments[0]._obj.value = 5
            return self.code

        return call


def test_an_if_node_is_a_kernel_that_sets_the_condition_and_the_node_that_reads_it() -> None:
    cuda = FakeCUDA()
    driver = Driver(cuda)
    assert driver.add_if(1, 2, 3000) == 4242
    kernel, branch = cuda.nodes
    assert kernel == {"kind": KERNEL, "graph": 1, "after": [2], "function": 5, "grid": [1, 1, 1], "values": (5, 3000)}
    assert branch == {"kind": CONDITIONAL, "graph": 1, "after": [11], "handle": 5, "count": 1}
    driver.add_if(1, 2, 3000)
    assert [name for name, _ in cuda.calls].count("cuModuleLoadData") == 1
    text = next(arguments[1].value for name, arguments in cuda.calls if name == "cuModuleLoadData")
    assert b".entry set_condition" in text


def test_what_the_driver_says_is_in_the_error() -> None:
    cuda = FakeCUDA()
    cuda.code = 7
    with pytest.raises(RuntimeError, match=r"cuStreamCreate failed: no such thing \(CUDA error 7\)"):
        Driver(cuda).new_stream()
