"""A stand-in for `ops.cuda_driver.Driver` that runs graphs on the CPU."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from typing import Any


class FakeDriver:
    """Graphs are lists of nodes: what a child does, or ("if", counts, body)."""

    def __init__(self, children: Mapping[int, Callable[[], None]]) -> None:
        self.children, self.graphs, self.instances = children, {}, {}
        self.destroyed: list[int] = []

    def new_graph(self) -> int:
        graph = 100 + len(self.graphs)
        self.graphs[graph] = []
        return graph

    def destroy_graph(self, graph: int) -> None:
        self.destroyed.append(graph)

    def _add(self, graph: int, after: int | None, node: Any) -> int:
        assert (after is None) == (not self.graphs[graph])
        assert after in (None, len(self.graphs[graph]))
        self.graphs[graph].append(node)
        return len(self.graphs[graph])

    def add_child(self, graph: int, after: int | None, child: int) -> int:
        return self._add(graph, after, self.children[child])

    def add_if(self, graph: int, after: int, counts: int) -> int:
        body = self.new_graph()
        self._add(graph, after, ("if", counts, body))
        return body

    def instantiate(self, graph: int) -> int:
        instance = 1000 + len(self.instances)
        self.instances[instance] = graph
        return instance

    def destroy(self, instance: int) -> None:
        self.destroyed.append(instance)

    def launch(self, instance: int, stream: int) -> None:
        assert instance not in self.destroyed
        self.run(self.instances[instance])

    def run(self, graph: int) -> None:
        for node in self.graphs[graph]:
            if callable(node):
                node()
            elif ctypes.c_int.from_address(node[1]).value > 0:
                self.run(node[2])
